"""Cuts between negative and positive cells that are found from the cells' own values.

Found over all cells of a slide in the order of their ids, with a fixed start and a fixed number of
steps, so that a cut depends on the values alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.names import count_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEPS = 2000
_BINS = 4096  # of logarithms, for the mixture
_SHOWN = 64  # bins that are kept for the eye
_APART = 2.0
_MARGIN = 10.0
_FEW = 10  # cells of a component
_WHOLE = 1e-6  # of the variance of all, that no component falls below


@dataclass(frozen=True)
class Mixture:
    """Two normal components of the logarithms of values, the lower one first.

    Attributes
    ----------
    weights, means, deviations : `(2,)` float64; of natural logarithms
    gain : by how much the Bayesian information criterion prefers two components to one
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]
    gain: float

    @property
    def apart(self) -> float:
        """Ashman's D of the components (Ashman, Bird & Zepf 1994); from 2 on they are apart."""
        spread = np.sqrt((self.deviations**2).sum() / 2)
        return float((self.means[1] - self.means[0]) / spread)

    def find_crossing(self) -> float | None:
        """Where between the means both components are as dense; None if one is denser throughout.

        As a value, not as its logarithm.
        """
        (a, b), (s, t) = self.means, self.deviations
        # Differences of the logarithms of both densities: a parabola.
        square = 0.5 / t**2 - 0.5 / s**2
        linear = a / s**2 - b / t**2
        constant = 0.5 * (b / t) ** 2 - 0.5 * (a / s) ** 2
        constant += float(np.log(self.weights[0] / s) - np.log(self.weights[1] / t))
        roots = np.roots([square, linear, constant])
        between = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and a < r.real < b]
        return float(np.exp(between[0])) if len(between) == 1 else None


@dataclass(frozen=True)
class Cut:
    """A cut that was found, or not.

    Attributes
    ----------
    value : None if there is none
    note : why it is not to be trusted, or why there is none; "" if nothing speaks against it
    mixture : of the values, which decides whether it is to be trusted
    """

    value: float | None
    note: str
    mixture: Mixture | None


def find_cut(values: NDArray[np.float64], how: str) -> Cut:
    """Find a cut between negative and positive cells.

    Parameters
    ----------
    values
        `(n,)` of the cells, finite, by ascending id.
    how
        `otsu`: the largest variance between both sides (Otsu 1979), as of
        `skimage.filters.threshold_otsu`. `mixture`: where two normal components of the logarithm
        are as dense; values that are not above 0 have none and are below any cut.

    Returns
    -------
    Cut
    """
    if values.size == 0 or values.min() == values.max():
        return Cut(None, "there is no cut: the cells do not differ", None)
    mixture = fit_mixture(values[values > 0])
    if how == "otsu":
        from skimage.filters import threshold_otsu  # which takes a second to import

        value: float | None = float(threshold_otsu(values))
    else:
        value = None if mixture is None else mixture.find_crossing()
    if value is None:
        why = "one of two components on the logarithm lies within the other"
        if mixture is None:
            why = "too few cells have different values above 0"
        return Cut(None, f"there is no cut: {why}", mixture)
    return Cut(value, _explain(mixture, int((values > 0).sum())), mixture)


def _explain(mixture: Mixture | None, n_values: int) -> str:
    """Why a cut is not to be trusted."""
    if mixture is None:
        return "the cut is not to be trusted: too few cells have different values above 0"
    if mixture.apart < _APART or mixture.gain < _MARGIN:
        return (
            "the cut is not to be trusted: the cells' values do not fall in two groups (two "
            f"components on the logarithm are {mixture.apart:.2f} apart by Ashman's D, and "
            f"{mixture.gain:.4g} better than one by BIC; of two groups these are at least "
            f"{_APART:g} and {_MARGIN:g})"
        )
    few = float(mixture.weights.min()) * n_values
    if few < _FEW:
        cells = count_of(round(few), "cell")
        return f"the cut is not to be trusted: one of the two groups has {cells}"
    return ""


def fit_mixture(values: NDArray[np.float64]) -> Mixture | None:
    """Fit two normal components to the logarithms of values.

    Expectation maximisation (Dempster, Laird & Rubin 1977) on the logarithms in 4096 bins, each
    with its number, sum and sum of squares, so that only the components' shares are the same
    throughout a bin. The start is Otsu's cut of the bins, and the number of steps is fixed.

    Parameters
    ----------
    values
        `(n,)` above 0.

    Returns
    -------
    Mixture or None
        None where there are fewer than four different values, or one component has taken all.
    """
    if np.unique(values).size < 2 * 2:
        return None
    logs = np.log(values)
    low, high = float(logs.min()), float(logs.max())
    middle = float(logs.mean())
    logs = logs - middle  # so that squares cancel less
    share = (logs - (low - middle)) / (high - low)
    place = np.clip((share * _BINS).astype(np.int64), 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    kept = counts > 0
    n = counts[kept].astype(np.float64)
    total = np.bincount(place, logs, _BINS)[kept].astype(np.float64)
    squares = np.bincount(place, logs**2, _BINS)[kept].astype(np.float64)
    every = float(n.sum())
    variance = float(squares.sum() / every - (total.sum() / every) ** 2)
    shares = _start(n, total)
    for _ in range(_STEPS):
        # Not as products of matrices, whose last bits depend on how many threads there are.
        taken = (shares * n).sum(axis=1)
        if taken.min() <= 0:
            return None
        means = (shares * total).sum(axis=1) / taken
        spread = (shares * squares).sum(axis=1) / taken - means**2
        spread = np.maximum(spread, _WHOLE * variance)
        weights = taken / every
        # Density of each bin under each component, but for a factor that they share.
        x = total / n
        log_density = (
            np.log(weights)[:, None]
            - 0.5 * np.log(spread)[:, None]
            - (x[None] - means[:, None]) ** 2 / (2 * spread[:, None])
        )
        top = log_density.max(axis=0)
        density = np.exp(log_density - top)
        whole = density.sum(axis=0)
        shares = density / whole
    order = np.argsort(means, kind="stable")
    two = float((n * (top + np.log(whole))).sum())
    one = -0.5 * every * (np.log(variance) + 1)
    # Two components have three parameters more.
    gain = 2 * (two - float(one)) - 3 * np.log(every)
    return Mixture(weights[order], means[order] + middle, np.sqrt(spread[order]), float(gain))


def _start(n: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares `(2, bins)` of both components at first: the two sides of Otsu's cut."""
    below, sums = np.cumsum(n)[:-1], np.cumsum(total)[:-1]
    above = n.sum() - below
    between = (sums * n.sum() - total.sum() * below) ** 2 / (below * above)
    upper = np.arange(n.size) > np.argmax(between)
    shares: NDArray[np.float64] = np.stack([~upper, upper]).astype(np.float64)
    return shares


def draw_histogram(values: NDArray[np.float64], *, is_share: bool) -> dict[str, Any]:
    """How many cells have which values, for the eye.

    Parameters
    ----------
    values
        `(n,)` of the cells, finite.
    is_share
        Whether values are from 0 to 1, and are shown so; else their decadic logarithms are.

    Returns
    -------
    dict
        `scale`: `linear`, or `log10` of the values above 0; `edges`, the first and last one of as
        many bins of equal width as there are `counts`; `not_above_0`, cells that are not shown.
    """
    shown = values if is_share else np.log10(values[values > 0])
    edges = (0.0, 1.0) if is_share else (0.0, 0.0)
    if shown.size and not is_share:
        edges = (float(shown.min()), float(shown.max()))
    counts = np.histogram(shown, _SHOWN, edges)[0] if shown.size else np.zeros(_SHOWN, np.int64)
    return {
        "scale": "linear" if is_share else "log10",
        "edges": list(edges),
        "counts": counts.tolist(),
        "not_above_0": int(values.size - shown.size),
    }
