"""Label images cut into overlapping tiles, as segmenters would label each: for tests of merging."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from densebatch.base.geometry import Region


def tile_starts(length, tile, overlap):
    """Where tiles begin along an axis; the last one ends with the slide."""
    step = tile - overlap
    starts = list(range(0, max(1, length - overlap), step))
    return [min(start, max(0, length - tile)) for start in starts]


def tile_regions(shape, tile, overlap):
    """Overlapping tiles that cover a slide, each once, in raster order."""
    rows, cols = (sorted(set(tile_starts(n, tile, overlap))) for n in shape)
    return [
        Region(y, x, min(y + tile, shape[0]), min(x + tile, shape[1])) for y in rows for x in cols
    ]


def scatter_ids(labels, rng, top=2**32 - 1):
    """The same labels under ids that are random and far apart."""
    ids = np.unique(labels)
    ids = ids[ids > 0]
    new = rng.choice(top, ids.size, replace=False).astype(np.int64) + 1
    table = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    table[ids] = new
    return table[labels]


def cut_tiles(truth, regions, rng):
    """Tiles of a segmenter that is right everywhere, but for ids."""
    return [(r.y0, r.x0, scatter_ids(truth[r.slices], rng)) for r in regions]


def in_raster_order(labels):
    """Labels 1..N in raster order of their first pixels, by a loop."""
    numbers = {}
    flat = [numbers.setdefault(int(v), len(numbers) + 1) if v else 0 for v in labels.ravel()]
    return np.array(flat, np.uint32).reshape(labels.shape)


def grow_cells(shape, seeds, radius):
    """Touching cells: every pixel goes to the nearest seed, within a radius; each is one piece."""
    marks = np.zeros(shape, np.int64)
    for number, (y, x) in enumerate(seeds, 1):
        marks[y % shape[0], x % shape[1]] = number
    distance, (rows, cols) = ndimage.distance_transform_edt(marks == 0, return_indices=True)
    cells = np.where(distance <= radius, marks[rows, cols], 0)
    return keep_largest_pieces(cells)


def keep_largest_pieces(cells):
    """Each label reduced to its largest 4-connected piece."""
    kept = np.zeros_like(cells)
    for number, box in enumerate(ndimage.find_objects(cells), 1):
        if box is None:
            continue
        pieces, n = ndimage.label(cells[box] == number)
        if n:
            largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
            kept[box][pieces == largest] = number
    return kept


def count_faults(truth, labels, min_iou=0.9):
    """How labels differ from the truth, by cells.

    `good`: share of true cells with a label of at least that IoU. `cut`: true cells of which two
    labels or more hold a tenth each. `merges`: labels that hold half of two true cells or more.
    `duplicates`: labels, half of whose pixels are of a true cell that another label is good for.
    """
    n, m = int(truth.max()), int(labels.max())
    pairs = truth.astype(np.int64) * (m + 1) + labels
    codes, shared = np.unique(pairs, return_counts=True)
    cell, label = np.divmod(codes, m + 1)
    of_cell = np.bincount(truth.ravel(), minlength=n + 1)
    of_label = np.bincount(labels.ravel(), minlength=m + 1)
    both = (cell > 0) & (label > 0)
    cell, label, shared = cell[both], label[both], shared[both]
    iou = shared / (of_cell[cell] + of_label[label] - shared)
    good = np.zeros(n + 1, bool)
    good[cell[iou >= min_iou]] = True
    there = of_cell > 0
    there[0] = False
    tenth = np.bincount(cell[shared >= 0.1 * of_cell[cell]], minlength=n + 1)
    halves = np.bincount(label[shared >= 0.5 * of_cell[cell]], minlength=m + 1)
    second = (shared >= 0.5 * of_label[label]) & (iou < min_iou) & good[cell]
    return {
        "cells": int(there.sum()),
        "labels": int((of_label[1:] > 0).sum()),
        "good": float(good[there].mean()),
        "cut": int((tenth > 1).sum()),
        "merges": int((halves > 1).sum()),
        "duplicates": int(np.unique(label[second]).size),
    }
