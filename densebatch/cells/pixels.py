"""Rectangles of an open image file, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError, describe_cause

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

ACCEPTED = "PNG, TIFF, .npy, an OME-Zarr label image, or a plain zarr array"
MAX_LABEL = 2**32 - 1


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

    Raises
    ------
    InputError
        If there are less than two.
    """
    if len(shape) < 2:
        raise InputError(f"{path} has shape {shape}; an image has rows and columns")
    if len(shape) == 3 and shape[2] in (3, 4) and shape[0] > 4:
        return "YXS"
    return "ABCDEFGHIJKLMNOPQ"[: len(shape) - 2] + "YX"


def as_labels(array: object, where: str = "the label image") -> NDArray[np.uint32]:
    """Labels as contiguous uint32, or the reason why these are no labels.

    Parameters
    ----------
    array
        Integers of any type, 0 for background.
    where
        Names the source in the error.

    Raises
    ------
    InputError
        For floats, booleans, negative ids and ids above 2^32-1.

    Examples
    --------
    >>> as_labels(np.array([[0, 7]], dtype=np.int16))
    array([[0, 7]], dtype=uint32)
    """
    labels = np.asarray(array)
    kind = labels.dtype.kind
    if kind not in "iu":
        found = "a yes/no mask (bool)" if kind == "b" else f"values of type {labels.dtype}"
        raise InputError(
            f"{where} holds {found}; a label image has one whole number per cell and 0 for "
            "background"
        )
    if labels.size and labels.dtype.itemsize > (2 if kind == "u" else 0):
        if kind == "i" and (lowest := int(labels.min())) < 0:
            raise InputError(
                f"{where} holds the negative label {lowest}; labels are 0 to {MAX_LABEL}"
            )
        if labels.dtype.itemsize > 4 and (highest := int(labels.max())) > MAX_LABEL:
            raise InputError(f"{where} holds the label {highest}; labels are 0 to {MAX_LABEL}")
    return np.ascontiguousarray(labels, dtype=np.uint32)
