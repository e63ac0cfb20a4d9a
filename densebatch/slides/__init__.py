"""Pixels of slides: files of any format, opened once and read by region."""
