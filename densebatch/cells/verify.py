"""Whether a stored label image is what it should be: its metadata, its levels, its cells.

Works from what is stored alone. Every function looks at one unit of `pyramid_spec.shard_grid` or at
sums over them, so that memory does not grow with the image, but for the sums: as for the table.
"""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from densebatch.base.errors import InputError, describe_cause
from densebatch.cells.groups import compare_array, find_format, open_array, read_attributes
from densebatch.cells.pyramid import (
    array_settings,
    label_path,
    level_path,
    read_unit,
    reduce_image,
    reduce_labels,
)
from densebatch.cells.pyramid_spec import LABEL_NAME, OWNER, PyramidSpec
from densebatch.ngff.metadata import (
    SlidePyramid,
    find_fault,
    find_multiscale,
    list_channel_labels,
    list_labels,
    list_level_paths,
    ome_attributes,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_PLAIN = (("scale", 1.0, 1.0),)


class Finding(NamedTuple):
    """Something that is wrong with a result.

    Attributes
    ----------
    file : relative to OUT, or absolute for a file in a slide
    what : in words
    place : pixels of the file's own level, None if it is no place
    """

    file: str
    what: str
    place: Region | None = None

    def __str__(self) -> str:
        if self.place is None:
            return f"{self.file}: {self.what}"
        y0, x0, y1, x1 = astuple(self.place)
        return f"{self.file}: {self.what} (rows {y0} to {y1}, columns {x0} to {x1})"


def read_spec(root: Path, *, in_place: bool) -> PyramidSpec:
    """The layout of a stored label image, and of the image that was written beside it.

    Parameters
    ----------
    root
        The image group above `labels/`.
    in_place
        Whether that image is somebody else's.

    Raises
    ------
    InputError
        If there is none, or it cannot be read.
    """
    label = root / "labels" / LABEL_NAME
    ngff = version_of(2 if find_format(label) == 2 else 3)
    multiscale = find_multiscale(ome_attributes(read_attributes(label)))
    if multiscale is None:
        raise InputError(f"{label} is not a label image: it has no multiscales")
    shapes = tuple(open_array(label / name).shape for name in list_level_paths(multiscale, label))
    image: dict[str, Any] = {}
    above = {} if in_place else read_attributes(root)
    if OWNER in above and find_multiscale(ome_attributes(above)) is not None:
        names = list_channel_labels(ome_attributes(above))
        image = {
            "image": True,
            "channels": tuple(map(str, names)),
            "image_dtype": open_array(root / "0").dtype.name,
        }
    return PyramidSpec(
        root=str(root),
        ngff=ngff,
        height=shapes[0][0],
        width=shapes[0][1],
        n_levels=len(shapes),
        slide=None if image else SlidePyramid(shapes, (_PLAIN,) * len(shapes)),  # type: ignore[arg-type]
        in_place=in_place,
        **image,
    )


def find_metadata_faults(spec: PyramidSpec) -> Iterator[tuple[Path, str]]:
    """Groups and arrays whose metadata are not valid, or not as densebatch writes them."""
    label = label_path(spec)
    for group in (Path(spec.root), label.parent, label):
        if group != Path(spec.root) or spec.image:
            fault = find_fault(read_attributes(group))
            if fault is not None:
                yield group, f"is not valid OME-Zarr {spec.ngff}: {fault}"
    if spec.label_name not in list_labels(ome_attributes(read_attributes(label.parent))):
        yield label.parent, f"does not list the label image {spec.label_name!r}"
    for level in range(spec.n_levels):
        for image in (False, True) if spec.image else (False,):
            folder = level_path(spec, level, image=image)
            differences = compare_array(folder, array_settings(spec, level, image=image))
            if differences:
                yield folder, f"is another array than the run's ({differences})"


def compare_reduction(
    spec: PyramidSpec, level: int, region: Region, channel: int | None = None
) -> str | None:
    """What is wrong with one unit of a level above the first; None if it is its reduction.

    Parameters
    ----------
    spec, level, region
        Which unit.
    channel
        Of the image; None for the labels.
    """
    try:
        found = read_unit(spec, level, region, channel)
        if channel is None:
            expected = reduce_labels(spec, level, region)
        else:
            expected = reduce_image(spec, channel, level, region)
    except (InputError, ValueError, RuntimeError) as error:
        return f"cannot be compared with the level below ({describe_cause(error)})"
    differing = int(np.count_nonzero(~_are_same(found, expected)))
    return f"{differing} px are not those of the level below" if differing else None


def _are_same(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = a == b
    return same | (a != a) & (b != b) if a.dtype.kind == "f" else same


def compare_seeds(
    seeds: NDArray[np.int64], boxes: NDArray[np.int64], shape: tuple[int, int], reach_px: int
) -> str | None:
    """What speaks against the cells 1..N being numbered in raster order of these seeds.

    Parameters
    ----------
    seeds
        `(N,)` linear index of each cell's seed in the image; of a cell that comes after all others
        as if below the image there was a second one.
    boxes
        `(N, 4)` of the cells: y0, x0, y1, x1; empty for a cell without a pixel.
    shape
        Of the image.
    reach_px
        No pixel of a cell is further from its seed.
    """
    if seeds.shape != boxes.shape[:1]:
        return f"has {seeds.size} seeds for {len(boxes)} cells"
    wrong = np.flatnonzero(np.diff(seeds) <= 0)
    if wrong.size:
        return f"cells are not numbered in raster order: cell {wrong[0] + 2} comes too late"
    y, x = np.divmod(seeds % (shape[0] * shape[1]), shape[1])
    near = (y >= boxes[:, 0] - reach_px) & (y < boxes[:, 2] + reach_px)
    near &= (x >= boxes[:, 1] - reach_px) & (x < boxes[:, 3] + reach_px)
    far = np.flatnonzero(~near & (boxes[:, 2] > boxes[:, 0]))
    if far.size:
        return f"{far.size} cells lie far from their seeds, the first is {far[0] + 1}"
    return None


def compare_schema(path: Path, expected: pa.Schema) -> str | None:
    """How the columns of the table differ from those that were to be; None if they do not.

    Parameters
    ----------
    path
        The table.
    expected
        Names and types, in order.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        return f"cannot be read ({describe_cause(error)})"
    for name in expected.names:
        if name not in found.names:
            return f"has no column {name!r}"
        if found.field(name).type != expected.field(name).type:
            return f"has {name!r} as {found.field(name).type}, not {expected.field(name).type}"
    if found.names != expected.names:
        more = sorted(set(found.names) - set(expected.names))
        return f"has columns that nobody asked for: {more[0]!r}" if more else (
            "has its columns in another order"
        )  # fmt: skip
    return None


def compare_column(path: Path, name: str, expected: pa.Array) -> str | None:
    """How a column of the table differs from what labels and pixels say; None if it does not.

    Parameters
    ----------
    path
        The table.
    name
        Of the column.
    expected
        Its values, for the cells 1..N.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            column = file.read([name]).column(0).combine_chunks()
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        return f"cannot be read ({describe_cause(error)})"
    if len(column) != len(expected):
        return f"has {len(column)} rows for {len(expected)} cells"
    if column.null_count or expected.null_count:
        same = column.equals(expected)
        return None if same else f"{name!r} is not what the labels say"
    found, wanted = (each.to_numpy(zero_copy_only=False) for each in (column, expected))
    wrong = np.flatnonzero(~_are_same(found, wanted))
    if not wrong.size:
        return None
    row = wrong[0]
    return (
        f"{name!r} is not what the labels and pixels say in {wrong.size} rows, the first is cell "
        f"{row + 1}: {found[row]} instead of {wanted[row]}"
    )
