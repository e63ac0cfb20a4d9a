"""Where damaged labels are made again, beside the result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from densebatch.cells.kept import scratch_path
from densebatch.cells.pyramid import level_path
from densebatch.cells.pyramid_spec import MISSING_NAME
from densebatch.ngff.folders import DOCUMENTS

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.upkeep.content import Content


def open_scratch(content: Content, level: int, *, image: bool) -> Path:
    """A root with an array as the result has it, to write units to."""
    scratch = scratch_path(content.tree.out) / "segmentation.ome.zarr"
    folder = level_path(content.spec, level, image=image)
    inside = scratch / folder.relative_to(content.spec.root)
    inside.mkdir(parents=True, exist_ok=True)
    for name in DOCUMENTS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, inside / name)
    return scratch


def list_missing(content: Content) -> list[Content]:
    """The label image `missing` of a result as if it were its cells; nothing if it has none."""
    if not content.report.get("missing_px"):
        return []
    spec = replace(content.spec, label_name=MISSING_NAME, image=False, channels=())
    return [replace(content, spec=spec)]


def is_partial(content: Content) -> bool:
    """Whether the run had left something without labels."""
    return bool(content.report["failed_tiles"] or content.report.get("missing_px"))
