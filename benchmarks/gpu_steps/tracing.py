"""Tracing by itself, on the device and on a CPU: the same bits, and what each takes."""

from __future__ import annotations

import cProfile
import pstats
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from densebatch.base.geometry import Region
from densebatch.planning.plan import load_plan
from densebatch.run.segment import segment
from densebatch.simulation.tissue import CHANNELS
from densebatch.stages.trace import read_flows
from densebatch.tracing.tile import TracedTile, halo_for_travel, trace_tile
from gpu_steps.slides import write_mosaic
from gpu_steps.tell import tell, timed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from densebatch.planning.plan import Plan

_BITS_PX = 2048  # one tracing tile
_TILE_PX = {"cuda": 2048, "cpu": 256}  # the device's code is slow where a CPU stands for it
_TILES = 4  # traced by themselves
_WARM_PX = 128


def compare_traces(a: TracedTile, b: TracedTile) -> dict[str, int]:
    """How many numbers of two results differ, of each of their parts; all 0 if the bits agree."""
    labels = a.labels.shape != b.labels.shape or np.count_nonzero(a.labels != b.labels)
    keys = a.keys.shape != b.keys.shape or np.count_nonzero(a.keys != b.keys)
    return {
        "labels": int(labels),
        "keys": int(keys),
        "max_travel_px": int(a.max_travel_px != b.max_travel_px),
        "dropped_px": int(a.dropped_px != b.dropped_px),
        "n_rejected": int(a.n_rejected != b.n_rejected),
    }


def require_same_bits(pairs: Sequence[tuple[TracedTile, TracedTile]]) -> None:
    """Tell whether each two results agree to the bit; exit with a failure if they do not."""
    differences = [compare_traces(*pair) for pair in pairs]
    same = not any(any(difference.values()) for difference in differences)
    cells = sum(a.keys.size for a, _ in pairs)
    tell(same_bits=same, cells_compared=cells, differing=differences)
    if not same or not cells:
        raise SystemExit(f"tracing on the device and on a CPU differ, or found nothing: {cells}")


def trace_on(
    device: str, plan: Plan, work: Path, cores: Sequence[Region]
) -> tuple[list[TracedTile], float]:
    """Trace some tiles of a run's stored flows; the results, and the median of seconds a tile."""
    halo = halo_for_travel(plan.travel_px)
    results, seconds = [], []
    for core in cores:
        window = core.expand(halo).clip(*plan.shape)
        flows, _ = read_flows(plan, work / "flows.zarr", window)
        start = time.perf_counter()
        results.append(trace_tile(flows, window, core, plan.shape, plan.trace, device))
        seconds.append(time.perf_counter() - start)
    return results, statistics.median(seconds)


def choose_tracing_device(device: str) -> str:
    """The device's own code also where a CPU has to stand for it."""
    return "cuda" if device == "cuda" else "cpu:0"


def load_run(work: Path) -> Plan:
    """The plan in the folder of a run's tasks."""
    return load_plan(str(next(work.glob("plan-*.json"))))


def find_tasks(out: Path) -> Path:
    """The folder of a run's tasks, which its plan names."""
    return next((out / "work").glob("*/plan-*.json")).parent


def check_bits(options: argparse.Namespace) -> None:
    """A small run, then its tile traced again on both; compiles what later steps use, too."""
    slide = write_mosaic(min(options.side, _BITS_PX), options.work)
    out = options.work / "out"
    with timed("small_run_s"):
        shutil.rmtree(out, ignore_errors=True)
        segment(slide, out, membrane=(CHANNELS[0],), model=options.model, device=options.device,
                workers=0, keep_flows=True)  # fmt: skip
    work = find_tasks(out)
    plan = load_run(work)
    height, width = plan.shape
    # whole, and a part with less of the slide around it
    cores = [Region(0, 0, height, width), Region(height // 3, width // 4, height // 2, width)]
    cpu, _ = trace_on("cpu", plan, work, cores)
    device, _ = trace_on(choose_tracing_device(options.device), plan, work, cores)
    require_same_bits(list(zip(cpu, device, strict=True)))
    tell(headline=f"the same bits for {sum(t.keys.size for t in cpu)} cells")


def choose_tiles(shape: tuple[int, int], side: int, n: int) -> list[Region]:
    """Up to `n` tiles of a size from the middle of a slide, in raster order."""
    height, width = (max(1, length // side) for length in shape)
    wide = max(1, min(width, round(n**0.5)))
    high = max(1, min(height, n // wide))
    y0, x0 = (height - high) // 2, (width - wide) // 2
    tiles = [
        Region(row * side, col * side, (row + 1) * side, (col + 1) * side)
        for row in range(y0, y0 + high)
        for col in range(x0, x0 + wide)
    ]
    return [tile.clip(*shape) for tile in tiles]


def measure_tracing(options: argparse.Namespace) -> None:
    """Tiles of the first run's flows, in this process alone: a CPU's core, and the device."""
    work = find_tasks(options.work / "flows")
    plan, device = load_run(work), choose_tracing_device(options.device)
    tiles = choose_tiles(plan.shape, _TILE_PX[options.device], _TILES)
    mpx = tiles[0].area / 1e6
    for where in (device, "cpu"):  # contexts, and compiled code
        trace_on(where, plan, work, choose_tiles(plan.shape, _WARM_PX, 1))
    on_device, device_s = trace_on(device, plan, work, tiles)
    on_cpu, cpu_s = trace_on("cpu", plan, work, tiles)
    tell(tiles=len(tiles), mpx_per_tile=mpx, device_s_per_tile=round(device_s, 4),
         cpu_s_per_tile=round(cpu_s, 4), device_mpx_per_s=round(mpx / device_s, 2),
         cpu_mpx_per_s=round(mpx / cpu_s, 2), times_a_core=round(cpu_s / device_s, 2))  # fmt: skip
    for name, where in (("device", device), ("cpu", "cpu")):
        profile = cProfile.Profile()
        profile.runcall(trace_on, where, plan, work, tiles[:1])
        tell(**{f"{name}_profile_s": _summarize(profile)})
    if device == "cuda":
        tell(torch_peak_gpu_mb=torch.cuda.max_memory_allocated() // 10**6)
    require_same_bits(list(zip(on_cpu, on_device, strict=True)))
    shutil.rmtree(options.work / "flows")
    tell(headline=f"a tile takes {device_s:.2f} s on the device, {cpu_s:.2f} s on a core")


def _summarize(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of the functions of tracing, with all that they call; the longest first."""
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent = {
        f"{Path(file).stem}.{name}": round(float(row[3]), 4)
        for (file, _, name), row in stats.items()
        if "densebatch/tracing" in Path(file).as_posix()
    }
    return dict(sorted(spent.items(), key=lambda item: -item[1])[:16])
