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
