"""Simulated slides of any size within seconds."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

from densebatch.base.machine import count_cores
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from gpu_steps.tell import tell, timed

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

_SEED = 1
_DRAWN_PX = 4096
_CHUNK_PX = 512


def write_mosaic(side: int, work: Path, drawn_px: int = _DRAWN_PX) -> Path:
    """A simulated slide: up to `drawn_px` drawn as one, above that the same piece side by side.

    Repeated pieces are links to the files of the first, so that a slide of any size takes seconds
    and no disk. Cells that lie across the borders of the pieces are cut there.

    Parameters
    ----------
    side
        Of the slide, px; above `drawn_px` a multiple of it.
    work
        Where slides are kept from one call to the next.
    drawn_px
        Of the piece that is drawn, a multiple of a chunk.
    """
    path = work / f"slide-{side}.ome.zarr"
    if path.exists():
        return path
    if side > drawn_px and side % drawn_px:
        raise SystemExit(f"side {side}: accepted above {drawn_px} are multiples of it")
    unfinished = work / f"unfinished-{side}"
    shutil.rmtree(unfinished, ignore_errors=True)
    slide, times = unfinished / "slide.ome.zarr", max(1, side // drawn_px)
    if times == 1:
        # a shard for the whole, so that its file is one that can be repeated
        write_slide(Tissue(side, side, seed=_SEED), slide, unfinished / "truth.zarr",
                    chunk=_CHUNK_PX, shard=side, threads=count_cores())  # fmt: skip
    else:
        piece = write_mosaic(drawn_px, work, drawn_px)
        shutil.copytree(piece, slide, ignore=shutil.ignore_patterns("c"))
        for metadata in sorted(slide.glob("*/zarr.json")):
            document = json.loads(metadata.read_text())
            channels, height, width = document["shape"]
            document["shape"] = [channels, times * height, times * width]
            metadata.write_text(json.dumps(document))
            for channel in range(channels):
                _repeat(piece / metadata.parent.name / "c" / str(channel) / "0" / "0",
                        metadata.parent / "c" / str(channel), times)  # fmt: skip
    slide.rename(path)
    shutil.rmtree(unfinished)
    return path


def _repeat(shard: Path, folder: Path, times: int) -> None:
    """The file of one shard, as `times` by `times` of them."""
    for row in range(times):
        (folder / str(row)).mkdir(parents=True)
        for col in range(times):
            try:
                os.link(shard, folder / str(row) / str(col))
            except OSError:  # not every file system has links
                shutil.copyfile(shard, folder / str(row) / str(col))


def draw_slide(options: argparse.Namespace) -> None:
    """The slide of whole runs."""
    with timed("write_s"):
        write_mosaic(options.side, options.work)
    tell(headline=f"{options.side**2 / 1e6:.0f} Mpx")
