"""Measure the cells of a finished result again, without segmenting: `measure`.

Other channels, quantiles or neighbours, or another image on the same grid. The table is made beside
the result and takes its place at the end, with the record of what was measured in `run.json`. The
order of what is written then is such that a kill at any moment leaves the old table or the new one,
and one of the two lists of checksums that says so (`cells.kept.read_list` finds which).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.checksums import checksum_file, format_checksums
from densebatch.base.errors import InputError
from densebatch.base.files import sentences_for_disk, write_atomic
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.base.names import count_of
from densebatch.cells.faults import Fault, find_faults
from densebatch.cells.kept import REPORT, list_lists, read_list, scratch_path
from densebatch.cells.labels import shard_grid
from densebatch.cells.verify import read_spec
from densebatch.measuring.markers import Image
from densebatch.measuring.parts import StoredParts, pack_part
from densebatch.measuring.schema import RADIUS_UM
from densebatch.measuring.stored import find_split
from densebatch.measuring.table import write_table
from densebatch.planning.measured import build_measures, describe_measures, read_measures
from densebatch.planning.settings import load_settings
from densebatch.remote.tree import Place, find_place
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress, read_report
from densebatch.upkeep.content import Content, measure_units, read_nuclei, sum_cells
from densebatch.upkeep.pixels import describe_other, find_channels, open_other

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.planning.plan import Plan
    from densebatch.upkeep.pixels import PixelSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """What `measure` did.

    Attributes
    ----------
    out : output folder
    table : path of the cell table
    n_cells : its rows
    measured, positivity : as `run.json` has them
    """

    out: Path
    table: Path
    n_cells: int
    measured: Mapping[str, Any]
    positivity: Mapping[str, Any]

    def tell_unread(self) -> str | None:
        """One sentence on what could not be measured; None if all was."""
        holes = self.measured["unread"]
        if not holes:
            return None
        return (
            f"{count_of(len(holes), 'piece')} of the image cannot be read, the first at pixels "
            f"{holes[0]['region']} of channel {holes[0]['channel']} ({holes[0]['reason']}); cells "
            "there have no intensities in that channel"
        )


def measure(
    out: str | Path,
    *,
    source: str | Place | None = None,
    chosen: Mapping[str, str | None] | None = None,
    channels: Sequence[str] = (),
    quantiles: Sequence[float] | str = (),
    neighbour_radius: float = RADIUS_UM,
    fraction: Sequence[str] = (),
    positive: Sequence[str] = (),
    phenotype: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure the cells of a finished result again and write its table anew.

    Parameters
    ----------
    out
        Output folder of a run.
    source
        Another image on the grid of the labels; None for what the run segmented.
    chosen
        Which image of that file is meant: arguments of `open_slide`, by name.
    channels
        That are measured, by name or index, each text several with commas between them; all if
        none is named.
    quantiles, neighbour_radius, fraction, positive, phenotype
        As of `SegmentSettings`.
    threads
        That read and compute at once; by default one for each processor.
    progress
        Receives stages and units as they are done.

    Returns
    -------
    Measurement

    Raises
    ------
    InputError
        If the folder is no finished and whole result, or the image or a channel cannot be used;
        the result is as it was.
    DensebatchError
        If it cannot be written, or another process writes it.
    """
    progress, threads = progress or Progress(), threads or count_cores()
    settings = load_settings(
        None, quantiles=quantiles, neighbour_radius=neighbour_radius, fraction=fraction,
        positive=positive, phenotype=phenotype,
    )  # fmt: skip
    folder = OutputFolder(Path(out).absolute())
    plan, report = _read_finished(folder)
    info = None
    if source is not None:
        info = open_other(find_place(source), chosen or {}, plan, folder.path)
    measured = plan.slide if info is None else info
    measures = build_measures(
        Image(measured.path, measured.channels),
        find_channels(measured.path, measured.channels, channels),
        settings,
        plan.shape,
        read_measures(report).compartments,
        has_regions=read_measures(report).has_regions,
    )
    other = None if info is None else describe_other(info)
    told = describe_measures(measures, measured.channels, other)
    report = {**report, "measured": told, "positivity": None}
    with Driver(progress) as driver, sentences_for_disk(folder.path):
        driver.refuse_living(folder)
        _refuse_damaged(folder, plan, threads)
        driver.own(folder)
        tree, spec = folder.trees(plan)[-1], read_spec(folder.root(plan), in_place=plan.in_place)
        content = Content(plan, tree, folder.table, spec, report, (), threads, progress)
        pixels = content.open_pixels()
        if not pixels.is_there:
            raise InputError(f"{folder.path}: cannot be measured again: {pixels.reason}")
        made = scratch_path(folder.path) / folder.table.name
        try:
            report["positivity"] = make_table(content, pixels, made)
            told["unread"] = pixels.describe_unread()
            driver.check()
            _put(folder, plan, made, report)
        finally:
            shutil.rmtree(made.parent, ignore_errors=True)
    log_event(
        log, "result measured", out=str(folder.path), cells=content.n_cells,
        channels=told["channels"], source=measured.path,
    )  # fmt: skip
    return Measurement(folder.path, folder.table, content.n_cells, told, report["positivity"])


def _read_finished(folder: OutputFolder) -> tuple[Plan, dict[str, Any]]:
    """The plan and report of a finished result."""
    lists = list_lists(folder.path)
    if not any(path.exists() for path in (folder.marker, folder.report, *lists)):
        raise InputError(
            f"{folder.path}: is no output of densebatch; accepted is the folder OUT of a `segment`"
        )
    if not any(path.exists() for path in lists):
        raise InputError(
            f"{folder.path}: is no finished result; the run's own command continues it"
        )
    plan, report = folder.read_marker(), read_report(folder.path)
    if plan is None or report is None:
        what = folder.marker.name if plan is None else folder.report.name
        raise InputError(f"{folder.path}: {what} is damaged; `densebatch verify` tells more")
    return plan, report


def _refuse_damaged(folder: OutputFolder, plan: Plan, threads: int) -> None:
    """Refuse a result whose files are not as they were written, but for the table."""
    for tree in folder.trees(plan):
        listed, faults = read_list(tree)
        if listed is None:
            raise InputError(f"{folder.path}: {faults[0]}; `densebatch verify` tells more")
        for fault in find_faults(tree, listed, threads, copies=False):
            if isinstance(fault, Fault) and fault.path != folder.table:
                raise InputError(
                    f"{folder.path}: {tree.shown(fault.name)}: {fault.what}; `densebatch verify "
                    "--repair` makes it again"
                )


def _put(folder: OutputFolder, plan: Plan, made: Path, report: Mapping[str, Any]) -> None:
    """Put a new table and report in their places."""
    tree = folder.trees(plan)[0]
    listed, _ = read_list(tree)
    copy = tree.copy_of(REPORT)
    assert listed is not None
    assert copy is not None
    content = json.dumps(report, indent=1).encode()
    text = format_checksums(
        {
            **listed,
            folder.table.name: checksum_file(made),
            REPORT: hashlib.sha256(content).hexdigest(),
        }
    )
    first, second = tree.lists
    # Until `run.json` is in its place the first list is true, and then the second one.
    write_atomic(second, text)
    write_atomic(copy, content)
    write_atomic(folder.report, content)
    made.replace(folder.table)
    write_atomic(first, text)


def make_table(content: Content, source: PixelSource, path: Path) -> dict[str, Any]:
    """Write the cell table of a result anew; returns which cells are positive.

    Parameters
    ----------
    content
        Of the result; its report says what is measured, and the cuts that were found, if any.
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
    parts = {}
    for compartment in ("", *content.within):
        paths = []
        for region, part in measure_units(content, split, measures, source, compartment):
            paths.append(folder / f"{compartment}-{region.y0}-{region.x0}.npz")
            write_atomic(paths[-1], pack_part(part))
        parts[compartment] = StoredParts(paths)
    slide, cells = Region(0, 0, *plan.shape), parts.pop("")
    nuclei = read_nuclei(content, parts) if parts else None
    told = write_table(
        path, cells, content.n_cells, slide, plan.um_per_px, source.channels, measures,
        content.report["positivity"], nuclei, plan.region,
    )  # fmt: skip
    shutil.rmtree(folder)
    return told
