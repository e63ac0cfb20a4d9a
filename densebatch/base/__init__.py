"""What everything may use, and what knows no slide: geometry, files and their formats, machine, errors."""
