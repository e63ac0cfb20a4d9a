"""`densebatch benchmark score`: scoring alone, of a simulated pair of label images."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import zarr

from densebatch.cells.read import open_labels
from densebatch.scoring.score import score_labels
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.studies.benchmark_record import Row, take_medians
from densebatch.studies.watch import scratch_folder, watch_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SEED = 1
_SHIFT_PX = 2
_LOST_EVERY = 20  # one cell in so many is missing from the simulated prediction


def measure_scoring(
    size_px: int, workers: int, repeats: int, note: Callable[[str], None]
) -> list[Row]:
    """Time scoring of a simulated pair.

    Parameters
    ----------
    size_px
        Side of the label images.
    workers
        Threads.
    repeats
        Runs; the row holds medians.
    note
        Is told what happens.

    Returns
    -------
    list of Row
        One row: `score_s` is the time of reading and scoring with everything loaded, `wall_s` that
        of the command in a process of its own, `peak_mb` its memory.

    Raises
    ------
    DensebatchError
        If the command fails, with what it said.
    """
    with scratch_folder() as scratch:
        note("preparing: a simulated pair of label images")
        truth, pred = scratch / "truth.zarr", scratch / "pred.zarr"
        tissue = Tissue(size_px, size_px, seed=_SEED)
        write_slide(tissue, scratch / "slide.ome.zarr", truth, threads=workers)
        _write_prediction(truth, pred)
        command = [sys.executable, "-m", "densebatch", "score", str(pred), str(truth)]
        command += ["--workers", str(workers), "--json", "-"]
        # Scoring of a small pair comes first, because it compiles what is compiled.
        small = np.ones((64, 64), np.uint32)
        score_labels(small, small)
        runs: list[dict[str, float | None]] = []
        for repeat in range(repeats):
            watched = watch_command(command, check=True)
            start = time.perf_counter()
            score = score_labels(open_labels(truth), open_labels(pred), workers=workers)
            seconds = time.perf_counter() - start
            runs.append(
                {
                    "slide_mpx": size_px**2 / 1e6,
                    "cells": score.n_truth + score.n_pred,
                    "score_s": seconds,
                    "mpx_per_s": size_px**2 / 1e6 / seconds,
                    "cells_per_s": (score.n_truth + score.n_pred) / seconds,
                    "wall_s": watched.wall_s,
                    "peak_mb": watched.peak_mb,
                    "ap": score.at("0.50").ap,
                }
            )
            note(f"run {repeat + 1} of {repeats}: {seconds:.2f} s")
    return [take_medians("score", runs)]


def _write_prediction(truth: Path, path: Path) -> None:
    """The truth moved by two pixels, without one cell in twenty; band by band."""
    source = zarr.open_array(truth, mode="r")
    height, width = source.shape
    target = zarr.create_array(
        path, shape=source.shape, chunks=source.chunks, dtype="uint32", fill_value=0
    )
    step = source.chunks[0]
    for y0 in range(0, height, step):
        y1 = min(y0 + step, height)
        rows = np.arange(y0, y1) - _SHIFT_PX
        band = np.asarray(source[max(0, rows[0]) : rows[-1] + 1])
        moved = np.zeros((y1 - y0, width), np.uint32)
        moved[rows >= 0, _SHIFT_PX:] = band[:, :-_SHIFT_PX]
        moved[moved % _LOST_EVERY == 0] = 0
        target[y0:y1] = moved
