"""Histograms of a slide that several threads count, each into one of its own."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from densebatch.base.geometry import Grid


def count_in_threads(
    function: Callable[[tuple[int, int], NDArray[np.int64]], int],
    grid: Grid,
    threads: int,
    shape: tuple[int, int],
) -> tuple[NDArray[np.int64], int]:
    """Call a function for every region, with a histogram to add to.

    Parameters
    ----------
    function
        Takes an index of the grid and a histogram; what it returns is summed up too.
    grid
        Regions.
    threads
        How many work at once; a reading thread waits for the disk, a counting one holds no lock.
    shape
        Of a histogram. Rows that nothing was counted in cost no memory.

    Returns
    -------
    histogram : `shape` int64
        Sum of all; integers, so that it does not depend on who counted what.
    total : int
        Sum of what the calls returned.

    Raises
    ------
    Exception
        What the first call of the grid that failed raised; what has not begun then never will.
    """
    histograms = [np.zeros(shape, np.int64) for _ in range(threads)]
    spare: queue.SimpleQueue[NDArray[np.int64]] = queue.SimpleQueue()
    for histogram in histograms:
        spare.put(histogram)

    def call(index: tuple[int, int]) -> int:
        histogram = spare.get()
        try:
            return function(index, histogram)
        finally:
            spare.put(histogram)

    pool = ThreadPoolExecutor(threads)
    try:
        total = sum(pool.map(call, grid))
    finally:
        pool.shutdown(cancel_futures=True)
    whole, *others = histograms
    for histogram in others:
        for row in np.flatnonzero(histogram.any(axis=1)):
            whole[row] += histogram[row]
    return whole, total
