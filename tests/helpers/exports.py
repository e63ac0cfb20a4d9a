"""Finished results to export, and what each export should hold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from densebatch.base.checksums import checksum_file
from densebatch.cells.groups import open_array
from densebatch.cells.kept import read_list, write_list
from densebatch.cells.labels import create, finalize, read_labels
from densebatch.cells.pyramid import downsample_labels, write_label_shard
from densebatch.cells.pyramid_spec import PyramidSpec, shard_grid
from densebatch.run.folder import OutputFolder
from densebatch.studies.merge import merge_label_tiles

ODD = np.array(
    [
        [1, 1, 1, 0, 0, 2, 0, 0],
        [1, 0, 1, 0, 2, 2, 0, 3],
        [1, 1, 1, 0, 0, 0, 3, 0],
        [0, 0, 0, 4, 4, 0, 0, 3],
        [5, 0, 0, 4, 4, 4, 3, 3],
        [0, 5, 0, 4, 4, 4, 0, 0],
    ],
    np.uint32,
)
"""A cell with a hole, one of three pieces, two that meet themselves in a corner."""


def make_odd_result(folder, labels=ODD, um_per_px=0.5):
    """OUT of a merge, with cells of any form."""
    tifffile.imwrite(folder / "tile_y0_x0.tif", labels)
    return merge_label_tiles([folder / "tile_y0_x0.tif"], folder / "out", pixel_size=um_per_px).out


def add_columns(out, columns):
    """Put more columns into the table of a merge, of which there is no checksum."""
    table = pq.read_table(out / "cells.parquet")
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, out / "cells.parquet", write_page_checksum=True)


def add_nuclei(out):
    """Write nuclei into OUT as a run would, the inner pixels of every second cell; returns them."""
    cells = read_labels(out / "segmentation.ome.zarr")[:]
    inner = np.ones(cells.shape, bool)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inner &= cells == np.roll(cells, step, axis)
    nuclei = np.where(inner & (cells % 2 == 0), cells, 0).astype(np.uint32)
    root = out / "segmentation.ome.zarr"
    n_levels = len(list((root / "labels" / "cells").glob("[0-9]")))
    spec = PyramidSpec(str(root), "0.5", *cells.shape, n_levels, label_name="nuclei")
    create(spec, label_attrs={"content": "segmentation"})
    for level in range(n_levels):
        grid = shard_grid(spec, level)
        for index in grid:
            if level:
                downsample_labels(spec, level, grid[index])
            else:
                write_label_shard(spec, 0, grid[index], nuclei[grid[index].slices])
    finalize(spec, n_cells=None, provenance={})
    folder = OutputFolder(out)
    (tree,) = folder.trees(folder.read_marker())
    listed, _ = read_list(tree)
    files = [p for p in (root / "labels").rglob("*") if p.is_file()]
    names = [p.relative_to(out).as_posix() for p in files]
    write_list(tree, listed | {name: checksum_file(out / name) for name in names})
    return nuclei


def read_truth(out, root=None):
    """Labels, and the table as a dict of arrays."""
    labels = open_array((root or out / "segmentation.ome.zarr") / "labels" / "cells" / "0")[:]
    table = pq.read_table(out / "cells.parquet")
    return labels, {name: table[name].to_numpy() for name in table.column_names}
