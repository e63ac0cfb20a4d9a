"""Which reader opens a file; and slides of what a library reads for us (`readers`).

The readers of OME-Zarr, TIFF and PNG are modules of this package. All others stand in `readers`,
know no slides and apply no rules; `ReaderSource` makes a slide of them.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError, SceneError, StackError, describe_cause
from densebatch.base.names import choose_scene
from densebatch.readers.formats import FORMATS, find_format
from densebatch.remote.tree import RemotePath
from densebatch.sources.axes import (
    choose_plane,
    largest_of,
    name_channels,
    say_how_to_choose,
    tell_plane,
)
from densebatch.sources.lengths import square_pixel, tell_oblong
from densebatch.sources.source import (
    Layout,
    Selection,
    Source,
    Stamp,
    check_chunk,
    check_dtype,
    check_size,
    stamp_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.readers.formats import Format
    from densebatch.readers.reader import ImageFacts, Reader
    from densebatch.remote.tree import Place

_START_BYTES = 64
_PNG = (b"\x89PNG\r\n\x1a\n",)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_source(path: Place, selection: Selection) -> Source:
    """Open a file, folder or address with the reader of its format.

    Parameters
    ----------
    path
        Absolute.
    selection
        What the user says of it.

    Raises
    ------
    InputError
        If it is missing, of another format, or cannot be used.
    """
    # Readers are imported here, because each brings in the libraries of its format, which a worker
    # need not load for others.
    if isinstance(path, RemotePath) or path.is_dir():
        from densebatch.sources.omezarr import open_omezarr

        _refuse_panel(path, selection, "an OME-Zarr")
        return open_omezarr(path, selection)
    start = _read_start(path)
    if (format_ := find_format(path, start)) is not None:
        if not format_.has_panel:
            _refuse_panel(path, selection, f"a {format_.name}")
        return _open_with_reader(path, selection, format_)
    if start.startswith(_PNG):
        from densebatch.sources.png import open_png

        _refuse_panel(path, selection, "a PNG")
        return open_png(path, selection)
    if start.startswith(_TIFF):
        from densebatch.sources.tiff import open_tiff

        _refuse_panel(path, selection, "a TIFF")
        return open_tiff(path, selection)
    found = f"begins with the bytes {start[:8].hex(' ')}" if start else "is empty"
    raise InputError(f"{path} {found}, neither TIFF nor PNG; accepted are {_list_accepted()}")


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; accepted are {_list_accepted()}") from None
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc


def _list_accepted() -> str:
    others = ", ".join(format_.suffix for format_ in FORMATS)
    return f"OME-Zarr folders, TIFF and PNG files, and {others}"


def _refuse_panel(path: Place, selection: Selection, what: str) -> None:
    if selection.panel is not None:
        raise InputError(
            f"{path} is {what} file, and --panel is accepted with those of imaging mass cytometry "
            "(.mcd, .txt)"
        )


class ReaderSource(Source):
    """An open slide whose pixels come from a reader, one read at a time.

    Parameters
    ----------
    path, layout, stamps
        As of `Source`.
    part
        Plain data that tell one image of the file from another.
    reader
        The open file, closed when nobody holds the source any more.
    scene
        Of the reader.
    places
        Focal plane and point in time of each image whose largest values are wanted.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        part: Sequence[object],
        reader: Reader,
        scene: int,
        places: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(path, layout, stamps)
        self._part, self._reader, self._scene = list(part), reader, scene
        self._places = tuple(places)
        self._lock = threading.Lock()
        weakref.finalize(self, reader.close)

    def content(self) -> list[object]:
        """Plain data that changes when the pixels may have changed."""
        return [*super().content(), *self._part]

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        wanted = range(first, stop)
        with self._lock:
            planes = largest_of(
                self._reader.read(self._scene, wanted, region, z=z, t=t) for z, t in self._places
            )
        if planes.shape != (len(wanted), *region.shape):
            raise ValueError(
                f"{' x '.join(map(str, planes.shape))} values came, and "
                f"{len(wanted)} x {region.height} x {region.width} were asked for"
            )
        return planes.astype(self.layout.dtype, copy=False)


def _open_with_reader(path: Path, selection: Selection, format_: Format) -> ReaderSource:
    if selection.axes is not None:
        raise InputError(
            f"{path} is a {format_.name} file, whose dimensions have names; --axes "
            f"{selection.axes} is not accepted"
        )
    panel = None if selection.panel is None else Path(selection.panel)
    stamps = {path: stamp_file(path)}
    if panel is not None:
        stamps[panel] = stamp_file(panel)
    reader = None
    try:
        reader = format_.open(path, panel)
        stamps |= {file: stamp_file(file) for file in reader.files if file not in stamps}
        source = _make_source(path, selection, format_, reader, stamps)
    except (InputError, MemoryError):
        if reader is not None:
            reader.close()
        raise
    # A damaged file makes libraries fail in any way.
    except Exception as exc:
        if reader is not None:
            reader.close()
        raise InputError(
            f"{path} cannot be read as {format_.name} ({describe_cause(exc)})"
        ) from exc
    return source


def _make_source(
    path: Path,
    selection: Selection,
    format_: Format,
    reader: Reader,
    stamps: Mapping[Path, Stamp],
) -> ReaderSource:
    scene = choose_scene(path, reader.scenes, selection.scene)
    facts = reader.describe(scene)
    if len(facts.dtypes) != 1:
        raise InputError(
            f"{path} has channels of different types ({', '.join(facts.dtypes)}); accepted are "
            "images whose channels are of one"
        )
    (dtype,) = facts.dtypes
    check_dtype(path, dtype)
    n = len(facts.channels)
    check_size(path, facts.height, facts.width, n)
    check_chunk(path, "pieces", (facts.chunk_planes, *facts.chunk_px), np.dtype(dtype).itemsize)
    z, t = _choose_planes(path, selection, facts)
    several = len(reader.scenes) > 1
    layout = Layout(
        kind=format_.kind,
        height=facts.height,
        width=facts.width,
        channels=name_channels(facts.channels, n),
        colour=facts.colour,
        dtype=np.dtype(dtype).newbyteorder("="),
        um_per_px=square_pixel(facts.um_y, facts.um_x),
        um_from=facts.um_from if square_pixel(facts.um_y, facts.um_x) else None,
        chunk_px=facts.chunk_px,
        chunk_planes=facts.chunk_planes,
        levels=facts.levels,
        compression=facts.compression,
        selection=Selection(
            scene=f"#{scene}" if several else None,
            z=tell_plane(z, facts.n_z),
            t=tell_plane(t, facts.n_t),
            panel=selection.panel,
        ),
        notes=(
            *_tell_untried(format_), *tell_oblong(facts.um_y, facts.um_x), *facts.notes,
        ),
        membrane=facts.membrane,
        nuclei=facts.nuclei,
    )  # fmt: skip
    places = [(plane, time) for time in t for plane in z]
    return ReaderSource(path, layout, stamps, [scene] if several else [], reader, scene, places)


def _choose_planes(
    path: Path, selection: Selection, facts: ImageFacts
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Focal planes and points in time that are meant."""
    z = choose_plane(path, "Z", facts.n_z, selection.z)
    t = choose_plane(path, "T", facts.n_t, selection.t)
    lacking = [("Z", facts.n_z, "focal planes")] if z is None else []
    lacking += [("T", facts.n_t, "points in time")] if t is None else []
    if z is None or t is None:
        held = " and ".join(f"{n} images along {axis} ({word})" for axis, n, word in lacking)
        ways = " and ".join(say_how_to_choose(axis, n) for axis, n, _ in lacking)
        raise StackError(
            f"{path} holds {held}, and one image of all channels is accepted; {ways}",
            {axis.lower(): n for axis, n, _ in lacking},
        )
    return z, t


def _tell_untried(format_: Format) -> tuple[str, ...]:
    if format_.tried:
        return ()
    return (
        f"the reader of {format_.name} files is untried: there was no file to test it on, so look "
        "at the names, the pixel size and the labels of a small slide first",
    )


def find_kind(path: Place) -> str | None:
    """What the format of a file or folder is called in plans; None if it is of none."""
    if isinstance(path, RemotePath) or path.is_dir():
        return "ome-zarr"
    start = _read_start(path)
    format_ = find_format(path, start)
    if format_ is not None:
        return format_.kind
    kinds = {"png": _PNG, "tiff": _TIFF}
    return next((kind for kind, begins in kinds.items() if start.startswith(begins)), None)


def list_scenes(path: Place, selection: Selection) -> list[tuple[str, str]]:
    """Name and description of each image that a file or folder holds.

    Parameters
    ----------
    path
        Absolute.
    selection
        Of which the scene does not count.

    Returns
    -------
    list
        One without a description if there is but one.

    Raises
    ------
    InputError
        If the file cannot be opened at all.
    """
    try:
        open_source(
            path, Selection(None, selection.axes, selection.z, selection.t, selection.panel)
        )
    except SceneError as error:
        return list(error.scenes)
    except StackError:
        pass  # asked of the only image
    return [("", "the only one")]
