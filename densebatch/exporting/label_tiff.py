"""A tiled, pyramidal OME-TIFF of the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from densebatch.base.errors import InputError
from densebatch.cells.labels import read_labels
from densebatch.cells.pyramid_spec import LABEL_NAME
from densebatch.cells.verify import read_spec
from densebatch.exporting.source import STAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source
    from densebatch.run.report import Progress

_TILE_PX = 512
_READ_TILES = 4  # a shard is this many tiles wide


def write_label_tiff(source: Source, path: Path, options: Options) -> None:
    """Write the labels with the levels that they have.

    QuPath's reader of TIFF refuses uint32 in tiles; for it there is int32.

    Raises
    ------
    InputError
        If labels cannot be read, or an id does not fit the type.
    """
    dtype = np.dtype(options.label_dtype)
    if source.n_cells > np.iinfo(dtype).max:
        raise InputError(f"{source.n_cells} cells have ids that {dtype} does not hold")
    group = source.root / "labels" / LABEL_NAME
    n_levels = read_spec(source.root, in_place=True).n_levels
    levels = [read_labels(group, level) for level in range(n_levels)]
    wide = _READ_TILES * _TILE_PX
    reads = sum(-(-height // _TILE_PX) * -(-width // wide) for height, width in
                (array.shape for array in levels))  # fmt: skip
    source.progress.stage(STAGE, reads, 0)
    metadata: dict[str, Any] = {"axes": "YX", "Name": LABEL_NAME}
    if source.um_per_px is not None:
        for axis in "XY":
            metadata[f"PhysicalSize{axis}"] = source.um_per_px
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    if source.origin_um is not None:
        y, x = source.origin_um
        metadata["Plane"] = {
            **{"PositionX": [x], "PositionXUnit": ["µm"]},
            **{"PositionY": [y], "PositionYUnit": ["µm"]},
        }
    common: dict[str, Any] = {
        "dtype": dtype,
        "tile": (_TILE_PX, _TILE_PX),
        "compression": "zlib",
        "photometric": "minisblack",
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff:
        for level, array in enumerate(levels):
            tiff.write(
                _iter_tiles(array, dtype, source.progress),
                shape=array.shape,
                subifds=len(levels) - 1 if level == 0 else None,
                subfiletype=0 if level == 0 else 1,
                metadata=metadata if level == 0 else None,
                **common,
            )


def _iter_tiles(
    array: zarr.Array[Any], dtype: np.dtype[Any], progress: Progress
) -> Iterator[NDArray[Any]]:
    """Tiles row by row, the last ones filled up with background."""
    height, width = array.shape
    for y in range(0, height, _TILE_PX):
        for x in range(0, width, _READ_TILES * _TILE_PX):
            try:
                part = np.asarray(array[y : y + _TILE_PX, x : x + _READ_TILES * _TILE_PX])
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"{array.store_path}: labels cannot be read at row {y}, column {x}: {error}"
                ) from error
            for start in range(0, part.shape[1], _TILE_PX):
                tile = np.zeros((_TILE_PX, _TILE_PX), dtype)
                piece = part[:, start : start + _TILE_PX]
                tile[: piece.shape[0], : piece.shape[1]] = piece
                yield tile
            progress.advance(STAGE, part.size)
