"""Whole runs, watched from outside: how fast, and what the time and the GPU are used for."""

from __future__ import annotations

import importlib
import json
import shutil
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.simulation.tissue import CHANNELS
from densebatch.studies.watch import watch_command
from gpu_steps.slides import write_mosaic
from gpu_steps.tell import tell, timed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

_SAMPLE_S = 0.05


class GpuSampler:
    """Notes how busy the first GPU is and how much of its memory is taken, from a thread."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []  # when, share, MB
        self._end = threading.Event()
        self._read = _open_gpu()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> GpuSampler:
        if self._read is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._read is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            if self._read is not None:
                self.samples.append((time.time(), *self._read()))


def _open_gpu() -> Callable[[], tuple[float, float]] | None:
    """What reads share and MB; None where NVIDIA's library or a GPU is missing."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

        def read() -> tuple[float, float]:
            share = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
            return float(share), pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6

        read()
    except Exception:  # no library, no driver, or a part of a GPU, which does not tell
        return None
    return read


@dataclass(frozen=True)
class Task:
    """One task of a run as its record tells: stage, begin and end (seconds of the epoch), parts."""

    stage: str
    begin: float
    end: float
    parts: dict[str, float]


def read_tasks(journal: Path) -> list[Task]:
    """The tasks of a run; a record is written when its task ends."""
    tasks = []
    for record in journal.glob("*.json"):
        facts = json.loads(record.read_text())["facts"]
        end = record.stat().st_mtime
        parts = {name: float(s) for name, s in facts["parts"].items()}
        tasks.append(Task(record.name.split("-")[0], end - facts["seconds"], end, parts))
    return tasks


def describe_tiles(tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """How many tiles were traced where, and the mean of their seconds, while others worked."""
    found = {}
    for where, part in (("device", "trace_on_device"), ("cpu", "trace")):
        seconds = [t.parts[part] for t in tasks if t.stage == "trace" and part in t.parts]
        if seconds:
            found[where] = {"tiles": len(seconds), "mean_s": round(statistics.mean(seconds), 3)}
    return found


def describe_gpu(
    samples: Sequence[tuple[float, float, float]], begin: float, end: float
) -> dict[str, float] | None:
    """Busy and idle share between two times, and the most MB taken; None if nobody looked."""
    inside = [sample for sample in samples if begin <= sample[0] <= end]
    if not inside:
        return None
    busy = statistics.mean(share for _, share, _ in inside)
    return {"busy_share": round(busy, 4), "idle_share": round(1 - busy, 4),
            "peak_mb": round(max(mb for _, _, mb in inside))}  # fmt: skip


def describe_stages(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage's Mpx/s with all of its workers busy, and what their seconds went to."""
    mpx = report["slide_px"] / 1e6
    workers = max(1, report["workers"])
    stages = {}
    for name, cost in report["stages"].items():
        n = max(1, report["device_workers"] or workers) if name == "predict" else workers
        stages[name] = {
            "workers": n,
            "tasks": cost["tasks"],
            "task_s": cost["seconds"],
            "mpx_per_s": round(mpx / cost["seconds"] * n, 2) if cost["seconds"] else None,
            "parts_s": cost["parts"],
            "unnamed_s": round(cost["seconds"] - sum(cost["parts"].values()), 3),
        }
    stages["number"]["mpx_per_s_of_its_wall"] = round(mpx / report["seconds"]["number"], 2)
    return stages


def run_whole(options: argparse.Namespace) -> None:
    """The command as a user types it, in a process of its own, watched from outside."""
    slide = write_mosaic(options.side, options.work)
    out = options.work / ("flows" if options.keep else "out")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "densebatch", "segment", str(slide), str(out),
               "--membrane", CHANNELS[0], "--model", options.model, "--backend", options.backend,
               "--keep-flows"]  # fmt: skip
    if options.device == "cpu":  # a GPU is found by itself, which takes less time than to be asked
        command += ["--device", "cpu"]
    with GpuSampler() as gpu:
        watched = watch_command(command, check=True)
    report = json.loads((out / "run.json").read_text())
    tasks = read_tasks(next((out / "work").glob("*/journal")))
    mpx = report["slide_px"] / 1e6
    speed = mpx / watched.wall_s
    end = watched.started + watched.wall_s
    predicts = [task for task in tasks if task.stage == "predict"]
    network = (min(t.begin for t in predicts), max(t.end for t in predicts))
    tell(
        mpx=mpx,
        mpx_per_s=round(speed, 3),
        cells=report["cells"],
        cells_per_s=round(report["cells"] / watched.wall_s),
        failed_tiles=len(report["failed_tiles"]),
        devices=report["devices"],
        workers=report["workers"],
        device_workers=report["device_workers"],
        wall_s=round(watched.wall_s, 3),
        seconds=report["seconds"],
        outside_of_run_s=round(watched.wall_s - report["seconds"]["total"], 3),
        first_patch_begins_s=round(network[0] - watched.started, 3),
        first_patch_s=round(min(t.end for t in predicts) - watched.started, 3),
        last_patch_s=round(network[1] - watched.started, 3),
        stages=describe_stages(report),
        tiles_traced=describe_tiles(tasks),
        gpu=describe_gpu(gpu.samples, watched.started, end),
        gpu_while_predicting=describe_gpu(gpu.samples, *network),
        gpu_share_as_watched=watched.gpu_share,
        peak_mb=watched.peak_mb,
        largest_process_mb=watched.largest_mb,
        bytes_read=report["bytes_read"],
        bytes_written=report["bytes_written"],
    )
    if not options.keep:
        with timed("remove_s"):  # the work folder's part is what a user's run ends with
            shutil.rmtree(out)
    if report["devices"] != [options.device]:
        raise SystemExit(f"the network ran on {report['devices']}, not on {options.device}")
    busy = "" if not gpu.samples else f", GPU busy {statistics.mean(s[1] for s in gpu.samples):.0%}"
    tell(headline=f"{speed:.2f} Mpx/s, {report['cells']} cells{busy}")
