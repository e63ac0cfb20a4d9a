"""What the readers of slides share: the layout they report and the limits they keep."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.remote.tree import Place

MAX_PLANE_PX = 2**40
MAX_CHUNK_BYTES = 2**30
MAX_CHANNELS = 4096
DTYPES = (
    *("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"),
)

_UM_PER_UNIT = {
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("um", "micron", "micrometer"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("in", "inch"), 25400.0),
}


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


@dataclass(frozen=True)
class SlideInfo:
    """What is known of a slide before its pixels are read; plain data.

    Attributes
    ----------
    path
        Absolute, or an address; of an OME-Zarr the image group itself.
    kind
        "ome-zarr", "tiff", "png", or one of `readers.formats`.
    height, width
        Pixels of the highest resolution.
    channels
        Names from the metadata, else "0", "1", and so on; "red", "green", "blue" and perhaps
        "alpha" for a colour image.
    dtype
        NumPy name of the pixels' type.
    um_per_px
        From the metadata; None if they do not tell or pixels are not square.
    chunk_px
        Rows and columns that are cheapest to read together.
    chunk_planes
        Planes that are decoded with them, whichever is wanted.
    n_levels
        Resolutions in the file, the highest included.
    ngff
        "0.4" or "0.5" for OME-Zarr, else None.
    scene, axes
        With which `open_slide` opens the same image of `path` again.
    notes
        What a user should know of how the metadata were taken, a sentence each.
    z, t, panel
        As `scene`.
    um_per_px_from
        Where the metadata tell the pixel size, in words.
    levels
        Height and width of each resolution, the highest first.
    compression
        In words, None if it is not known.
    origin_um, origin_from
        As of `Layout`.
    identity
        Hex digest that changes when the content may have changed: layout, and size and time (in
        stores ETag) of the file or of the highest resolution's chunk files.
    """

    path: str
    kind: str
    height: int
    width: int
    channels: tuple[str, ...]
    dtype: str
    um_per_px: float | None
    chunk_px: tuple[int, int]
    chunk_planes: int
    n_levels: int
    ngff: str | None
    scene: str | None
    axes: str | None
    notes: tuple[str, ...]
    identity: str
    z: str | None = None
    t: str | None = None
    panel: str | None = None
    um_per_px_from: str | None = None
    levels: tuple[tuple[int, int], ...] = ()
    compression: str | None = None
    origin_um: tuple[float, float] | None = None
    origin_from: str | None = None

    def describe(self) -> dict[str, Any]:
        """The slide as `densebatch info` tells it: plain data, of metadata alone."""
        n_bytes = self.height * self.width * len(self.channels) * np.dtype(self.dtype).itemsize
        same = ("path", "dtype", "um_per_px", "um_per_px_from", "chunk_planes", "compression",
                "ngff", "scene", "axes", "z", "t", "panel", "origin_from")  # fmt: skip
        lists = ("channels", "chunk_px", "notes")
        return {
            "format": self.kind,
            "shape": [self.height, self.width],
            "levels": [list(level) for level in self.levels],
            "bytes": n_bytes,
            "origin_um": None if self.origin_um is None else list(self.origin_um),
            **{name: getattr(self, name) for name in same},
            **{name: list(getattr(self, name)) for name in lists},
        }


def decoded_bytes(slide: SlideInfo, rows: int, cols: int) -> int:
    """Of the chunks that a region of a slide reaches into: they are decoded whole."""
    chunk_y, chunk_x = slide.chunk_px
    area = min(slide.height, rows + 2 * chunk_y) * min(slide.width, cols + 2 * chunk_x)
    return area * slide.chunk_planes * np.dtype(slide.dtype).itemsize


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


def to_um(value: object, unit: object) -> float | None:
    """Convert a length to micrometres, None if it is no positive length in a known unit.

    Examples
    --------
    >>> to_um("325", "nm"), to_um(0.5, "µm"), to_um(1, "pixel")
    (0.325, 0.5, None)
    """
    length = place_um(value, unit)
    return length if length is not None and length > 0 else None


def place_um(value: object, unit: object) -> float | None:
    """Convert a coordinate to micrometres, None if it is no number in a known unit."""
    # The micro sign and the Greek letter look the same, and ImageJ writes neither.
    name = str(unit).strip().lower()
    for micro in ("µ", "μ", "\\u00b5"):
        name = name.replace(micro, "u")
    name = name.replace("metre", "meter")
    factor = _UM_PER_UNIT.get(name, _UM_PER_UNIT.get(name.removesuffix("s")))
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number * factor if factor is not None and math.isfinite(number * factor) else None


def place_origin(um_y: float | None, um_x: float | None) -> tuple[float, float] | None:
    """Where an image lies; None if that is not known, or nowhere but at the origin."""
    known = um_y is not None and um_x is not None and (um_y, um_x) != (0, 0)
    return (um_y, um_x) if known else None  # type: ignore[return-value]


def tell_oblong(um_y: float | None, um_x: float | None) -> tuple[str, ...]:
    """A note where both lengths of a pixel are known and `square_pixel` makes nothing of them."""
    if um_y is None or um_x is None or square_pixel(um_y, um_x) is not None:
        return ()
    return (
        f"the metadata give pixels of {um_y:g} x {um_x:g} um, which are not square: the pixel size "
        "counts as unknown, unless --pixel-size gives it",
    )


def square_pixel(um_y: float | None, um_x: float | None) -> float | None:
    """One pixel size for both directions, None if it is unknown or they differ by over 1 %."""
    if um_x is None or um_y is None:
        return None
    return um_x if abs(um_y - um_x) <= 0.01 * um_x else None
