"""What everything may use and what knows no slide: geometry, files, formats, machine, errors."""
