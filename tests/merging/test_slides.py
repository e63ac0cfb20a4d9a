"""Merging on a simulated slide, of a segmenter that is as bad near a tile's border as it may be."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.stitching.faults import count_faults
from densebatch.base.geometry import Region
from densebatch.merging.in_memory import merge_tiles
from densebatch.merging.layout import Layout
from densebatch.simulation.tissue import Tissue, render
from tests.helpers.label_tiles import (
    cut_tiles,
    in_raster_order,
    scatter_ids,
    tile_regions,
)

DIAMETER = 20  # of the median cell, from end to end


@lru_cache(maxsize=2)
def draw_truth(height, width):
    tissue = Tissue(height, width, seed=5, cell_diameter_px=16, stained_fraction=0.8)
    truth = render(tissue, Region(0, 0, height, width))[1]
    return in_raster_order_fast(truth)


def in_raster_order_fast(labels):
    ids, first, which = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.zeros(ids.size, np.uint32)
    order = np.argsort(first)
    order = order[ids[order] > 0]
    numbers[order] = np.arange(1, order.size + 1)
    return numbers[which].reshape(labels.shape)


def label_badly(truth, layout, tile):
    """Labels of a tile whose pixels depend on what lies within two diameters.

    Right where a border of the tile is two diameters away.
    Nearer by, outlines are ragged; close to the border cells are shrunk; those that it cuts are
    dropped, split, or one with a neighbour that it cuts too. Ids are random.
    """
    region = layout.regions[tile]
    rng = np.random.default_rng((region.y0, region.x0))
    labels = truth[region.slices].astype(np.int64)
    ids, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(region.shape) + (0 if ids[0] == 0 else 1)
    boxes = ndimage.find_objects(labels)
    box = np.array([(b[0].start, b[1].start, b[0].stop, b[1].stop) for b in boxes]).reshape(-1, 4)
    far = layout.distances(tile, box + np.array([region.y0, region.x0] * 2))
    far = np.append(far.max(initial=0), far)  # of background, by label
    edge = ndimage.grey_erosion(labels, 3, mode="nearest") != labels
    rough = np.select([far < DIAMETER / 10, far < 2 * DIAMETER], [0.7, 0.05], 0.0)
    labels[edge & (rng.random(labels.shape) < rough[labels])] = 0
    for cell in np.flatnonzero(far == 0):
        at = boxes[cell - 1]
        inside = labels[at] == cell
        fate = rng.random()
        if fate < 0.2:
            labels[at][inside] = 0
        elif fate < 0.5:
            rows, cols = np.nonzero(inside)
            if rows.size:
                half = rows + cols > np.median(rows + cols)
                labels[at][rows[half], cols[half]] = far.size + cell
        elif fate < 0.7:
            y, x = (int(rng.integers(max(0, s.start - 2), min(n, s.stop + 2)))
                    for s, n in zip(at, labels.shape, strict=True))  # fmt: skip
            other = labels[y, x]
            if other < far.size and far[other] == 0:
                labels[at][inside] = other
    return scatter_ids(labels, rng)


def check_slide(shape, tile, overlap, least=0.999):
    truth = draw_truth(*shape)
    layout = Layout(tuple(tile_regions(shape, tile, overlap)))
    tiles = [
        (region.y0, region.x0, label_badly(truth, layout, k))
        for k, region in enumerate(layout.regions)
    ]
    merged = merge_tiles(tiles, shape)
    faults = count_faults(truth, merged.labels)
    assert faults["good"] >= least, faults
    assert faults["cut"] == faults["merges"] == faults["duplicates"] == 0, faults
    assert merged.decision.merged > len(layout.regions)
    shuffled = [tiles[k] for k in np.random.default_rng(1).permutation(len(tiles))]
    again = merge_tiles(shuffled, shape)
    np.testing.assert_array_equal(again.labels, merged.labels)
    right = merge_tiles(cut_tiles(truth, layout.regions, np.random.default_rng(2)), shape)
    np.testing.assert_array_equal(right.labels, truth)


def test_a_bad_segmenter_on_small_tiles():
    check_slide((400, 300), 128, 2 * DIAMETER, least=0.99)  # of 450 cells


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [2 * DIAMETER, 3 * DIAMETER])
@pytest.mark.parametrize("tile", [256, 512, 1024, 2048])
def test_a_bad_segmenter_on_a_slide(tile, overlap):
    """Some 15 000 cells."""
    check_slide((2300, 2200), tile, overlap)


def test_the_fast_order_is_the_plain_one():
    truth = draw_truth(400, 300)
    np.testing.assert_array_equal(truth, in_raster_order(truth))
