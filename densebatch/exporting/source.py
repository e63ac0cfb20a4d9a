"""A finished result, opened to be exported: what is unfinished or damaged is refused here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.machine import count_cores
from densebatch.cells import labels
from densebatch.cells.faults import Fault, find_faults
from densebatch.cells.kept import Tree, read_list
from densebatch.cells.pyramid_spec import COMPARTMENT_LABELS, LABEL_NAME
from densebatch.cells.read import open_labels
from densebatch.compartments.names import NUCLEUS
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress, is_partial, read_report, tell_missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from densebatch.cells.read import LabelImage

_NUCLEI = COMPARTMENT_LABELS[NUCLEUS]
STAGE = "export"
BATCH_CELLS = 16384
"""Rows of the table that are held at once, with the outlines of their cells."""
_ACCEPTED = "accepted is the OUT of a finished `segment` or `merge`"
_NEEDED = {"id", "y_px", "x_px", "area_px", "y0", "x0", "y1", "x1"}


@dataclass(frozen=True)
class Source:
    """A finished result.

    Attributes
    ----------
    root : the OME-Zarr image group that has the labels
    table : the cell table
    schema : names and types of the table's columns, in order
    cells, nuclei : label images of the same ids; `nuclei` is None where there are none
    names : of all label images of these ids that there are
    n_cells : rows of the table
    um_per_px : None if it is unknown
    origin_um : where the first pixel lies along y and x; None where nothing tells, or without size
    provenance : how the result was made, strings and numbers alone
    missing : a sentence on what has no result; None if nothing is missing
    progress : receives rows as they are written
    """

    root: Path
    table: Path
    schema: pa.Schema
    cells: LabelImage
    nuclei: LabelImage | None
    names: tuple[str, ...]
    n_cells: int
    um_per_px: float | None
    origin_um: tuple[float, float] | None
    provenance: dict[str, str | float]
    missing: str | None = None
    progress: Progress = field(default_factory=Progress)

    def read_batches(self) -> Iterator[pa.RecordBatch]:
        """Rows of the table in their order, `BATCH_CELLS` at a time.

        Raises
        ------
        InputError
            If the table is damaged.
        """
        try:
            # Otherwise all columns of a row group, which is the whole table, would be read first.
            paged = {"pre_buffer": False, "buffer_size": 1 << 18}
            with pq.ParquetFile(self.table, page_checksum_verification=True, **paged) as file:
                self.progress.stage(STAGE, -(-self.n_cells // BATCH_CELLS), 0)
                for batch in file.iter_batches(BATCH_CELLS, use_threads=False):
                    yield batch
                    pixels = int(pyarrow.compute.sum(batch["area_px"]).as_py())
                    self.progress.advance(STAGE, pixels)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.table}: cannot be read ({describe_cause(error)})") from error


def open_source(out: Path, progress: Progress) -> Source:
    """Open a result, and compare its table and label images with their checksums.

    Parameters
    ----------
    out
        The output folder of a run, or of a merge.
    progress
        Receives rows as they are written.

    Raises
    ------
    InputError
        If there is no finished result, or what is exported of it is damaged.
    """
    folder = OutputFolder(out.absolute())
    if (folder.path / "merge.json").is_file() and not folder.marker.exists():
        return _open_merged(out, folder, progress)
    report = read_report(folder.path)
    if report is None:
        if not folder.marker.exists() and not folder.report.exists():
            raise InputError(f"{out}: is no output of densebatch; {_ACCEPTED}")
        raise InputError(
            f"{out}: holds no finished run, or its run.json is damaged; `densebatch status` says "
            "how it stands"
        )
    try:
        plan = folder.require_marker()
    except OSError as error:
        raise InputError(f"{folder.marker}: cannot be read ({error.strerror})") from error
    root = folder.root(plan)
    names = _check(folder.trees(plan), root, folder.table)
    about: dict[str, str | float] = {
        "slide": plan.slide.path,
        "fingerprint": plan.fingerprint,
        "settings": json.dumps(report["settings"], sort_keys=True),
        "versions": json.dumps(report["versions"], sort_keys=True),
    }
    for kind in ("model", "segmenter"):
        if kind in report:
            about[kind] = json.dumps(report[kind], sort_keys=True)
    missing = tell_missing(report) if is_partial(report) else None
    return _open(root, folder.table, int(report["cells"]), plan.um_per_px, about, missing, progress,
                 names, plan.slide.origin_um)  # fmt: skip


def _open_merged(out: Path, folder: OutputFolder, progress: Progress) -> Source:
    """Open what `densebatch merge` wrote, of which there are no checksums."""
    try:
        report = json.loads((folder.path / "merge.json").read_bytes())
        n_cells, um_per_px = int(report["cells"]), report["um_per_px"]
        about = {"versions": json.dumps(report["versions"], sort_keys=True)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{out}: merge.json is damaged ({describe_cause(error)})") from error
    root = folder.path / "segmentation.ome.zarr"
    return _open(root, folder.table, n_cells, um_per_px, about, None, progress, (LABEL_NAME,))


def _open(
    root: Path,
    table: Path,
    n_cells: int,
    um_per_px: float | None,
    about: Mapping[str, str | float],
    missing: str | None,
    progress: Progress,
    names: tuple[str, ...],
    origin_um: tuple[float, float] | None = None,
) -> Source:
    origin_um = None if um_per_px is None else origin_um
    _require(table)
    labels.read_labels(root)  # refuses what is not finished
    try:
        with pq.ParquetFile(table) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{table}: cannot be read ({describe_cause(error)})") from error
    if n_rows != n_cells or not set(schema.names) >= _NEEDED:
        raise InputError(f"{table}: is not the table of the {n_cells} cells of this result")
    cells, nuclei = root / "labels" / LABEL_NAME, root / "labels" / _NUCLEI
    return Source(
        root=root,
        table=table,
        schema=schema,
        cells=open_labels(cells),
        nuclei=open_labels(nuclei) if _NUCLEI in names else None,
        names=names,
        n_cells=n_cells,
        um_per_px=um_per_px,
        origin_um=origin_um,
        provenance={
            "densebatch": version("densebatch"),
            "cells": n_cells,
            **({} if um_per_px is None else {"um_per_px": um_per_px}),
            **(
                {}
                if origin_um is None
                else {"origin_y_um": origin_um[0], "origin_x_um": origin_um[1]}
            ),
            **({} if missing is None else {"missing": missing}),
            **about,
        },
        missing=missing,
        progress=progress,
    )


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: is missing; {_ACCEPTED}")


def _check(trees: Sequence[Tree], root: Path, table: Path) -> tuple[str, ...]:
    """Compare what is exported with its checksums; names of the run's label images of cells."""
    tops = {name: root / "labels" / name for name in (LABEL_NAME, *COMPARTMENT_LABELS.values())}
    found: set[str] = set()
    for tree in trees:
        listed, faults = read_list(tree)
        if listed is None:
            raise InputError(f"{tree.out}: its files cannot be checked, {faults[0]}")
        used = {}
        for name in listed:
            place = tree.base / name
            inside = {image for image, top in tops.items() if place.is_relative_to(top)}
            found |= inside
            if inside or place == table:
                used[name] = listed[name]
        for fault in find_faults(tree, used, count_cores(), copies=False):
            if isinstance(fault, Fault):
                raise InputError(
                    f"{tree.out}: is damaged, {tree.shown(fault.name)} {fault.what}; "
                    "`densebatch verify --repair` may mend it"
                )
    return tuple(name for name in tops if name in found or name == LABEL_NAME)
