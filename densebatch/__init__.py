"""Whole-slide cell segmentation of dense, multiplexed tissue."""
