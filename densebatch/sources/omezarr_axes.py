"""Dimensions of an OME-Zarr: which are rows, columns and channels, by metadata or as given."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.ngff.metadata import Json, list_axis_letters
from densebatch.sources.axes import Axes, choose_stacks, find_axes, refuse_stacks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.remote.tree import Place
    from densebatch.sources.source import Selection

_MAX_ONES = 12  # dimensions of length 1 of which a user may leave some out
_WORDS = {"T": "time", "Z": "focal planes"}
# Letters of dimensions that a user left out, which have length 1.
_OTHER_AXES = "TZPSABDEFGHIJKLMNOQRUVWC"


def find_omezarr_axes(
    path: Place, image: Json, shape: Sequence[int], selection: Selection
) -> tuple[Axes, str]:
    """Find rows, columns and channels.

    Parameters
    ----------
    path
        Named in the error.
    image
        Its metadata.
    shape
        Of its arrays.
    selection
        `--axes`, a letter for each dimension, those of length one aside, instead of the axes of the
        metadata; and which of several images along z and t is meant.

    Returns
    -------
    Axes
        Of the arrays.
    str
        A letter for each dimension, by which they were found.

    Raises
    ------
    InputError
        If there is more than one image of all channels, with what may be done, or the letters that
        were given are none that the sizes allow.
    """
    given = selection.axes
    if given is not None:
        letters, others = place_letters(path, given, shape), _OTHER_AXES
    else:
        letters, others = list_axis_letters(image, path), "TZ"
    stacks = choose_stacks(path, letters, shape, selection)
    left = [1 if place in stacks else n for place, n in enumerate(shape)]
    refuse_stacks(
        path,
        letters,
        left,
        "C",
        describe=_describe,
        name=lambda _: "channels",
        between=(", ", ": "),
    )
    try:
        axes = find_axes(path, letters, left, "C", others)
    except InputError as error:
        if given is not None:
            raise
        raise InputError(
            f"{error}; if these are not the axes, give a letter for each with --axes, such as CYX"
        ) from error
    return replace(axes, stacks=tuple(stacks.items())), "".join(letters)


def _describe(axis: str) -> str:
    return f"{axis.lower()} ({_WORDS[axis]})" if axis in _WORDS else axis.lower()


def place_letters(path: Place, given: str, shape: Sequence[int]) -> list[str]:
    """A letter for each dimension, from those that a user gave.

    Parameters
    ----------
    path
        Named in the error.
    given
        One letter for each dimension; those of length 1 may be left out.
    shape
        One size for each dimension.

    Returns
    -------
    list
        Upper-case letters. Dimensions that were left out get letters of their own.

    Raises
    ------
    InputError
        If letters are twice there or without Y and X, are too many or too few, or if it cannot be
        told which dimensions were left out.

    Examples
    --------
    >>> from pathlib import Path
    >>> place_letters(Path("a.zarr"), "cyx", (1, 3, 1, 64, 96))
    ['T', 'C', 'Z', 'Y', 'X']
    """
    letters = given.strip().upper()
    sizes = " x ".join(map(str, shape))
    is_list = letters.isascii() and letters.isalpha() and len(set(letters)) == len(letters)
    if not is_list or not {"Y", "X"} <= set(letters):
        raise InputError(
            f"--axes {given} is not accepted for {path}: give each dimension ({sizes}) a letter of "
            "its own, Y for rows, X for columns and C for channels, such as CYX"
        )
    ones = [i for i, size in enumerate(shape) if size == 1]
    n_left_out = len(shape) - len(letters)
    ways: dict[tuple[int, ...], tuple[int, ...]] = {}
    if 0 <= n_left_out <= len(ones) <= _MAX_ONES:
        for left_out in itertools.combinations(ones, n_left_out):
            kept = tuple(i for i in range(len(shape)) if i not in left_out)
            ways.setdefault(tuple(shape[i] for i in kept), kept)
    if len(ways) != 1:
        raise InputError(
            f"--axes {given} has {len(letters)} letters for {path}, which has {len(shape)} "
            f"dimensions ({sizes}); give each a letter, or each that is longer than 1, such as CYX"
        )
    [kept] = ways.values()
    placed = dict(zip(kept, letters, strict=True))
    free = iter(axis for axis in _OTHER_AXES if axis not in letters)
    return [placed.get(i) or next(free) for i in range(len(shape))]
