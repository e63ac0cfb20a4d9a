"""Outlines from ImageJ's regions of interest: a `.roi` file, or a `.zip` of the ROI manager."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from roifile import ROI_TYPE, ImagejRoi

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.names import clean_name
from densebatch.regions.geojson import check_points
from densebatch.regions.runs import Outline

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CORNERS = 720  # of a polygon that stands for an oval, which then is right to 1/50000 of its size
_DRAWN = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)


def read_rois(path: Path) -> tuple[list[Outline], int]:
    """Outlines of a file, and how many of its regions have no area, as points and lines.

    Parameters
    ----------
    path
        As ImageJ writes it; coordinates are pixels of the slide at full resolution.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    outlines, n_bare = [], 0
    try:
        found = ImagejRoi.fromfile(path)
        for roi in found if isinstance(found, list) else [found]:
            rings = tuple(check_points(ring, f"{path}: {roi.name!r}") for ring in _list_rings(roi))
            if rings:
                outlines.append(Outline(clean_name(roi.name or ""), rings))
            n_bare += not rings
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes roifile raise
        raise InputError(
            f"{path}: cannot be read as regions of ImageJ ({describe_cause(error)}); accepted are "
            ".roi and .zip files of its ROI manager"
        ) from error
    return outlines, n_bare


def _list_rings(roi: ImagejRoi) -> list[NDArray[np.float64]]:
    """Rings of a region, x and y; none of what has no area."""
    if roi.multi_coordinates is not None:
        return [np.asarray(ring, np.float64) for ring in roi.coordinates(multi=True)]
    if roi.roitype in _DRAWN:
        return [np.asarray(roi.coordinates(), np.float64)]
    if roi.roitype not in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        return []
    x0, y0, x1, y1 = (float(n) for n in (roi.left, roi.top, roi.right, roi.bottom))
    if roi.roitype == ROI_TYPE.RECT:
        return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    middle, radius = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
    return [middle + radius * np.column_stack([np.cos(angles), np.sin(angles)])]
