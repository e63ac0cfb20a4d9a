"""Open a slide, whatever its format: channels by name, pixel size, and any region of it.

    open_slide("slide.ome.zarr").read(channel=0, region=Region(0, 0, 512, 512))

A reader per format (`formats` chooses it) gives a `Source`: what the metadata tell, and
thread-safe reads. This module keeps the last ones open in each process, and applies the rules that
hold for all: which channel is meant, and that whatever cannot be used is one `InputError` that
names the file, what was found and what is accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import (
    DensebatchError,
    InputError,
    StoreError,
    describe_cause,
)
from densebatch.base.files import refuse_address
from densebatch.base.geometry import Grid, Region
from densebatch.base.log import log_event
from densebatch.base.names import find_name, quote_names, split_names
from densebatch.remote.tree import Place, RemotePath, find_place
from densebatch.slides.formats import open_source
from densebatch.slides.info import SlideInfo
from densebatch.sources.source import Selection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.sources.source import Source

log = logging.getLogger(__name__)

_N_KEPT_OPEN = 8
_SCAN_PX = 2**22


class Slide:
    """A slide that is open for reading; made by `open_slide`.

    May be used by several threads. It is not pickled: a task carries the path and opens it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def source(self) -> Source:
        """The open files; for `watch`, which asks whether they have changed."""
        return self._source

    @property
    def panel_channels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Membrane and nuclear channels by the panel that the slide was opened with, by index."""
        return self._source.layout.membrane, self._source.layout.nuclei

    @cached_property
    def info(self) -> SlideInfo:
        """What is known of the slide.

        The first look at it after `open_slide` stats the chunk files of an OME-Zarr for the
        identity, milliseconds per thousand of them; `read` does not need it.
        """
        layout = self._source.layout
        content = [
            *(layout.kind, layout.height, layout.width, layout.dtype.name, layout.channels),
            self._source.content(),
        ]
        chosen = layout.selection
        content += [chosen.z, chosen.t] if chosen.z or chosen.t else []
        return SlideInfo(
            path=str(self._source.path),
            kind=layout.kind,
            height=layout.height,
            width=layout.width,
            channels=layout.channels,
            dtype=layout.dtype.name,
            um_per_px=layout.um_per_px,
            chunk_px=layout.chunk_px,
            chunk_planes=layout.chunk_planes,
            n_levels=len(layout.levels),
            ngff=layout.ngff,
            scene=chosen.scene,
            axes=chosen.axes,
            z=chosen.z,
            t=chosen.t,
            panel=chosen.panel,
            um_per_px_from=layout.um_from,
            levels=layout.levels,
            compression=layout.compression,
            origin_um=layout.origin_um,
            origin_from=layout.origin_from,
            notes=layout.notes,
            identity=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        )

    def read(self, channel: int, region: Region) -> NDArray[Any]:
        """Read a region of one channel at the highest resolution.

        Parameters
        ----------
        channel
            Index, as `channel_index` and `default_channel` return it.
        region
            Inside the slide.

        Returns
        -------
        ndarray (height, width)
            In the slide's type and native byte order; NaN and infinities as they are stored.
            Chunks that are absent from an OME-Zarr hold its fill value, as Zarr defines.

        Raises
        ------
        InputError
            If pixels cannot be read or decoded.
        StoreError
            If a store does not give them, which says nothing of them.
        ValueError
            If there is no such channel or the region leaves the slide.
        """
        n = len(self._source.layout.channels)
        if not 0 <= channel < n:
            raise ValueError(f"{self._source.path} has channels 0 to {n - 1}, not {channel}")
        plane: NDArray[Any] = self.read_planes(channel, channel + 1, region)[0]
        return plane

    def can_read(self, level: int) -> bool:
        """Whether pixels of a level of `info.levels` can be read; 0 is the highest resolution."""
        return self._source.can_read(level)

    def read_level(self, level: int, channel: int, region: Region) -> NDArray[Any]:
        """Read a region of one channel at a level that can be read; else as `read`.

        Parameters
        ----------
        level
            0 is the highest resolution.
        channel
            Index.
        region
            Inside that level, in its pixels.
        """
        if level == 0:
            return self.read(channel, region)
        try:
            planes = self._source.read_level(level, channel, channel + 1, region)
        except (InputError, StoreError, MemoryError):
            raise
        except Exception as exc:
            raise InputError(
                f"{self._source.path} cannot be read at level {level} ({describe_cause(exc)})"
            ) from exc
        plane: NDArray[Any] = np.ascontiguousarray(planes[0])
        return plane

    def read_planes(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Read a region of the channels `first..stop`, `(stop - first, height, width)`; as `read`.

        Chunks that hold several channels are decoded once.
        """
        source = self._source
        height, width = source.layout.height, source.layout.width
        if region.clip(height, width) != region:
            raise ValueError(f"{region} is not inside {source.path} of {height} x {width} px")
        if region.area == 0:
            return np.empty((stop - first, *region.shape), source.layout.dtype)
        try:
            return np.ascontiguousarray(source.read(first, stop, region))
        except (InputError, StoreError, MemoryError):
            raise
        except Exception as exc:
            channels = source.layout.channels[first:stop]
            raise InputError(
                f"{source.path} cannot be read in rows {region.y0} to {region.y1}, columns "
                f"{region.x0} to {region.x1} of channel {quote_names(channels)} "
                f"({describe_cause(exc)})"
            ) from exc

    def channel_index(self, name: str) -> int:
        """Find a channel by name (exact, then regardless of case), else by index.

        `#2` is the index 2 also where a channel is named "2" (`base.names.find_name`).

        Raises
        ------
        InputError
            If there is no such channel, or several; lists those that there are.
        """
        channels = self._source.layout.channels
        found = find_name(channels, name)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{channels[index]!r} at index {index}" for index in found)
            raise InputError(
                f"{self._source.path} has {len(found)} channels named {name!r} ({listed}); name "
                f"one by its index, such as '#{found[0]}'"
            )
        raise InputError(
            f"{self._source.path} has no channel {name!r}; accepted are {quote_names(channels)}, "
            f"or an index from 0 to {len(channels) - 1}"
        )

    def split_channels(self, text: str) -> tuple[str, ...]:
        """Read names of channels with commas between them; the names may hold commas themselves.

        Parameters
        ----------
        text
            Tried as the name of one channel first.

        Returns
        -------
        tuple of str
            Texts for `channel_index`, which refuses those that are no channel.

        Raises
        ------
        InputError
            If there is more than one way to read it.
        """
        channels = self._source.layout.channels
        ways = split_names(channels, text)
        if len(ways) > 1:
            raise InputError(
                f"{self._source.path}: {text!r} may be the channels {quote_names(ways[0])}, or "
                f"{quote_names(ways[1])}; name them one by one, by repeating the option"
            )
        if ways:
            return ways[0]
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def default_channel(self) -> int:
        """The channel that is meant when none is named.

        The only one; of a colour image the one plane that is not all zero, or any plane where
        all are equal. A constant alpha plane does not count. Reads the colour image once.

        Raises
        ------
        InputError
            If that does not decide it.
        """
        layout = self._source.layout
        if len(layout.channels) == 1:
            return 0
        if not layout.colour:
            raise InputError(
                f"{self._source.path} has {len(layout.channels)} channels and none was named; "
                "name with --membrane, or as `membrane` in a file of settings, one or more of "
                f"{quote_names(layout.channels)}"
            )
        return self._colour_plane

    @cached_property
    def _colour_plane(self) -> int:
        layout = self._source.layout
        n = len(layout.channels)
        alpha = n - 1 if layout.channels[-1] == "alpha" else None
        corner = self.read_planes(0, n, Region(0, 0, 1, 1))[:, 0, 0]
        filled = np.zeros(n, bool)
        equal = True
        grid = Grid(layout.height, layout.width, *_scan_step(layout.chunk_px))
        for index in grid:
            planes = self.read_planes(0, n, grid[index])
            for plane in range(n):
                empty = corner[plane] if plane == alpha else 0
                filled[plane] = filled[plane] or bool((planes[plane] != empty).any())
            nan = layout.dtype.kind == "f"
            compared = range(1, n if alpha is None or filled[alpha] else alpha)
            equal = equal and all(
                np.array_equal(planes[0], planes[plane], equal_nan=nan) for plane in compared
            )
            if not equal and filled.sum() > 1:
                break
        if equal:
            return 0
        if filled.sum() == 1:
            return int(np.flatnonzero(filled)[0])
        raise InputError(
            f"{self._source.path} is a colour image whose planes differ, and none was named; name "
            f"one with --membrane {'|'.join(layout.channels)} or its index, or as `membrane` in a "
            "file of settings"
        )


def _scan_step(chunk_px: tuple[int, int]) -> tuple[int, int]:
    """Whole chunks, as many in both directions as hold a few million pixels."""
    step_y, step_x = chunk_px
    while 2 * step_y * step_x <= _SCAN_PX:
        step_y, step_x = (2 * step_y, step_x) if step_y <= step_x else (step_y, 2 * step_x)
    return step_y, step_x


_open: OrderedDict[tuple[int, Place, Selection], Source] = OrderedDict()
_open_lock = threading.Lock()
_opening = tuple(threading.Lock() for _ in range(64))  # by slide, of which several may share one


def open_slide(
    path: str | os.PathLike[str] | RemotePath,
    scene: str | None = None,
    axes: str | None = None,
    *,
    z: str | None = None,
    t: str | None = None,
    panel: str | os.PathLike[str] | None = None,
) -> Slide:
    """Open an OME-Zarr image, a TIFF, a PNG or a microscope's own file.

    Cheap to call again and again in one process: the last few slides stay open as long as their
    files do not change.

    Parameters
    ----------
    path
        File or folder; of an OME-Zarr also its address (`remote.address`).
    scene
        Which of several images it is that the file or folder holds: a name, or an index.
    axes
        A letter for each dimension of the pixels, such as "CYX", where the metadata call channels
        something else.
    z, t
        Index of a focal plane, or "max" for the largest value of all; index of a point in time.
    panel
        File that names the channels of imaging mass cytometry.

    Returns
    -------
    Slide

    Raises
    ------
    InputError
        If it is missing, of another format, damaged, truncated, or has axes, types or sizes that
        are not accepted.
    UnreachableError
        If a store does not give the documents of an image.
    """
    place = find_slide(path)
    # The process is part of the key, because a forked child must not share file positions with its
    # parent.
    sheet = None if panel is None else str(Path(panel).absolute())
    selection = Selection(scene, axes, z, t, sheet)
    key = os.getpid(), place, selection
    # A store may be asked for minutes, in which other slides are opened by other threads.
    with _opening[hash(key) % len(_opening)]:
        with _open_lock:
            source = _open.pop(key, None)
        if source is None or not source.is_current():
            source = open_source(place, selection)
            layout = source.layout
            log_event(
                log,
                "slide opened",
                path=str(source.path),
                kind=layout.kind,
                height_px=layout.height,
                width_px=layout.width,
                channels=layout.channels,
                um_per_px=layout.um_per_px,
            )
        with _open_lock:
            _open[key] = source
            while len(_open) > _N_KEPT_OPEN:
                _open.popitem(last=False)
    return Slide(source)


def find_slide(path: str | os.PathLike[str] | RemotePath) -> Place:
    """An absolute path, or an address."""
    place = find_place(path)
    if isinstance(place, Path):
        with contextlib.suppress(RuntimeError):  # no user's home, but a name that begins with "~"
            place = place.expanduser()
        refuse_address(place)
    return place.absolute()


def reopen_slide(info: SlideInfo) -> Slide:
    """Open the slide that was described, as `open_slide` does."""
    return open_slide(info.path, info.scene, info.axes, z=info.z, t=info.t, panel=info.panel)


def check_reach(info: SlideInfo) -> None:
    """Refuse a process that does not get at a slide in a store; workers are asked so.

    They have to answer in some seconds, in which a machine without a way out would still try.

    Raises
    ------
    InputError, UnreachableError
        As `open_slide`.
    """
    RemotePath(info.path).check_answer()
    reopen_slide(info)


def check_unchanged(info: SlideInfo) -> None:
    """Make sure that a slide is still the one that was described.

    Raises
    ------
    DensebatchError
        If its files have changed meanwhile.
    InputError
        As `open_slide`.
    """
    slide = reopen_slide(info)
    slide.source.look_again()
    if slide.info.identity != info.identity:
        raise DensebatchError(
            f"{info.path}: has changed since the run began (size or time of its files), so that "
            "its result would be of two slides; bring the slide back and the same command "
            "continues, or begin again with --restart"
        )
