"""What scheduling costs: processor time and memory of driver and scheduler, and workers kept busy.

    python benchmarks/scheduling.py --tasks 100000 --sleep-tasks 40

A scheduler and a few worker processes are started on this machine, as on a cluster. First many
jobs that do nothing run through `workers.executors.DaskExecutor`, as a run's do, and what the
driver and the scheduler spend is divided by their number. Then jobs that sleep for half a second
run on 2 to 32 simulated workers, which are threads of four processes at most: they only sleep, so
that two cores do. The share of the time that the threads slept is the efficiency; starting is not
counted. Last, so many finished tasks are recorded, with a file of 4 KiB each, and `run.session`
reads and checks them as it does when a run is continued.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from densebatch.run.session import Step, read_records
from densebatch.stages.predict import PredictGroup
from densebatch.stages.work import Work
from densebatch.studies.benchmark_record import describe_machine, describe_versions
from densebatch.workers.cluster import open_executor
from densebatch.workers.schedule import Job
from densebatch.workers.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESSES = 4  # at most, for the workers
_SLEEP_S = 0.5
_WORKERS = (2, 4, 8, 16, 32)


def measure_cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def start_cluster(workers: int, folder: Path) -> Iterator[tuple[Scheduler, int]]:
    """A scheduler with so many threads of workers; yields it and the number of its process."""
    dask = [sys.executable, "-m", "dask"]
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    processes = min(workers, _PROCESSES)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", str(file)], **quiet,
    )  # fmt: skip
    while not file.exists():
        time.sleep(0.1)
    others = [
        subprocess.Popen(
            [*dask, "worker", "--scheduler-file", str(file), "--no-nanny", "--no-dashboard",
             "--nthreads", str(workers // processes)], **quiet,
        )
        for _ in range(processes)
    ]  # fmt: skip
    time.sleep(5)
    try:
        yield Scheduler(file=file), scheduler.pid
    finally:
        for process in (*others, scheduler):
            process.kill()
            process.wait()


def measure_cost(n_tasks: int, folder: Path) -> dict[str, Any]:
    """Processor time and memory for so many jobs that do nothing, on four workers."""
    jobs = [Job(f"task-{k}", time.sleep, (0,)) for k in range(n_tasks)]
    with start_cluster(4, folder) as (scheduler, pid), open_executor(0, scheduler) as executor:
        before = measure_cpu_s(os.getpid()), measure_cpu_s(pid)
        start = time.monotonic()
        done = 0
        for outcome in executor.run(jobs):
            assert outcome.error is None
            done += 1
        wall_s = time.monotonic() - start
        driver_s = measure_cpu_s(os.getpid()) - before[0]
        scheduler_s = measure_cpu_s(pid) - before[1]
        driver_mb = psutil.Process().memory_info().rss / 1e6
        scheduler_mb = psutil.Process(pid).memory_info().rss / 1e6
    assert done == n_tasks
    return {
        "tasks": n_tasks,
        "driver_ms_per_task": round(driver_s / n_tasks * 1e3, 3),
        "scheduler_ms_per_task": round(scheduler_s / n_tasks * 1e3, 3),
        "tasks_per_s": round(n_tasks / wall_s, 1),
        "driver_mb": round(driver_mb),
        "scheduler_mb": round(scheduler_mb),
    }


def measure_efficiency(workers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Share of the time that simulated workers sleep, as their tasks do."""
    jobs = [Job(f"task-{k}", time.sleep, (_SLEEP_S,)) for k in range(workers * rounds)]
    with start_cluster(workers, folder) as (scheduler, _), open_executor(0, scheduler) as executor:
        assert executor.pool.threads == workers
        list(executor.run(jobs[: 2 * workers]))
        start = time.monotonic()
        assert all(outcome.error is None for outcome in executor.run(jobs))
        wall_s = time.monotonic() - start
    return {"workers": workers, "efficiency": round(rounds * _SLEEP_S / wall_s, 4)}


def measure_resume(n_tasks: int, folder: Path) -> dict[str, Any]:
    """How long the records of finished tasks and their files take to be read and checked."""
    work = Work(str(folder / "work/run/plan.json"), 1024)
    work.flows.mkdir(parents=True)
    work.journal.folder.mkdir()
    steps = [Step(PredictGroup(work, k, 0, 1), "predict", 0) for k in range(n_tasks)]
    for step in steps:
        file = work.flows / f"{step.task.name}"
        file.write_bytes(os.urandom(4096))
        work.journal.record(step.task.name, [file], {"patches": 0})
    start = time.monotonic()
    done = sum(facts is not None for facts in read_records(steps))
    assert done == n_tasks
    return {"tasks": n_tasks, "seconds": round(time.monotonic() - start, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--sleep-tasks", type=int, default=40, help="for each simulated worker")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    load = round(psutil.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        record = {
            "command": shlex.join(["python", "benchmarks/scheduling.py", *sys.argv[1:]]),
            "machine": describe_machine(),
            "versions": describe_versions(),
            "load_before": load,
            "cost": measure_cost(arguments.tasks, folder),
            "sleep_s": _SLEEP_S,
            "efficiency": [measure_efficiency(n, arguments.sleep_tasks, folder) for n in _WORKERS],
            "resume": measure_resume(arguments.tasks, folder),
        }
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
