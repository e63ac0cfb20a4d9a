"""Many slides by one command: sample sheet, shared workers, what became of each slide."""
