"""`densebatch export`: a finished result in the format of another tool."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from densebatch.base.errors import InputError
from densebatch.base.files import appears_whole, check_free
from densebatch.base.log import log_event
from densebatch.exporting.options import DEFAULT_SIMPLIFY_PX, Options
from densebatch.exporting.source import open_source
from densebatch.run.report import Progress

if TYPE_CHECKING:
    from densebatch.exporting.options import LabelType

log = logging.getLogger(__name__)

Kind = Literal[
    "mcmicro-csv", "anndata", "spatialdata", "geojson", "geoparquet", "imagej-rois", "ome-tiff",
    "csv",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A format that is written.

    Attributes
    ----------
    writer : its function, as `module:name` of this package, which is imported when it is asked for
    name : of the export in OUT, where none is given
    suffixes : that a name may end with, because readers go by them
    """

    writer: str
    name: str
    suffixes: tuple[str, ...]


TARGETS: dict[Kind, Target] = {
    "csv": Target("tables:write_csv", "cells.csv", (".csv", ".csv.gz")),
    "mcmicro-csv": Target("tables:write_mcmicro", "cells-mcmicro.csv", (".csv", ".csv.gz")),
    "anndata": Target("annotated:write_anndata", "cells.h5ad", (".h5ad", ".zarr")),
    "spatialdata": Target("spatialdata:write_spatialdata", "cells.spatialdata.zarr", (".zarr",)),
    "geojson": Target(
        "geojson:write_geojson", "cells.geojson.gz",
        (".geojson", ".geojson.gz", ".json", ".json.gz"),
    ),
    "geoparquet": Target(
        "geoparquet:write_geoparquet", "cells.geo.parquet", (".parquet", ".geoparquet")
    ),
    "imagej-rois": Target("imagej:write_rois", "cells-rois.zip", (".zip",)),
    "ome-tiff": Target(
        "label_tiff:write_label_tiff", "cells.ome.tif", (".ome.tif", ".ome.tiff")
    ),
}  # fmt: skip
KINDS: tuple[Kind, ...] = tuple(TARGETS)


@dataclass(frozen=True)
class Exported:
    """An export that was written.

    Attributes
    ----------
    path : of it
    n_cells : in it
    notes : what a user should know, a sentence each
    """

    path: Path
    n_cells: int
    notes: tuple[str, ...] = ()


def export(
    out: str | Path,
    kind: Kind,
    path: str | Path | None = None,
    *,
    simplify: float = DEFAULT_SIMPLIFY_PX,
    label_dtype: LabelType = "uint32",
    progress: Progress | None = None,
) -> Exported:
    """Write a finished result in another format.

    Memory is bounded by a shard of the labels, the largest cell's box and some thousand rows of the
    table, whatever the size of the slide.

    Parameters
    ----------
    out
        Output folder of a run, or of a merge.
    kind
        Of the export.
    path
        Where to write it; by default into `out`, by the name of the kind.
    simplify
        How far outlines may move to have fewer corners, px; 0 keeps the edges of pixels.
    label_dtype
        Of the pixels of a label TIFF.
    progress
        Receives what is written.

    Returns
    -------
    Exported

    Raises
    ------
    InputError
        If the result is unfinished or damaged, something is at the path, or its name does not end
        as that of the kind. Nothing is left behind.
    """
    progress, target = progress or Progress(), TARGETS[kind]
    where = (Path(out) / target.name if path is None else Path(path)).absolute()
    suffix = next((s for s in sorted(target.suffixes, key=len, reverse=True)
                   if where.name.lower().endswith(s)), None)  # fmt: skip
    if suffix is None:
        raise InputError(
            f"{where}: is no name for {kind}; accepted are names that end with "
            f"{', '.join(target.suffixes)}"
        )
    if not 0 <= simplify < float("inf"):
        raise InputError(f"--simplify {simplify}: accepted are 0 px and more")
    check_free(where)
    source = open_source(Path(out), progress)
    notes = () if source.missing is None else (f"the result is partial: {source.missing}",)
    for note in notes:
        progress.note(note)
    options = Options(suffix, simplify, label_dtype)
    module, _, name = target.writer.partition(":")
    writer = getattr(import_module(f"densebatch.exporting.{module}"), name)
    with appears_whole(where) as partial:
        writer(source, partial, options)
    log_event(log, "result exported", out=str(out), kind=kind, path=str(where),
              cells=source.n_cells)  # fmt: skip
    return Exported(where, source.n_cells, notes)
