"""Simulated tissue with its exact truth: the images of the demo, benchmarks, gate and training.

It stands beside `slides`, which reads files: simulated tissue is drawn from numbers, for any region
of a slide that is nowhere on disk, and `slide_file` writes it.
"""
