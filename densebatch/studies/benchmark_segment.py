"""`densebatch benchmark throughput` and `scaling`: whole runs, watched from outside.

Every run is the ordinary command in a process of its own, started anew, so that what a user waits
for is what is measured. A small run goes before, which leaves compiled code and warm caches.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.machine import count_cores, name_gpu
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import CHANNELS, Tissue
from densebatch.studies.benchmark_record import Row, take_medians
from densebatch.studies.watch import Watched, scratch_folder, watch_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_SEED = 1
_WARM_PX = 256
# A GPU is checked anew for each size of a group of patches; so many pixels hold a full one.
_WARM_GPU_PX = 1280
_CHANNEL_OPTIONS = ("--membrane", "--nuclei", "--config")  # a settings file may name channels too


def _prepare(
    slide: Path | None, size_px: int, options: Sequence[str], scratch: Path
) -> tuple[Path, list[str]]:
    """The slide to run on and the options of `segment`, after a small run with the same."""
    options = list(options)
    small = scratch / "small.ome.zarr"
    warm_px = _WARM_PX if name_gpu() is None else _WARM_GPU_PX
    write_slide(Tissue(warm_px, warm_px, seed=_SEED), small)
    if slide is None:
        if not any(option.split("=")[0] == "--membrane" for option in options):
            options += ["--membrane", CHANNELS[0]]
        _segment(small, scratch / "warm", options)
        slide = scratch / "slide.ome.zarr"
        write_slide(Tissue(size_px, size_px, seed=_SEED), slide, threads=count_cores())
    else:
        # The small slide has other channels than the given one.
        _segment(
            small, scratch / "warm", [*drop_channel_options(options), "--membrane", CHANNELS[0]]
        )
    return slide, options


def drop_channel_options(options: Sequence[str]) -> list[str]:
    """Options of `segment` less those that name, or may name, a slide's channels."""
    rest: list[str] = []
    is_value = False
    for option in options:
        name = option.split("=")[0]
        if not is_value and name not in _CHANNEL_OPTIONS:
            rest.append(option)
        is_value = not is_value and option in _CHANNEL_OPTIONS
    return rest


def _segment(
    slide: Path, out: Path, options: Sequence[str], cores: int | None = None
) -> tuple[Watched, dict[str, Any]]:
    """One run, its run.json read and its output removed."""
    command = [sys.executable, "-m", "densebatch", "segment", str(slide), str(out), *options]
    watched = watch_command(command, cores=cores, check=True)
    report: dict[str, Any] = json.loads((out / "run.json").read_text())
    shutil.rmtree(out)
    if "network_px" not in report:
        raise InputError(
            f"`densebatch segment {' '.join(options)}`: is no run of one model, whose network is "
            "measured here; accepted are options without --segmenter, --compartments and --expand"
        )
    return watched, report


def _read_values(watched: Watched, report: dict[str, Any]) -> dict[str, float | None]:
    """What one run tells, by name; `docs/benchmark.md` says what each is."""
    mpx = report["slide_px"] / 1e6
    seconds = report["seconds"]
    network_mpx = report["network_px"] / 1e6
    over = report["wall_over_network"]
    values: dict[str, float | None] = {
        "slide_mpx": mpx,
        "cells": report["cells"],
        "wall_s": watched.wall_s,
        "mpx_per_s": mpx / watched.wall_s,
        "cells_per_s": report["cells"] / watched.wall_s,
        "run_s": seconds["total"],
        "plan_s": seconds["plan"],
        "start_s": seconds["start"],
        "predict_and_trace_s": seconds["predict_and_trace"],
        "number_s": seconds["number"],
        "network_s": report["network_seconds"],
        "network_share": 1 / over if over else None,
        "wall_over_network": over,
        "network_s_per_mpx": report["network_seconds"] / network_mpx if network_mpx else None,
    }
    for stage, cost in report["stages"].items():
        values[f"{stage}_task_s"] = cost["seconds"]
        values |= {f"{stage}_{part}_task_s": s for part, s in cost["parts"].items()}
        values[f"{stage}_mpx_per_s_of_a_worker"] = cost["mpx_per_second"]
    for way in ("read", "written"):
        n_bytes = report[f"bytes_{way}"]
        values[f"{way}_mb"] = None if n_bytes is None else n_bytes / 1e6
    return values | {
        "peak_mb": watched.peak_mb,
        "largest_process_mb": watched.largest_mb,
        "gpu_share": watched.gpu_share,
    }


def measure_throughput(
    slide: Path | None,
    size_px: int,
    options: Sequence[str],
    repeats: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Time whole runs on a slide.

    Parameters
    ----------
    slide
        A slide, or None to simulate one.
    size_px
        Side of the simulated slide.
    options
        Of `densebatch segment`.
    repeats
        Runs; the row holds medians.
    note
        Is told what happens.

    Returns
    -------
    list of Row
        One row.

    Raises
    ------
    DensebatchError
        If a run fails, with what it said.
    """
    with scratch_folder() as scratch:
        note("preparing: a small run first, and the slide")
        slide, options = _prepare(slide, size_px, options, scratch)
        runs = []
        for repeat in range(repeats):
            watched, report = _segment(slide, scratch / "out", options)
            if repeat == 0:
                _tell_notes(report, note)
            runs.append(_read_values(watched, report))
            note(f"run {repeat + 1} of {repeats}: {runs[-1]['wall_s']:.1f} s")
    return [replace(take_medians("segment", runs), notes=report["notes"])]


def _tell_notes(report: dict[str, Any], note: Callable[[str], None]) -> None:
    """Pass on what a run told of how it took slide and settings."""
    for text in report["notes"]:
        note(text)


def measure_scaling(
    slide: Path | None,
    size_px: int,
    workers: Sequence[int],
    options: Sequence[str],
    repeats: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Time whole runs with one core a worker, for several numbers of workers.

    Parameters
    ----------
    slide, size_px, options, repeats, note
        As for `measure_throughput`.
    workers
        Numbers of workers, each on as many cores; the first is what the others are compared with.

    Returns
    -------
    list of Row
        A row for each number, with `speedup` over the first and `efficiency`, which is the speedup
        over the growth in cores.

    Raises
    ------
    InputError
        If there are not as many cores, or the system cannot limit a process to some of them.
    """
    most = count_cores()
    if max(workers) > most:
        raise InputError(
            f"scaling to {max(workers)} workers: this process may use {most} cores; "
            f"accepted are 1 to {most}"
        )
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(
            "scaling: this system cannot limit a process to some of its cores; accepted is Linux"
        )
    rows: list[Row] = []
    with scratch_folder() as scratch:
        note("preparing: a small run first, and the slide")
        slide, options = _prepare(slide, size_px, options, scratch)
        for n in workers:
            runs = []
            for repeat in range(repeats):
                watched, report = _segment(
                    slide, scratch / "out", [*options, "--workers", str(n)], cores=n
                )
                if not rows and repeat == 0:
                    _tell_notes(report, note)
                runs.append({"workers": float(n), **_read_values(watched, report)})
                note(f"{n} workers, run {repeat + 1} of {repeats}: {watched.wall_s:.1f} s")
            rows.append(replace(take_medians(f"{n} workers", runs), notes=report["notes"]))
    return [_add_speedup(row, rows[0]) for row in rows]


def _add_speedup(row: Row, first: Row) -> Row:
    speedup = _divide(row.values["mpx_per_s"], first.values["mpx_per_s"])
    growth = _divide(row.values["workers"], first.values["workers"])
    gained = {"speedup": speedup, "efficiency": _divide(speedup, growth)}
    rounded = {key: None if value is None else round(value, 4) for key, value in gained.items()}
    return replace(row, values=row.values | rounded)


def _divide(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
