"""Pixels of slides, read from files of any format or simulated with their truth."""
