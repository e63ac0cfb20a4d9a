"""Shape of cells, as scikit-image defines it, for targets that want what a table does not have.

A table that has these columns, by the names below, is not measured again; when every table does,
this module can go.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from skimage.measure import regionprops

from densebatch.exporting.outlines import iter_windows, read_boxes

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from densebatch.cells.read import LabelImage

SHAPES = {
    "major_axis_px": "axis_major_length",
    "minor_axis_px": "axis_minor_length",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
    "extent": "extent",
    "orientation": "orientation",
}
"""Columns of the table, and what scikit-image calls them."""


def measure_shape(image: LabelImage, batch: pa.RecordBatch) -> dict[str, NDArray[np.float64]]:
    """Measure the cells of some rows of the table.

    Parameters
    ----------
    image
        The label image.
    batch
        Rows with id and box.

    Returns
    -------
    dict
        Of `SHAPES`, `(rows,)` each: lengths in px, the orientation in radians between the rows'
        direction (y) and the major axis. NaN for a label without a pixel.
    """
    ids, boxes = read_boxes(batch)
    found = {name: np.full(ids.size, np.nan) for name in SHAPES}
    for window in iter_windows(image, boxes):
        for row, (y0, x0, y1, x1) in zip(window.rows, window.boxes, strict=True):
            mask = (window.labels[y0:y1, x0:x1] == ids[row]).astype(np.uint8)
            for cell in regionprops(mask):
                with warnings.catch_warnings():
                    # A cell of a single row has no hull, as scikit-image warns, and is one itself.
                    warnings.simplefilter("ignore")
                    for name, property_name in SHAPES.items():
                        found[name][row] = cell[property_name]
    return found
