"""Cells on disk: label images with their pyramids, and tables, written and read."""
