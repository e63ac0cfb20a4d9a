"""What the tasks of a run measure in the shards of a label image in memory."""

from __future__ import annotations

import numpy as np

from densebatch.base.geometry import Grid
from densebatch.measuring.shard import Shard


def measure_parts(labels, image, step, fractions=(0.5,), shares=None, covers=None):
    """What is measured in every shard of `step` pixels.

    Of some channels a share of the pixels is counted: over a value, or under other labels.
    """
    shares, covers = shares or {}, covers or {}
    grid = Grid(*labels.shape, step, step)
    areas = np.bincount(labels.ravel())
    for index in grid:
        region = grid[index]
        ids, local = np.unique(labels[region.slices], return_inverse=True)
        local = local.reshape(region.shape).astype(np.uint32) + np.uint32(ids[0] != 0)
        ids = ids[ids > 0].astype(np.uint32)
        split = areas[ids] > np.bincount(local.ravel(), minlength=ids.size + 1)[1:]
        shard = Shard(local, ids, split, region, labels.shape[1], fractions)
        for channel, pixels in enumerate(image):
            shard.add_channel(pixels[region.slices], over=shares.get(channel))
            if channel in covers:
                shard.add_cover(covers[channel][region.slices])
        yield shard.finish(np.zeros(0, np.uint32))
