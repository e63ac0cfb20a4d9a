"""Dimensions of a TIFF: which are rows, columns and channels, by metadata or the user's word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tifffile import TIFF

from densebatch.base.errors import InputError
from densebatch.sources.axes import Axes, choose_stacks, find_axes, refuse_stacks

if TYPE_CHECKING:
    from pathlib import Path

    from tifffile import TiffPageSeries

    from densebatch.sources.source import Selection

# C is named by a format, S is a sample, and Q and I count pages that no metadata explain.
CHANNEL_AXES = "CSQI"
_OTHER_AXES = "TZRHEPAVMKL"
# No slide is so narrow.
_MAX_NARROW_PX = 16
_WORDS = {"T": "time", "Z": "focal planes", "R": "positions", "C": "channels", "S": "samples"}


def find_tiff_axes(path: Path, series: TiffPageSeries, selection: Selection) -> tuple[Axes, str]:
    """Find rows, columns and channels.

    Parameters
    ----------
    path
        Named in the error.
    series
        Its letters and sizes.
    selection
        `--axes`, a letter for each dimension, those of length one aside, instead of its letters;
        and which of several images along Z and T is meant.

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
    shape = [int(n) for n in series.shape]
    given = selection.axes
    letters = str(series.axes) if given is None else _place_letters(path, given, series)
    stacks = choose_stacks(path, letters, shape, selection)
    for place in stacks:
        shape[place] = 1
    refuse_stacks(
        path,
        letters,
        shape,
        CHANNEL_AXES,
        describe=lambda axis: f"{axis} ({_word(axis)})",
        name=_word,
        between=("", ", "),
    )
    axes = find_axes(path, list(letters), shape, CHANNEL_AXES, _OTHER_AXES)
    return replace(axes, stacks=tuple(stacks.items())), letters


def tell_odd_shape(series: TiffPageSeries, axes: Axes, letters: str) -> list[str]:
    """Say so if channels and columns of an array without names seem to have changed places."""
    if axes.channel is None or "Q" not in letters or series.ndim != 3:
        return []
    n, height, width = (int(series.shape[i]) for i in (axes.channel, axes.y, axes.x))
    if width > _MAX_NARROW_PX or min(n, height) <= _MAX_NARROW_PX:
        return []
    return [
        f"the file's dimensions {n} x {height} x {width} are taken for {n} channels of {height} x "
        f"{width} px; if the last are channels, say so with --axes YXC"
    ]


def _word(axis: str) -> str:
    return _WORDS.get(axis) or str(TIFF.AXES_NAMES.get(axis, "of no known meaning"))


def _place_letters(path: Path, given: str, series: TiffPageSeries) -> str:
    """A letter for each dimension of a series, of which the user may leave out those of length 1.

    Raises
    ------
    InputError
        If there are too many or too few, or rows and columns are others than those of the pages.
    """
    wanted = given.upper()
    letters, shape = str(series.axes), tuple(map(int, series.shape))
    found = f"{letters}, {' x '.join(map(str, shape))}"
    accepted = {*"YX", *CHANNEL_AXES, *_OTHER_AXES}
    if not set(wanted) <= accepted or len(set(wanted)) < len(wanted) or not {"Y", "X"} <= {*wanted}:
        raise InputError(
            f"--axes {given!r} is not accepted for {path}: give each dimension ({found}) a letter "
            "of its own, Y for rows, X for columns and C for channels, such as CYX"
        )
    placed = _spread(wanted, series)
    if placed is None:
        raise InputError(
            f"--axes {given} has {len(wanted)} letters for {path}, which has {len(shape)} "
            f"dimensions ({found}); give each a letter, or each that is longer than 1, such as "
            f"{'CYX' if len(shape) > 2 else 'YX'}"
        )
    # A page has rows and columns; only an array of no named dimensions may have been cut into
    # pages along others.
    is_array = series.kind == "shaped" and "Q" in letters
    if not is_array and (placed.index("Y"), placed.index("X")) != (
        letters.index("Y"),
        letters.index("X"),
    ):
        raise InputError(
            f"--axes {given} contradicts {path}: rows (Y) and columns (X) of its pages are where "
            f"they are ({found}), and only its other dimensions may be called otherwise"
        )
    return placed


def _spread(wanted: str, series: TiffPageSeries) -> str | None:
    """Letters of the dimensions that a series shows; None if there are too many or too few."""
    shape = tuple(series.shape)
    if len(wanted) == len(shape):
        return wanted
    long = [i for i, n in enumerate(shape) if n > 1]
    if len(wanted) == len(long):
        placed = dict(zip(long, wanted, strict=True))
        # A dimension of length one needs a letter that is not in use.
        free = iter(axis for axis in _OTHER_AXES + CHANNEL_AXES if axis not in wanted)
        return "".join(placed.get(i) or next(free) for i in range(len(shape)))
    # tifffile shows no dimensions of length one, which the metadata of the file may have.
    whole = list(zip(series.get_axes(squeeze=False), series.get_shape(squeeze=False), strict=True))
    if whole[-1] == ("S", 1):
        whole.pop()
    shown = [n > 1 or axis in "YX" for axis, n in whole]
    if len(wanted) != len(whole) or sum(shown) != len(shape):
        return None
    return "".join(axis for axis, is_shown in zip(wanted, shown, strict=True) if is_shown)
