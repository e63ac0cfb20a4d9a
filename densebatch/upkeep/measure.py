"""Measure the cells of a finished result again, without segmenting."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from densebatch.base.files import write_atomic
from densebatch.base.geometry import Region
from densebatch.cells.labels import shard_grid
from densebatch.measuring.parts import StoredParts, pack_part
from densebatch.measuring.stored import find_split
from densebatch.measuring.table import write_table
from densebatch.planning.measured import read_measures
from densebatch.upkeep.consistency import measure_units, sum_cells

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.upkeep.consistency import Content
    from densebatch.upkeep.pixels import PixelSource


def make_table(content: Content, source: PixelSource, path: Path) -> None:
    """Write the cell table of a result anew.

    Parameters
    ----------
    content
        Of the result; its report says what is measured.
    source
        Of the pixels.
    path
        Where to; a folder beside it holds what was measured in the shards meanwhile.

    Raises
    ------
    InputError
        If labels or pixels cannot be read.
    """
    plan, measures = content.plan, read_measures(content.report)
    split = find_split(sum_cells(content), shard_grid(content.spec, 0))
    folder = path.with_name(f"{path.stem}-parts")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    for region, part in measure_units(content, split, measures, source):
        paths.append(folder / f"{region.y0}-{region.x0}.npz")
        write_atomic(paths[-1], pack_part(part))
    slide = Region(0, 0, *plan.shape)
    parts = StoredParts(paths)
    write_table(path, parts, content.n_cells, slide, plan.um_per_px, source.channels, measures)
    shutil.rmtree(folder)
