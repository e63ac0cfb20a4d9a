"""Threads count as one does, and the first region that fails is the one that is told."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from densebatch.base.geometry import Grid
from densebatch.survey.passes import count_in_threads

GRID = Grid(70, 50, 10, 10)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_region_is_counted_once(threads):
    pixels = np.random.default_rng(0).integers(0, 16, (70, 50))
    at_once = []
    busy = set()

    def count(index, histogram):
        assert id(histogram) not in busy  # nobody else adds to it now
        busy.add(id(histogram))
        at_once.append(len(busy))
        part = pixels[GRID[index].slices]
        histogram[3] += np.bincount(part.ravel(), minlength=16)
        busy.discard(id(histogram))
        return part.size

    histogram, total = count_in_threads(count, GRID, threads, (5, 16))
    assert total == pixels.size
    assert (histogram[3] == np.bincount(pixels.ravel(), minlength=16)).all()
    assert histogram.sum() == pixels.size
    assert max(at_once) <= threads


def test_threads_work_at_the_same_time():
    together = threading.Barrier(3, timeout=30)

    def wait(index, histogram):
        if index[0] == 0 and index[1] < 3:
            together.wait()  # breaks, and fails the call, unless three are here
        return 1

    assert count_in_threads(wait, GRID, 3, (1, 1))[1] == 35


def test_the_first_failure_is_told_and_the_rest_is_left():
    begun = []

    def fail(index, histogram):
        begun.append(index)
        time.sleep(0.02)  # nobody is done before the first is told
        if index >= (0, 2):
            raise OSError(f"region {index}")
        return 0

    with pytest.raises(OSError, match=r"region \(0, 2\)"):
        count_in_threads(fail, GRID, 2, (1, 1))
    assert len(begun) < 35
