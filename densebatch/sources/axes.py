"""Dimensions of an array of pixels: rows, columns, channels, and which image along the others.

Several images along time, focus or the like are refused, in words that say what to do, unless the
user chose one of them (`--z`, `--t`) or their maximum (`--z max`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError, StackError, StoreError
from densebatch.base.names import clean_name
from densebatch.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.remote.tree import Place
    from densebatch.sources.source import Layout, Selection, Stamp

LARGEST = "max"
_STACKS = {"Z": "focal planes", "T": "points in time"}
_MAX_DIGITS = 9


@dataclass(frozen=True)
class Axes:
    """Where rows, columns and channels are among the dimensions of an array.

    Attributes
    ----------
    y, x, channel
        Their dimensions; `channel` None if there is none.
    ndim
        Dimensions of the array.
    stacks
        Indices along other dimensions, by dimension; 0 along those that are not listed. Where there
        are several, the largest value of all is taken.
    """

    y: int
    x: int
    channel: int | None
    ndim: int
    stacks: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def list_places(self) -> list[dict[int, int]]:
        """Indices along the other dimensions of all images that one is made of."""
        ranges = [indices for _, indices in self.stacks]
        axes = [axis for axis, _ in self.stacks]
        return [dict(zip(axes, place, strict=True)) for place in itertools.product(*ranges)]

    def pick(self, array: zarr.Array[Any], first: int, stop: int, region: Region) -> NDArray[Any]:
        """Read planes of a region.

        Parameters
        ----------
        array
            Of `ndim` dimensions.
        first, stop
            Channels, half-open.
        region
            Inside the slide.

        Returns
        -------
        ndarray
            `(stop - first, height, width)`.
        """
        return largest_of(
            self._pick(array, place, first, stop, region) for place in self.list_places()
        )

    def _pick(
        self,
        array: zarr.Array[Any],
        place: Mapping[int, int],
        first: int,
        stop: int,
        region: Region,
    ) -> NDArray[Any]:
        index: list[int | slice] = [place.get(axis, 0) for axis in range(self.ndim)]
        index[self.y], index[self.x] = region.slices
        if self.channel is not None:
            index[self.channel] = slice(first, stop)
        block = np.asarray(array[tuple(index)])
        wanted = [axis for axis in (self.channel, self.y, self.x) if axis is not None]
        kept = sorted(wanted)
        block = block.transpose([kept.index(axis) for axis in wanted])
        return block if self.channel is not None else block[np.newaxis]


def largest_of(images: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """The largest value of each pixel of one or more images, of which few are held at once.

    NaN counts only where there is nothing else.
    """
    largest: NDArray[Any] | None = None
    for image in images:
        largest = image if largest is None else np.fmax(largest, image)
    assert largest is not None
    return largest


class ArraySource(Source):
    """An open slide whose pixels are a Zarr array, in chunks that are decoded on demand.

    Parameters
    ----------
    path, layout, stamps
        As of `Source`.
    array
        All planes of the highest resolution.
    axes
        Of the array.
    """

    def __init__(
        self,
        path: Place,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        array: zarr.Array[Any],
        axes: Axes,
    ) -> None:
        super().__init__(path, layout, stamps)
        self._array, self._axes = array, axes
        self._levels = {0: array}

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        return self.read_level(0, first, stop, region)

    def read_level(self, level: int, first: int, stop: int, region: Region) -> NDArray[Any]:
        """As `read`, of a level that can be read; 0 is the highest resolution."""
        block = self._axes.pick(self._levels[level], first, stop, region)
        return block.astype(self.layout.dtype, copy=False)

    def can_read(self, level: int) -> bool:
        """Whether a level is there, of the size that the metadata say, and can be opened."""
        if level in self._levels:
            return True
        try:
            array = self._open_level(level)
        except StoreError:
            raise
        except Exception:  # damaged metadata may raise anything, and nobody needs the level
            return False
        axes, top = self._axes, self._array
        sizes = list(top.shape)
        sizes[axes.y], sizes[axes.x] = self.layout.levels[level]
        if array.shape != tuple(sizes) or array.dtype != top.dtype:
            return False
        self._levels[level] = array
        return True

    def _open_level(self, level: int) -> zarr.Array[Any]:
        """Open a level below the highest resolution.

        Raises
        ------
        InputError
            If its pixels cannot be read.
        """
        raise InputError(f"{self.path}: level {level} cannot be read")


def find_axes(
    path: Place, names: Sequence[str], shape: Sequence[int], channel_names: str, other_names: str
) -> Axes:
    """Find rows, columns and channels, or say what was found and what is accepted.

    Parameters
    ----------
    path
        Named in the error.
    names, shape
        One upper-case letter and one size per dimension.
    channel_names
        Letters that may count channels; one of them may be longer than 1.
    other_names
        Letters that may stand there with size 1.

    Raises
    ------
    InputError
        If Y or X is missing or twice there, or another axis has more than one entry.
    """
    found = "".join(names)
    channels = [i for i, name in enumerate(names) if name in set(channel_names)]
    long_channels = [i for i in channels if shape[i] > 1]
    others = [i for i in range(len(names)) if names[i] not in {*channel_names, "Y", "X"}]
    if (
        len(names) != len(shape)
        or len(set(names)) != len(names)
        or not {"Y", "X"} <= set(names)
        or len(long_channels) > 1
        or any(shape[i] > 1 or names[i] not in set(other_names) for i in others)
    ):
        raise InputError(
            f"{path} has axes {found or 'without names'} of sizes "
            f"{' x '.join(map(str, shape))}; accepted are Y and X, at most one axis of channels "
            f"({', '.join(channel_names)}), and {', '.join(other_names)} of size 1"
        )
    channel = next(iter(long_channels or channels), None)
    return Axes(names.index("Y"), names.index("X"), channel, len(names))


def choose_plane(path: Place, axis: str, n: int, wanted: str | None) -> tuple[int, ...] | None:
    """Which of several focal planes or points in time are meant.

    Parameters
    ----------
    path
        Named in the error.
    axis
        "Z" or "T".
    n
        How many there are.
    wanted
        `--z` or `--t`: an index, or "max" for Z; None if the user did not choose.

    Returns
    -------
    tuple of int or None
        Indices, all of them for "max"; None if there are several and none was chosen.

    Raises
    ------
    InputError
        If there is no such plane.
    """
    if wanted is None:
        return (0,) if n == 1 else None
    text = wanted.strip().lower()
    if text == LARGEST and axis == "Z":
        return tuple(range(n))
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) < n:
        return (int(text),)
    accepted = "an index of 0" if n == 1 else f"an index from 0 to {n - 1}"
    raise InputError(
        f"{path} has {n} {_STACKS[axis] if n > 1 else _STACKS[axis].replace('s ', ' ').rstrip('s')}"
        f"; --{axis.lower()} {wanted} is not accepted, but {accepted}"
        f"{' or max' if axis == 'Z' else ''}"
    )


def say_how_to_choose(axis: str, n: int) -> str:
    """What a user may do about several focal planes or points in time."""
    text = f"choose one with --{axis.lower()} INDEX, from 0 to {n - 1}"
    return f"{text}, or the largest value of all with --z max" if axis == "Z" else text


def tell_plane(indices: tuple[int, ...], n: int) -> str | None:
    """One way to say what was chosen, whichever way it was said; None where there is no choice."""
    if n == 1:
        return None
    return LARGEST if len(indices) == n else str(indices[0])


def choose_stacks(
    path: Place, letters: Sequence[str], shape: Sequence[int], selection: Selection
) -> dict[int, tuple[int, ...]]:
    """Indices that were chosen along dimensions of focus and time, by dimension.

    Raises
    ------
    InputError
        As `choose_plane`.
    """
    stacks = {}
    for axis, wanted in (("Z", selection.z), ("T", selection.t)):
        places = [k for k, letter in enumerate(letters) if letter == axis]
        place = places[0] if len(places) == 1 and len(letters) == len(shape) else None
        chosen = choose_plane(path, axis, 1 if place is None else int(shape[place]), wanted)
        if place is not None and chosen is not None:
            stacks[place] = chosen
    return stacks


def tell_stacks(
    axes: Axes, letters: Sequence[str], shape: Sequence[int]
) -> tuple[str | None, str | None]:
    """What `--z` and `--t` are to be for what was chosen; None where there is no choice."""
    told: dict[str, str | None] = {
        letters[place]: tell_plane(indices, int(shape[place])) for place, indices in axes.stacks
    }
    return told.get("Z"), told.get("T")


def refuse_stacks(
    path: Place,
    letters: Sequence[str],
    shape: Sequence[int],
    channel_axes: str,
    *,
    describe: Callable[[str], str],
    name: Callable[[str], str],
    between: tuple[str, str],
) -> None:
    """Refuse an image of which there are several along an axis that counts no channels.

    Letters without Y and X, twice there, or of another number than sizes are not looked at.

    Parameters
    ----------
    path
        Named in the error.
    letters, shape
        One upper-case letter and one size per dimension.
    channel_axes
        Letters that count channels.
    describe
        What an axis is called, with a word for what it counts.
    name
        The word alone, of what an axis of channels counts.
    between
        How letters are joined in the error, and what stands between them and the sizes.

    Raises
    ------
    InputError
        With `--axes` as it would have to be given if these are channels; a `StackError`, with
        `--z` and `--t`, if they choose.
    """
    if len(letters) != len(shape) or len(set(letters)) != len(letters):
        return
    if not {"Y", "X"} <= set(letters):
        return
    sizes = {a: n for a, n in zip(letters, shape, strict=True) if a not in "YX" and n > 1}
    stacks = {axis: n for axis, n in sizes.items() if axis not in channel_axes}
    if not stacks:
        return
    listed = " and ".join(f"{n} images along {describe(axis)}" for axis, n in stacks.items())
    held = f"{path} holds {listed}"
    told = {axis.lower(): n for axis, n in stacks.items()}
    ways = [say_how_to_choose(axis, n) for axis, n in stacks.items() if axis in _STACKS]
    choice = " and ".join(ways) if len(ways) == len(stacks) else ""
    if len(sizes) == 1:
        (axis,) = stacks
        wanted = "".join("C" if a == axis else a for a in letters if a in (axis, "Y", "X"))
        remedy = (
            f"{choice}; if these are channels, say so with --axes {wanted}"
            if choice
            else f"if these are channels, say so with --axes {wanted}, else save the one that is "
            "meant to a file of its own"
        )
        text = f"{held}, and one image of all channels is accepted; {remedy}"
        raise StackError(text, told) if choice else InputError(text)
    kept = {axis: n for axis, n in sizes.items() if axis not in stacks}
    of = "".join(f" of {n} {name(axis)} each" for axis, n in kept.items())
    joint, gap = between
    remedy = choice or "save the one that is meant, or its projection, to a file of its own"
    text = (
        f"{held}{of} ({joint.join(letters)}{gap}{' x '.join(map(str, shape))}), and one image of "
        f"all channels is accepted; {remedy}"
    )
    raise StackError(text, told) if choice else InputError(text)


def name_channels(found: Sequence[str | None], n: int) -> tuple[str, ...]:
    """Names from metadata where there is one per channel, else the channels' numbers.

    Examples
    --------
    >>> name_channels(["CD3 ", None], 2), name_channels(["CD3"], 2)
    (('CD3', '1'), ('0', '1'))
    """
    names = found if len(found) == n else [None] * n
    return tuple(clean_name(name or "") or str(i) for i, name in enumerate(names))


def name_colours(n: int, *, alpha: bool) -> tuple[str, ...]:
    """Names of the planes of a colour or grey picture of `n` planes, the last perhaps opacity."""
    colours = ("red", "green", "blue") if n - alpha >= 3 else ()
    names = [*colours, *(str(i) for i in range(len(colours), n))]
    if alpha:
        names[-1] = "alpha"
    return tuple(names)
