"""Label segmenters that misbehave where a test says so; imported by worker processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.label_functions import label_by_surroundings


def fail_in_bright_tiles(image, *, um_per_px, options):
    """As `label_by_surroundings`, unless the tile holds a pixel of 1 and a file says to fail.

    Counts its calls by a file of one byte more each.
    """
    trouble = Path(options["trouble"])
    with trouble.with_suffix(".calls").open("ab") as calls:
        calls.write(b".")
    if trouble.exists() and image[0, 0, 0] == 1:
        if trouble.read_text() == "die":
            os.abort()
        raise RuntimeError("the kettle is empty")
    labels = label_by_surroundings(image, um_per_px=um_per_px, options=options)
    labels[0, 0] = 0  # no cell of the marks by which a tile is known
    return labels


def return_negatives(image, *, um_per_px, options):
    return np.full(image.shape[1:], -1)


def label_all(image, *, um_per_px, options):
    """One cell that is larger than any tile."""
    return np.ones(image.shape[1:], np.int32)


def label_planes(image, *, um_per_px, options):
    """Tells what it was given: the number of planes, and the largest value as a percentage."""
    labels = np.zeros(image.shape[1:], np.int64)
    labels[1:3, 1:3] = len(image)
    labels[5:7, 5:7] = 100 + int(100 * image.max())
    labels[9:11, 9:11] = 1000 + round(100 * um_per_px)
    return labels
