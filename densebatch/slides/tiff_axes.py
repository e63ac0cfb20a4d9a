"""Dimensions of a TIFF: which are rows, columns and channels, by metadata or the user's word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tifffile import TIFF

from densebatch.base.errors import InputError
from densebatch.slides.source import Axes, find_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tifffile import TiffPageSeries

# C is named by a format, S is a sample, and Q and I count pages that no metadata explain.
CHANNEL_AXES = "CSQI"
_OTHER_AXES = "TZRHEPAVMKL"
_WORDS = {"T": "time", "Z": "focal planes", "R": "positions", "C": "channels", "S": "samples"}


def find_tiff_axes(path: Path, series: TiffPageSeries, given: str | None) -> tuple[Axes, str]:
    """Find rows, columns and channels.

    Parameters
    ----------
    path
        Named in the error.
    series
        Its letters and sizes.
    given
        `--axes`: a letter for each dimension, those of length one aside, instead of its letters.

    Returns
    -------
    Axes
        Of the series.
    str
        The letters by which they were found.

    Raises
    ------
    InputError
        If there is more than one image of all channels, with what may be done, or the letters that
        were given are none that the sizes allow.
    """
    shape = tuple(int(n) for n in series.shape)
    if given is not None:
        letters = _place_letters(path, given, str(series.axes), shape)
    else:
        letters = str(series.axes)
    _refuse_stacks(path, letters, shape)
    return find_axes(path, list(letters), shape, CHANNEL_AXES, _OTHER_AXES), letters


def _refuse_stacks(path: Path, letters: str, shape: Sequence[int]) -> None:
    """Say in plain words that there are images along time, focus or the like, and what to do."""
    if len(letters) != len(shape) or len(set(letters)) != len(letters):
        return
    if not {"Y", "X"} <= set(letters):
        return
    sizes = {a: n for a, n in zip(letters, shape, strict=True) if a not in "YX" and n > 1}
    stacks = {axis: n for axis, n in sizes.items() if axis not in CHANNEL_AXES}
    if not stacks:
        return
    listed = " and ".join(f"{n} images along {axis} ({_word(axis)})" for axis, n in stacks.items())
    held = f"{path} holds {listed}"
    if len(sizes) == 1:
        (axis,) = stacks
        wanted = "".join("C" if a == axis else a for a in letters if a == axis or a in "YX")
        raise InputError(
            f"{held}, and one image of all channels is accepted; if these are channels, say so "
            f"with --axes {wanted}, else save the one that is meant to a file of its own"
        )
    kept = {axis: n for axis, n in sizes.items() if axis not in stacks}
    of = "".join(f" of {n} {_word(axis)} each" for axis, n in kept.items())
    raise InputError(
        f"{held}{of} ({letters}, {' x '.join(map(str, shape))}), and one image of all channels is "
        "accepted; save the one that is meant, or its projection, to a file of its own"
    )


def _word(axis: str) -> str:
    return _WORDS.get(axis) or str(TIFF.AXES_NAMES.get(axis, "of no known meaning"))


def _place_letters(path: Path, given: str, letters: str, shape: Sequence[int]) -> str:
    """A letter for each dimension, "" of those of length one that the user left out being kept."""
    wanted = given.upper()
    long = [i for i, n in enumerate(shape) if n > 1]
    sizes = " x ".join(map(str, shape))
    accepted = {*"YX", *CHANNEL_AXES, *_OTHER_AXES}
    if not set(wanted) <= accepted or len(set(wanted)) < len(wanted) or not {"Y", "X"} <= {*wanted}:
        raise InputError(
            f"--axes {given} is not accepted for {path}: give each dimension ({letters}, {sizes}) "
            "a letter of its own, Y for rows, X for columns and C for channels, such as CYX"
        )
    if len(wanted) == len(shape):
        return wanted
    if len(wanted) == len(long):
        placed = dict(zip(long, wanted, strict=True))
        # A dimension of length one needs a letter that is not in use.
        free = iter(axis for axis in _OTHER_AXES + CHANNEL_AXES if axis not in wanted)
        return "".join(placed.get(i) or next(free) for i in range(len(shape)))
    raise InputError(
        f"--axes {given} has {len(wanted)} letters for {path}, which has {len(shape)} dimensions "
        f"({letters}, {sizes}); give each a letter, or each that is longer than 1, such as CYX"
    )
