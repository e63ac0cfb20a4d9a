"""What a task of each stage does, on a worker, and the record that it leaves."""
