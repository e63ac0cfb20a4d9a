"""Percentiles from histograms, exact: of one slide's tissue, or of several slides' together.

Values of up to 16 bits are counted one by one. Wider ones are counted by the upper 16 bits of
their keys, and those with the upper bits of a wanted one by the lower bits in a second pass (radix
selection). Counts are integers, so that those of several slides add up to the same in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.survey.kernels import is_narrow, value_of_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def list_ranks(percentiles: Sequence[float], n_px: int) -> list[int]:
    """Ranks of the pixels that percentiles lie between, from 0, the smallest's, ascending."""
    places = [_find_place(percentile, n_px) for percentile in percentiles]
    return sorted({int(near(place)) for place in places for near in (np.floor, np.ceil)})


def _find_place(percentile: float, n_px: int) -> float:
    return percentile / 100.0 * (n_px - 1)


def find_bins(tissue: NDArray[np.int64], ranks: Sequence[int]) -> NDArray[np.uint32]:
    """Bins of the first histogram that hold some ranks: `(n,)`, ascending."""
    keys = np.searchsorted(np.cumsum(tissue), ranks, side="right")
    return np.unique(keys).astype(np.uint32)


def find_values(
    tissue: NDArray[np.int64],
    low_bits: NDArray[np.int64] | None,
    ranks: Sequence[int],
    dtype: np.dtype[Any],
) -> dict[int, float]:
    """Values of some ranks.

    Parameters
    ----------
    tissue
        `(bins,)` first histogram.
    low_bits
        `(n, 65536)` second histograms of the bins of `find_bins`; None for narrow values.
    ranks
        From 0, the smallest pixel's.
    dtype
        Of the pixels.

    Returns
    -------
    dict
        Value by rank.
    """
    cumulative = np.cumsum(tissue)
    keys = {rank: int(np.searchsorted(cumulative, rank, side="right")) for rank in ranks}
    if low_bits is not None:
        wanted = find_bins(tissue, ranks)
        for rank, high_bits in keys.items():
            before = int(cumulative[high_bits - 1]) if high_bits else 0
            within = np.cumsum(low_bits[int(np.searchsorted(wanted, high_bits))])
            keys[rank] = (high_bits << 16) + int(np.searchsorted(within, rank - before, "right"))
    return {rank: value_of_key(key, dtype) for rank, key in keys.items()}


def interpolate(
    values: dict[int, float], percentiles: Sequence[float], n_px: int
) -> tuple[float, ...]:
    """Percentiles as `numpy.percentile` has them.

    Parameters
    ----------
    values
        By rank, of those of `list_ranks`.
    percentiles
        From 0 to 100.
    n_px
        How many pixels there are.
    """
    places = [_find_place(percentile, n_px) for percentile in percentiles]
    return tuple(
        float(_between(values[int(np.floor(at))], values[int(np.ceil(at))], at - np.floor(at)))
        for at in places
    )


def _between(low: float, high: float, fraction: float) -> float:
    """Between two values, rounded as `numpy.percentile` rounds."""
    step = high - low
    return high - step * (1 - fraction) if fraction >= 0.5 else low + step * fraction


class Pool:
    """Percentiles of the tissue of one channel of several slides together.

    Parameters
    ----------
    percentiles
        From 0 to 100.
    dtype
        Of the pixels of all slides.
    """

    def __init__(self, percentiles: Sequence[float], dtype: np.dtype[Any]) -> None:
        self._percentiles = percentiles
        self._dtype = dtype
        self._tissue: NDArray[np.int64] | None = None
        self._low_bits: NDArray[np.int64] | None = None

    def add(self, tissue: NDArray[np.int64]) -> None:
        """Add a slide's first histogram; empty for a slide without tissue."""
        if tissue.size:
            self._tissue = tissue.copy() if self._tissue is None else self._tissue + tissue

    @property
    def wanted(self) -> NDArray[np.uint32]:
        """Bins of which the second histograms are needed, once all slides were added."""
        if self._tissue is None or is_narrow(self._dtype):
            return np.zeros(0, np.uint32)
        return find_bins(self._tissue, self._list_ranks())

    def add_low_bits(self, low_bits: NDArray[np.int64]) -> None:
        """Add a slide's second histograms, of the bins that are wanted."""
        self._low_bits = low_bits if self._low_bits is None else self._low_bits + low_bits

    def find_limits(self) -> tuple[float, float] | None:
        """The two percentiles; None if no slide has tissue."""
        if self._tissue is None:
            return None
        values = find_values(self._tissue, self._low_bits, self._list_ranks(), self._dtype)
        low, high = interpolate(values, self._percentiles, self._n_px)
        return low, high

    @property
    def _n_px(self) -> int:
        return 0 if self._tissue is None else int(self._tissue.sum())

    def _list_ranks(self) -> list[int]:
        return list_ranks(self._percentiles, self._n_px)
