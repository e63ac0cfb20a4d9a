"""Rectangles of an open image file, whatever its format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from densebatch.base.errors import InputError, describe_cause

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

ACCEPTED = "PNG, TIFF, .npy, an OME-Zarr label image, or a plain zarr array"
MAX_LABEL = 2**32 - 1
UNNAMED = "QI"  # what tifffile calls axes that a file does not name
_LETTERS = "ABCDEFGHIJKLMNOPQ"
_WANTED = "a label image has one whole number per cell and 0 for background"
ADVICE = "label its pieces first (--label-components, or another tool)"


class PixelSource(Protocol):
    """What labels are read from: a NumPy array, a zarr array, a label image of `cells.read`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, index: tuple[slice, slice], /) -> object:
        """Pixels of a rectangle."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """An open file whose rectangles can be read.

    Attributes
    ----------
    path
        The file or array.
    array
        Anything that slices to a NumPy array.
    axes
        A letter for each dimension: Y and X for rows and columns, S for the samples of a colour.
    unit
        Rows and columns that are cheapest to read together.
    scene
        Which image of a file that holds several it is, as the user named it.
    notes
        What a user should know of how it was chosen, a sentence each.
    """

    path: Path
    array: Any
    axes: str
    unit: tuple[int, int] = (1, 1)
    scene: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        return sizes["Y"], sizes["X"]

    @property
    def n_planes(self) -> int:
        """Product of the other dimensions."""
        return int(np.prod(self.array.shape)) // max(1, self.shape[0] * self.shape[1])

    def read(self, region: Region) -> NDArray[Any]:
        """All planes of a rectangle, (planes, rows, columns).

        Raises
        ------
        InputError
            If they cannot be read.
        """
        rows, cols = region.slices
        index = tuple({"Y": rows, "X": cols}.get(axis, slice(None)) for axis in self.axes)
        try:
            part = np.asarray(self.array[index])
        except MemoryError:
            raise
        # Every codec and store has errors of its own, and whichever it is, the pixels are unknown.
        except Exception as exc:
            raise InputError(
                f"{self.path} cannot be read at rows {region.y0} to {region.y1}, columns "
                f"{region.x0} to {region.x1}: {describe_cause(exc)}"
            ) from exc
        part = np.moveaxis(part, (self.axes.index("Y"), self.axes.index("X")), (-2, -1))
        return part.reshape(self.n_planes, *region.shape)


def guess_axes(shape: tuple[int, ...], path: Path) -> str:
    """Axes of an array without names: rows and columns last, unless the last are colours.

    Of more than two axes those of length 1 are dropped first, wherever they stand; where only one
    other is left, the image is a row or a column, and one of length 1 beside it is kept.

    Raises
    ------
    InputError
        If there are less than two.

    Examples
    --------
    >>> from pathlib import Path
    >>> guess_axes((1, 60, 80, 1), Path("a.npy")), guess_axes((3, 60, 80), Path("a.npy"))
    ('AYXB', 'AYX')
    """
    if len(shape) < 2:
        raise InputError(f"{path} has shape {shape}; an image has rows and columns")
    if len(shape) == 3 and shape[2] in (3, 4) and shape[0] > 4:
        return "YXS"
    kept = [k for k, size in enumerate(shape) if size != 1]
    if len(shape) == 2:
        named = dict(enumerate("YX"))
    elif len(kept) == 3 and shape[kept[2]] in (3, 4) and shape[kept[0]] > 4:
        named = dict(zip(kept, "YXS", strict=True))
    elif len(kept) > 1:
        named = dict(zip(kept[-2:], "YX", strict=True))
    else:
        first = min([*kept, len(shape) - 2])
        named = {first: "Y", first + 1: "X"}
    others = iter(_LETTERS)
    return "".join(named.get(k) or next(others) for k in range(len(shape)))


def complete_axes(axes: str, shape: tuple[int, ...], path: Path) -> str:
    """Axes as a TIFF tells them, and a guess where it does not or where tifffile had to guess.

    Examples
    --------
    >>> from pathlib import Path
    >>> complete_axes("QYXQ", (1, 60, 80, 1), Path("a.tif"))
    'AYXB'
    >>> complete_axes("ZYX", (60, 80, 1), Path("a.tif")), complete_axes("QYX", (60, 1, 80), Path())
    ('ZYX', 'YAX')
    """
    sizes = [size for axis, size in zip(axes, shape, strict=True) if axis not in "YX"]
    is_plane = axes.count("Y") == axes.count("X") == 1 and math.prod(sizes) == 1
    if is_plane:
        others = iter(_LETTERS)
        return "".join(axis if axis in "YX" else next(others) for axis in axes)
    unnamed = 1 in shape and "S" not in axes and set(UNNAMED) & set(axes)
    if unnamed or not {"Y", "X"} <= set(axes) or len(set(axes)) < len(axes):
        return guess_axes(shape, path)
    return axes


def as_labels(
    array: object, where: str = "the label image", *, masks: bool = False
) -> NDArray[np.uint32]:
    """Labels as contiguous uint32, or the reason why these are no labels.

    Parameters
    ----------
    array
        Whole numbers of any type, 0 for background. Floats are read where each is a whole number
        that its type tells from the next.
    where
        Names the source in the error.
    masks
        Whether booleans are read, as 0 and 1.

    Raises
    ------
    InputError
        For fractions, NaN, complex numbers, booleans, negative ids and ids above 2^32-1.

    Examples
    --------
    >>> as_labels(np.array([[0, 7]], dtype=np.int16))
    array([[0, 7]], dtype=uint32)
    >>> as_labels(np.array([[0.0, 7.0]]))
    array([[0, 7]], dtype=uint32)
    """
    labels = np.asarray(array)
    kind = labels.dtype.kind
    if kind == "b" and not masks:
        raise InputError(f"{where} holds a yes/no mask (bool); {_WANTED}: {ADVICE}")
    if kind not in "biuf":
        raise InputError(f"{where} holds values of type {labels.dtype}; {_WANTED}")
    if kind == "f":
        _check_floats(labels, where)
    elif labels.size and labels.dtype.itemsize > (2 if kind == "u" else 0):
        if kind == "i" and (lowest := int(labels.min())) < 0:
            raise InputError(
                f"{where} holds the negative label {lowest}; labels are 0 to {MAX_LABEL}"
            )
        if labels.dtype.itemsize > 4 and (highest := int(labels.max())) > MAX_LABEL:
            raise InputError(f"{where} holds the label {highest}; labels are 0 to {MAX_LABEL}")
    return np.ascontiguousarray(labels, dtype=np.uint32)


def _check_floats(values: NDArray[Any], where: str) -> None:
    """Refuse the first value that is no label, or that its type does not tell from the next."""
    # From this power of two on a float has no place for the last bit, and two ids become one.
    exact = 2 ** (np.finfo(values.dtype).nmant + 1)
    limit = min(exact, MAX_LABEL + 1)
    # NaN compares false with everything, and infinity is above the limit.
    good = (values >= 0) & (values < limit) & (values == np.trunc(values))
    if good.all():
        return
    value = values[~good].flat[0]
    if not np.isfinite(value) or value != np.trunc(value):
        raise InputError(f"{where} holds the value {value}; {_WANTED}")
    number = int(value)
    if number < 0:
        raise InputError(f"{where} holds the negative label {number}; labels are 0 to {MAX_LABEL}")
    if number > MAX_LABEL:
        raise InputError(f"{where} holds the label {number}; labels are 0 to {MAX_LABEL}")
    raise InputError(
        f"{where} holds the label {number} as {values.dtype}, which from {exact} on cannot "
        "tell neighbouring whole numbers apart; write labels as integers"
    )
