"""Finished results in the formats of other tools: `export`, and a module for each target."""
