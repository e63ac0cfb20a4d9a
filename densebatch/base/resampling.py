"""Resampling between the slide's scale and the network's, exact for any window.

Every output pixel is a weighted sum of input pixels whose positions and weights follow from its
*global* index, in a fixed order of summation: a region of the resampled slide has the same bits as
the same region cut from the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class AxisWeights:
    """For each output index `k` input indices with weights, both `(n, k)`."""

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    @property
    def start(self) -> int:
        """First input index that is needed."""
        return int(self.index.min())

    @property
    def stop(self) -> int:
        """One past the last input index that is needed."""
        return int(self.index.max()) + 1


def axis_weights(output: NDArray[np.int64], n_in: int, n_out: int) -> AxisWeights:
    """Weights that bring an axis of `n_in` pixels to `n_out`, for some output indices.

    Enlarging interpolates linearly between pixel centres, as OpenCV's `INTER_LINEAR` does;
    reducing averages the area that an output pixel covers, so that fine texture does not alias.

    Parameters
    ----------
    output
        Output indices within `0..n_out`.
    n_in, n_out
        Lengths of the whole axis before and after.

    Returns
    -------
    AxisWeights
        Of one tap where the lengths are equal, of two where the axis is enlarged, and of as many
        as an output pixel can touch where it is reduced.

    Examples
    --------
    Five pixels become two, and the middle one is shared by halves:

    >>> axis_weights(np.arange(2), 5, 2).weight
    array([[0.4, 0.4, 0.2, 0. ],
           [0.2, 0.4, 0.4, 0. ]], dtype=float32)
    """
    if n_in == n_out:
        return AxisWeights(output[:, None], np.ones((output.size, 1), np.float32))
    ratio = n_in / n_out
    if ratio < 1:
        source = (output + 0.5) * ratio - 0.5
        first = np.floor(source).astype(np.int64)
        fraction = source - first
        index = np.stack([first, first + 1], axis=1)
        weight = np.stack([1 - fraction, fraction], axis=1)
    else:
        left, right = output * ratio, (output + 1) * ratio
        first = np.floor(left).astype(np.int64)
        taps = int(np.ceil(ratio)) + 1
        index = first[:, None] + np.arange(taps)
        covered = np.minimum(index + 1, right[:, None]) - np.maximum(index, left[:, None])
        weight = np.clip(covered, 0, None) / ratio
    return AxisWeights(np.clip(index, 0, n_in - 1), weight.astype(np.float32))


def _take(pixels: NDArray[np.float32], weights: AxisWeights, axis: int) -> NDArray[np.float32]:
    """Pixels at the first tap of each index; without a copy where these follow each other."""
    index = weights.index[:, 0] - weights.start
    if index.size == pixels.shape[axis] and (np.diff(index) == 1).all():
        return pixels
    return np.take(pixels, index, axis=axis)


def resample(
    pixels: NDArray[np.float32], rows: AxisWeights, cols: AxisWeights
) -> NDArray[np.float32]:
    """Apply the weights of rows and columns to a window of pixels.

    Parameters
    ----------
    pixels
        `(..., rows.stop - rows.start, cols.stop - cols.start)` float32: the window that is needed.
    rows, cols
        Weights of the output's rows and columns.

    Returns
    -------
    ndarray
        `(..., n_rows, n_cols)` float32.
    """
    if rows.index.shape[1] == 1 and cols.index.shape[1] == 1:
        taken = _take(_take(pixels, rows, axis=-2), cols, axis=-1)
        return np.array(taken, order="C")  # a copy, as in every other case
    partial = np.zeros((*pixels.shape[:-2], rows.index.shape[0], pixels.shape[-1]), np.float32)
    for tap in range(rows.index.shape[1]):
        weight = rows.weight[:, tap, None]
        partial += pixels[..., rows.index[:, tap] - rows.start, :] * weight
    result = np.zeros((*partial.shape[:-1], cols.index.shape[0]), np.float32)
    for tap in range(cols.index.shape[1]):
        result += partial[..., cols.index[:, tap] - cols.start] * cols.weight[:, tap]
    return result


def mean_of_four(block: NDArray[Any]) -> NDArray[Any]:
    """Mean of each 2x2 pixels of the last two axes; a last odd row or column is repeated.

    Integers are averaged exactly and rounded half up.

    Examples
    --------
    >>> mean_of_four(np.array([[0, 1, 255], [0, 1, 254]], np.uint8))
    array([[  1, 255]], dtype=uint8)
    """
    height, width = block.shape[-2:]
    if height % 2 or width % 2:
        edges = [(0, 0)] * (block.ndim - 2) + [(0, height % 2), (0, width % 2)]
        block = np.pad(block, edges, mode="edge")
    a, b, c, d = (block[..., dy::2, dx::2] for dy in (0, 1) for dx in (0, 1))
    if block.dtype.kind == "f":
        # Quarters are added, because a sum of four may overflow where their mean does not.
        quarter = block.dtype.type(0.25)
        with np.errstate(invalid="ignore", under="ignore"):
            return np.asarray((a * quarter + b * quarter) + (c * quarter + d * quarter))
    # v = 4 (v >> 2) + (v & 3) keeps every sum inside the type, whatever its width and sign.
    whole = (a >> 2) + (b >> 2) + (c >> 2) + (d >> 2)
    rest = (a & 3) + (b & 3) + (c & 3) + (d & 3)
    return np.asarray(whole + ((rest + 2) >> 2), block.dtype)
