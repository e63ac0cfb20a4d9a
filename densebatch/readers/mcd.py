"""MCD files of imaging mass cytometry: readimc finds the acquisitions, and pixels are mapped.

An acquisition is a table of 32-bit floats, a row for each pixel in the order of ablation, with x, y
and z before the channels. Rows of pixels are read from where they lie, and their x and y tell
whether they do.
"""

from __future__ import annotations

import warnings
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

_N_PLACE = 3  # values before the channels: x, y, z
_BAND_BYTES = 2**24
_MAX_SIDE_PX = 2**20


class _Acquisition:
    """One acquisition, with the numbers that the file tells of it."""

    def __init__(self, path: Path, found: Any) -> None:  # noqa: ANN401
        meta = found.metadata
        self.found = found
        self.start, end = int(meta["DataStartOffset"]), int(meta["DataEndOffset"])
        self.width, self.height = int(meta["MaxX"]), int(meta["MaxY"])
        self.n_values = found.num_channels + _N_PLACE
        row = self.n_values * 4
        size = end - self.start
        self.n_px, rest = divmod(size, row)
        if int(meta["ValueBytes"]) != 4:
            raise ValueError(f"values of {meta['ValueBytes']} bytes, and 4 are accepted")
        if not (0 <= self.start <= end <= path.stat().st_size):
            raise ValueError(
                f"acquisition {found.id} should be at bytes {self.start} to {end}, which the file "
                "does not have"
            )
        if not (0 < self.width <= _MAX_SIDE_PX and 0 < self.height <= _MAX_SIDE_PX):
            raise ValueError(f"acquisition {found.id} is {self.height} x {self.width} px")
        if found.num_channels < 1 or rest or self.n_px > self.width * self.height:
            raise ValueError(
                f"acquisition {found.id} of {self.height} x {self.width} px and "
                f"{found.num_channels} channels has {size} bytes"
            )


class McdReader(Reader):
    """An open file.

    Parameters
    ----------
    path
        Of the file.
    panel
        That names the channels, if there is one.
    """

    def __init__(self, path: Path, panel: Path | None) -> None:
        readimc = import_library(path, "readimc", "MCD (imaging mass cytometry)", "imc")
        self.files = [path]
        self._path, self._panel = path, panel
        self._mcd = readimc.MCDFile(path)
        try:
            self._list_acquisitions()
        except BaseException:
            self.close()
            raise

    def _list_acquisitions(self) -> None:
        path = self._path
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of acquisitions that overlap in the file
            self._mcd.open()
        all_found = [a for slide in self._mcd.slides for a in slide.acquisitions]
        is_empty = [a.metadata["DataStartOffset"] == a.metadata["DataEndOffset"] for a in all_found]
        self._acquisitions = [
            _Acquisition(path, a) for a, empty in zip(all_found, is_empty, strict=True) if not empty
        ]
        if not self._acquisitions:
            raise ValueError(f"none of its {len(all_found)} acquisitions has pixels")
        self.scenes = [
            Scene(
                (a.found.description or "").strip(),
                f"acquisition {a.found.id}, "
                + describe_image(a.found.num_channels, a.height, a.width),
            )
            for a in self._acquisitions
        ]

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an acquisition, by its index in `scenes`."""
        of = self._acquisitions[scene]
        chosen = self._choose(scene)
        um_y, um_x = of.found.pixel_size_y_um, of.found.pixel_size_x_um
        lacking = of.width * of.height - of.n_px
        notes = [
            f"the acquisition ended early: {lacking} of {of.width * of.height} px were not ablated "
            "and are 0"
        ]
        rows = max(1, _BAND_BYTES // (of.width * of.n_values * 4))
        return ImageFacts(
            height=of.height,
            width=of.width,
            channels=chosen.names,
            dtypes=("float32",),
            um_y=um_y if um_y and um_y > 0 else None,
            um_x=um_x if um_x and um_x > 0 else None,
            um_from="AblationDistanceBetweenShots of the MCD metadata",
            chunk_px=(min(rows, of.height), of.width),
            chunk_planes=of.n_values,
            levels=((of.height, of.width),),
            compression="none",
            notes=(*chosen.notes, *(notes if lacking else [])),
            membrane=chosen.membrane,
            nuclei=chosen.nuclei,
        )

    def _choose(self, scene: int) -> Any:  # noqa: ANN401
        found = self._acquisitions[scene].found
        if self._panel is not None:
            return choose_by_panel(self._path, self._panel, found.channel_names)
        return choose_all(found.channel_names, found.channel_labels)

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
        del level, z, t
        of = self._acquisitions[scene]
        indices = self._choose(scene).indices
        columns = [_N_PLACE + indices[channel] for channel in channels]
        table = np.memmap(
            self._path, "<f4", mode="r", offset=of.start, shape=(of.n_px, of.n_values)
        )
        out = np.zeros((len(columns), *region.shape), np.float32)
        band = max(1, _BAND_BYTES // (of.width * of.n_values * 4))
        for y0 in range(region.y0, region.y1, band):
            y1 = min(y0 + band, region.y1)
            block = table[y0 * of.width : min(y1 * of.width, of.n_px)]
            pixels = np.arange(len(block))
            is_in_order = np.array_equal(block[:, 0], pixels % of.width) and np.array_equal(
                block[:, 1], y0 + pixels // of.width
            )
            if not is_in_order:
                raise ValueError(
                    f"pixels of rows {y0} to {y1} are not where they should be: their x and y say "
                    "otherwise"
                )
            values = np.zeros(((y1 - y0) * of.width, len(columns)), np.float32)
            values[: len(block)] = block[:, columns]
            rows = values.reshape(y1 - y0, of.width, len(columns))[:, region.x0 : region.x1]
            out[:, y0 - region.y0 : y1 - region.y0] = np.moveaxis(rows, -1, 0)
        return out

    def close(self) -> None:
        """Let go of the file."""
        self._mcd.close()


def open_reader(path: Path, panel: Path | None = None) -> McdReader:
    """Open an MCD file.

    Raises
    ------
    InputError
        If readimc is not there, or the panel does not fit.
    Exception
        Of any kind, where the file is damaged.
    """
    return McdReader(path, panel)
