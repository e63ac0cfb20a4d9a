"""What the readers of slides share: the layout they report and the limits they keep."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.remote.tree import Place

MAX_PLANE_PX = 2**40
MAX_CHUNK_BYTES = 2**30
MAX_CHANNELS = 4096
DTYPES = (
    *("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"),
)


@dataclass(frozen=True)
class Selection:
    """What a user says of a file that it does not tell itself.

    Attributes
    ----------
    scene
        Which image of a file or folder that holds several, by name or index (`base.names`).
    axes
        A letter for each dimension of the pixels, such as "CYX", instead of those of the metadata.
    z
        Which focal plane of several, by index, or "max" for the largest value of all.
    t
        Which point in time of several, by index.
    panel
        Absolute path of a file that names the channels, for a format that is read with one.
    """

    scene: str | None = None
    axes: str | None = None
    z: str | None = None
    t: str | None = None
    panel: str | None = None


@dataclass(frozen=True)
class Layout:
    """What a slide's metadata tells, without a look at its pixels.

    Attributes
    ----------
    kind
        "ome-zarr", "tiff", "png", or one of `readers.formats`.
    height, width
        Pixels of the highest resolution.
    channels
        One name per plane.
    colour
        Planes are the colours of one picture rather than markers.
    dtype
        Of the pixels, in native byte order.
    um_per_px
        Pixel size, or None where the metadata do not tell.
    um_from
        Where the metadata tell it, in words.
    origin_um, origin_from
        Where the first pixel lies along y and x, and where the metadata tell it; None if they do
        not, or say 0 and 0.
    chunk_px
        Rows and columns that are cheapest to read together.
    chunk_planes
        Planes that are decoded with them, whichever is wanted.
    levels
        Height and width of each resolution in the file, the highest first.
    compression
        In words, or None.
    ngff
        Version of OME-Zarr, or None.
    selection
        With which the source's path opens this image again.
    notes
        What a user should know of how the metadata were taken, a sentence each.
    membrane, nuclei
        Channels that a panel calls so, by index.
    """

    kind: str
    height: int
    width: int
    channels: tuple[str, ...]
    colour: bool
    dtype: np.dtype[Any]
    um_per_px: float | None
    chunk_px: tuple[int, int]
    chunk_planes: int = 1
    levels: tuple[tuple[int, int], ...] = ()
    um_from: str | None = None
    origin_um: tuple[float, float] | None = None
    origin_from: str | None = None
    compression: str | None = None
    ngff: str | None = None
    selection: Selection = Selection()
    notes: tuple[str, ...] = ()
    membrane: tuple[int, ...] = ()
    nuclei: tuple[int, ...] = ()


Stamp = tuple[int, int, int]


def is_newer(path: Path, newest_ns: int) -> bool:
    """Whether a file, or the folder that it is missing from, has changed since."""
    for place in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return place.stat().st_ctime_ns > newest_ns
    return True


def stamp_file(path: Path) -> Stamp:
    """Size, modification time in ns and inode: cheap evidence that a file is the same.

    Raises
    ------
    InputError
        If it cannot be looked at.
    """
    try:
        stat = path.stat()
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class Source(ABC):
    """An open slide: its layout and a thread-safe way to read planes of it.

    Parameters
    ----------
    path
        What to open to get this slide again.
    layout
        What the metadata told.
    stamps
        The files that the layout was read from, as they were before it was read.
    """

    def __init__(self, path: Place, layout: Layout, stamps: Mapping[Path, Stamp]) -> None:
        self.path = path
        self.layout = layout
        self.stamps = dict(stamps)
        self._newest_ns: int | None = None
        self.listed: str | None = None  # digest of all chunks there are, where a store tells it

    @abstractmethod
    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""

    def can_read(self, level: int) -> bool:
        """Whether pixels of a level of `layout.levels` can be read."""
        return level == 0

    def read_level(self, level: int, first: int, stop: int, region: Region) -> NDArray[Any]:
        """As `read`, of a level that can be read; 0 is the highest resolution."""
        del level
        return self.read(first, stop, region)

    def content(self) -> list[object]:
        """Plain data that changes when the pixels may have changed."""
        self.newest_ns()  # what tasks compare with is as old as what is known of the pixels
        return [stamp[:2] for stamp in self.stamps.values()]

    def describe(self) -> list[object]:
        """Plain data that a process which opens the slide can compare, cheaply."""
        return self.content()

    def renew(self) -> None:
        """What has changed until now is this slide from now on; for a process that plans again."""
        self._newest_ns = None

    def newest_ns(self) -> int:
        """The latest change of a file that holds pixels, ns, as it was when this was first asked.

        Raises
        ------
        InputError
            If a file cannot be looked at.
        """
        if self._newest_ns is None:
            self._newest_ns = self._find_newest()
        return self._newest_ns

    def _find_newest(self) -> int:
        try:
            return max(path.stat().st_ctime_ns for path in self.stamps)
        except OSError as exc:
            raise InputError(f"{self.path} cannot be read: {exc.strerror}") from exc

    def look_again(self) -> None:
        """Have the list of a store, which is kept, made anew when it is needed next."""
        self.listed = None

    def list_files(self, first: int, stop: int, region: Region) -> Iterable[Path]:
        """Files with the pixels of planes `first..stop` of a region; some may not exist."""
        del first, stop, region
        return self.stamps

    def find_newer(
        self, first: int, stop: int, region: Region, newest_ns: int, listed: str | None
    ) -> object:
        """A file of a region, just read, that has changed since; None without one."""
        files = self.list_files(first, stop, region)
        return next((path for path in files if is_newer(path, newest_ns)), None)

    def is_current(self) -> bool:
        """Whether the files are still those that were opened."""
        try:
            return all(stamp_file(path) == stamp for path, stamp in self.stamps.items())
        except InputError:
            return False


def check_size(path: object, height: int, width: int, channels: int) -> None:
    """Refuse an image without pixels and one that no slide can be, before a chunk is read.

    Parameters
    ----------
    path
        Named in the error.
    height, width
        Pixels of a plane.
    channels
        Number of planes.

    Raises
    ------
    InputError
        With what is declared and what is accepted.
    """
    if min(height, width, channels) < 1:
        raise InputError(
            f"{path} is {height} x {width} px with {channels} channels; "
            "an image has at least one pixel and one channel"
        )
    if height * width > MAX_PLANE_PX:
        raise InputError(
            f"{path} declares {height} x {width} = {height * width} px per channel; "
            f"at most {MAX_PLANE_PX} px are accepted"
        )
    if channels > MAX_CHANNELS:
        raise InputError(
            f"{path} declares {channels} channels; at most {MAX_CHANNELS} are accepted"
        )


def check_dtype(path: object, name: str) -> None:
    """Refuse pixels that are not plain numbers of a width that images have.

    Raises
    ------
    InputError
        If the NumPy name is none of `DTYPES`.
    """
    if name not in DTYPES:
        raise InputError(f"{path} has pixels of type {name}; accepted are {', '.join(DTYPES)}")


def check_chunk(path: object, what: str, shape: Sequence[int], itemsize: int) -> None:
    """Refuse chunks too large to decode in one piece.

    Parameters
    ----------
    path
        Named in the error.
    what
        Name of the chunks in the error, plural.
    shape
        Values of a chunk along each axis.
    itemsize
        Bytes of a value.

    Raises
    ------
    InputError
        If a chunk takes more than `MAX_CHUNK_BYTES`.
    """
    n_bytes = math.prod(shape) * itemsize
    if n_bytes > MAX_CHUNK_BYTES:
        raise InputError(
            f"{path} is stored in {what} of {' x '.join(map(str, shape))} values, {n_bytes} bytes "
            f"each; at most {MAX_CHUNK_BYTES} bytes are accepted: convert it to a TIFF of smaller "
            "tiles or to OME-Zarr"
        )
