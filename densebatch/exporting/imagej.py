"""A zip file of ImageJ's regions of interest, for its ROI manager."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import shapely
from roifile import ROI_TYPE, ImagejRoi

from densebatch.exporting.outlines import iter_outlines

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0


def write_rois(source: Source, path: Path, options: Options) -> None:
    """Write a region for each piece of a cell, named by its id: 17, or 17-1 and 17-2.

    A piece with holes is a composite region, because polygons of ImageJ have none.
    """
    epoch = (1980, 1, 1, 0, 0, 0)  # so that the same cells give the same bytes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for batch, cells, _ in iter_outlines(source, options.simplify_px):
            for cell, outline in zip(batch["id"].to_pylist(), cells, strict=True):
                pieces = shapely.get_parts(outline)
                for number, piece in enumerate(pieces, start=1):
                    name = str(cell) if len(pieces) == 1 else f"{cell}-{number}"
                    entry = zipfile.ZipInfo(f"{name}.roi", epoch)
                    packed.writestr(entry, make_roi(piece, name).tobytes(), zipfile.ZIP_DEFLATED)


def make_roi(polygon: shapely.Polygon, name: str) -> ImagejRoi:
    """A polygon as a region of ImageJ, in pixels with fractions."""
    rings = [shapely.get_coordinates(ring)[:-1] for ring in (polygon.exterior, *polygon.interiors)]
    # Floats, because ImageJ has 16 bits for whole numbers.
    roi = ImagejRoi.frompoints(rings[0].astype(np.float32), name=name)
    if len(rings) == 1:
        roi.roitype = ROI_TYPE.POLYGON
        return roi
    composite = ImagejRoi()
    composite.roitype = ROI_TYPE.RECT
    composite.name, composite.version = name, roi.version
    composite.top, composite.left = roi.top, roi.left
    composite.bottom, composite.right = roi.bottom, roi.right
    composite.multi_coordinates = np.concatenate([_make_path(ring) for ring in rings])
    composite.shape_roi_size = composite.multi_coordinates.size
    return composite


def _make_path(ring: NDArray[np.float64]) -> NDArray[np.float32]:
    """A closed ring as Java's path iterator tells it, which ImageJ stores."""
    steps = np.column_stack([np.full(len(ring), _LINE), ring])
    steps[0, 0] = _MOVE
    return np.append(steps.ravel(), _CLOSE).astype(np.float32)
