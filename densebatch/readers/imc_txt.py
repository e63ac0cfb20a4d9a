"""TXT files of imaging mass cytometry: a table with a line for each pixel.

readimc reads the names of its columns, pandas the table, whole, at the first read: there is no way
to find a row of pixels in a text. Opening looks at the first row of pixels and at the last line.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.names import Scene
from densebatch.readers.panel import choose_all, choose_by_panel
from densebatch.readers.reader import ImageFacts, Reader, describe_image, import_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_N_BEFORE = 6  # columns before the channels: three of pushes, x, y, z
_X, _Y = 3, 4
_MAX_LINE_BYTES = 2**20
_MAX_SIDE_PX = 2**20
_COPIES = 3  # of the table while it is read
_N_KEPT = 2
_WHAT = "TXT (imaging mass cytometry)"

_decoded: OrderedDict[tuple[Path, int, int], NDArray[np.float32]] = OrderedDict()
_lock = threading.Lock()


class TxtReader(Reader):
    """An open file.

    Parameters
    ----------
    path
        Of the file.
    panel
        That names the channels, if there is one.
    """

    def __init__(self, path: Path, panel: Path | None) -> None:
        readimc = import_library(path, "readimc", _WHAT, "imc")
        self.files = [path]
        self._path = path
        with path.open("rb") as file:
            if len(file.readline(_MAX_LINE_BYTES)) == _MAX_LINE_BYTES:
                raise ValueError("its first line does not end")
            self._width = _measure_row(file)
            last = _read_last_place(file)
        with closing(readimc.TXTFile(path)) as txt:
            txt.open()  # inside, because it leaves the file open where it cannot read it
            metals, labels = list(txt.channel_names), list(txt.channel_labels)
        if not metals:
            raise ValueError("it has no channels")
        self._height = last[1] + 1
        self._lacking = self._width - 1 - last[0]
        if not (0 <= last[0] < self._width and self._height <= _MAX_SIDE_PX):
            raise ValueError(f"its last pixel is at x {last[0]} and y {last[1]}")
        self._n_channels = len(metals)
        self._chosen = (
            choose_all(metals, labels) if panel is None else choose_by_panel(path, panel, metals)
        )
        self.scenes = [Scene("", describe_image(len(metals), self._height, self._width))]

    def describe(self, scene: int) -> ImageFacts:
        """What is known of the acquisition."""
        del scene
        notes = [
            "files of this kind do not tell the size of a pixel, which mostly is 1 um: give it "
            "with --pixel-size"
        ]
        if self._lacking:
            notes.append(
                f"the acquisition ended early: {self._lacking} px of the last row were not ablated "
                "and are 0"
            )
        return ImageFacts(
            height=self._height,
            width=self._width,
            channels=self._chosen.names,
            dtypes=("float32",),
            chunk_px=(self._height, self._width),
            chunk_planes=_COPIES * (self._n_channels + _N_BEFORE),
            levels=((self._height, self._width),),
            compression="none (text)",
            notes=(*self._chosen.notes, *notes),
            membrane=self._chosen.membrane,
            nuclei=self._chosen.nuclei,
        )

    def read(
        self,
        scene: int,
        channels: Sequence[int],
        region: Region,
        *,
        level: int = 0,
        z: int = 0,
        t: int = 0,
    ) -> NDArray[Any]:
        """Read a region of some channels; 0 where the acquisition ended early."""
        del scene, level, z, t
        columns = [self._chosen.indices[channel] for channel in channels]
        rows, cols = region.slices
        return np.ascontiguousarray(np.moveaxis(self._pixels()[rows, cols][..., columns], -1, 0))

    def close(self) -> None:
        """Nothing is held open."""

    def _pixels(self) -> NDArray[np.float32]:
        """(rows, columns, channels); of at most two files in a process."""
        stat = self._path.stat()
        key = self._path, stat.st_size, stat.st_mtime_ns
        with _lock:
            if key not in _decoded:
                _decoded[key] = self._parse()
            _decoded.move_to_end(key)
            while len(_decoded) > _N_KEPT:
                _decoded.popitem(last=False)
            return _decoded[key]

    def _parse(self) -> NDArray[np.float32]:
        pandas = import_library(self._path, "pandas", _WHAT, "imc")
        table = pandas.read_table(self._path, dtype=np.float32).to_numpy()
        n_px = self._width * self._height - self._lacking
        if table.shape != (n_px, _N_BEFORE + self._n_channels):
            raise ValueError(
                f"it has {len(table)} pixels of {table.shape[1]} columns, and its first row and "
                f"last pixel make {n_px} of {_N_BEFORE + self._n_channels}"
            )
        place = np.arange(n_px)
        if not (
            np.array_equal(table[:, _X], place % self._width)
            and np.array_equal(table[:, _Y], place // self._width)
        ):
            raise ValueError("its pixels do not come row by row: their X and Y say otherwise")
        pixels = np.zeros((self._height * self._width, self._n_channels), np.float32)
        pixels[:n_px] = table[:, _N_BEFORE:]
        return pixels.reshape(self._height, self._width, self._n_channels)


def _place(line: bytes) -> tuple[int, int]:
    fields = line.split(b"\t")
    if len(fields) <= _N_BEFORE:
        raise ValueError(f"a line has {len(fields)} columns")
    x, y = float(fields[_X]), float(fields[_Y])
    if not (x.is_integer() and y.is_integer() and 0 <= x < _MAX_SIDE_PX and 0 <= y < _MAX_SIDE_PX):
        raise ValueError(f"a pixel is at x {x} and y {y}")
    return int(x), int(y)


def _measure_row(file: Any) -> int:  # noqa: ANN401
    """Pixels of the first row: lines until y changes."""
    width = 0
    while line := file.readline(_MAX_LINE_BYTES).strip():
        if _place(line) != (width, 0):
            break
        width += 1
    if not width:
        raise ValueError("its first pixel is not at x 0 and y 0")
    return width


def _read_last_place(file: Any) -> tuple[int, int]:  # noqa: ANN401
    length = file.seek(0, 2)
    file.seek(max(0, length - _MAX_LINE_BYTES))
    return _place(file.read().strip().splitlines()[-1])


def open_reader(path: Path, panel: Path | None = None) -> TxtReader:
    """Open a TXT file.

    Raises
    ------
    InputError
        If readimc is not there, or the panel does not fit.
    Exception
        Of any kind, where the file is damaged.
    """
    return TxtReader(path, panel)
