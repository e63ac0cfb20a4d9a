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
        Threads that work at once: one that reads waits for the disk, and one that counts in a
        numba kernel does not hold the interpreter's lock.
    shape
        Of a histogram. Rows in which nothing is counted take no memory.

    Returns
    -------
    histogram : `shape` int64
        Sum of all; of integers, so it does not depend on which thread counted what.
    total : int
        Sum of what the calls returned.

    Raises
    ------
    Exception
        Of the first region, in the grid's order, that failed; no further region is begun then.
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
