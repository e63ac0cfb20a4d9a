"""Run a command and watch it from outside: wall time, memory of all its processes, GPU use."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from densebatch.base.errors import DensebatchError
from densebatch.base.log import log_event
from densebatch.base.machine import make_gpu_meter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger(__name__)

_PERIOD_S = 0.1
_TAIL = 2000  # characters of a failed command's output that are told


@dataclass(frozen=True)
class Watched:
    """What a command took.

    Attributes
    ----------
    started : seconds since the epoch
    wall_s : from the start of its process to its end
    peak_mb : largest sum, over the command's processes, of resident memory (pages that processes
        share count for each), MB
    largest_mb : largest resident memory of one of its processes, MB
    gpu_share : mean share of time that the GPU was busy, 0..1; None if nobody knows
    returncode : of the command
    output : standard output and error
    """

    started: float
    wall_s: float
    peak_mb: float
    largest_mb: float
    gpu_share: float | None
    returncode: int
    output: str


class _Sampler:
    """Samples a process and its descendants in a thread, so that waiting for it stays exact."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._gpu = make_gpu_meter()
        self._busy: list[float] = []
        self._end = threading.Event()
        self.peak_mb = 0.0
        self.largest_mb = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._sample()
            if self._end.wait(_PERIOD_S):
                return

    def _sample(self) -> None:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return
        sizes = []
        for process in processes:
            try:
                sizes.append(process.memory_info().rss / 1e6)
            except psutil.Error:  # the process has ended meanwhile
                continue
        self.peak_mb = max(self.peak_mb, sum(sizes))
        self.largest_mb = max(self.largest_mb, *sizes, 0.0)
        if self._gpu is not None:
            self._busy.append(self._gpu())

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    @property
    def gpu_share(self) -> float | None:
        return sum(self._busy) / len(self._busy) if self._busy else None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards; `TMPDIR` decides where."""
    with tempfile.TemporaryDirectory(prefix="densebatch-") as name:
        yield Path(name)


@contextmanager
def _limited_to(cores: int | None) -> Iterator[None]:
    """Processes started within inherit this thread's processors."""
    if cores is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def watch_command(
    command: Sequence[str],
    *,
    cores: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = False,
) -> Watched:
    """Run a command to its end.

    Parameters
    ----------
    command
        Program and arguments.
    cores
        Processors that it may use, on Linux; None for all of this process's.
    env
        Its whole environment; None for this process's.
    cwd
        Where it runs.
    check
        Whether a command that fails is an error.

    Returns
    -------
    Watched
        What it took; without `check` also if it failed.

    Raises
    ------
    DensebatchError
        If it failed although `check` is set, with the end of what it said.
    """
    # The output goes to a file, because a pipe that nobody empties would stop the command.
    with tempfile.TemporaryFile() as output:
        started, begin = time.time(), time.perf_counter()
        with _limited_to(cores):
            process = subprocess.Popen(
                list(command), stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd
            )
        sampler = _Sampler(process.pid)
        try:
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            wall_s = time.perf_counter() - begin
            sampler.stop()
        output.seek(0)
        text = output.read().decode(errors="replace")
    watched = Watched(
        started=started,
        wall_s=wall_s,
        peak_mb=round(sampler.peak_mb, 1),
        largest_mb=round(sampler.largest_mb, 1),
        gpu_share=sampler.gpu_share,
        returncode=process.returncode,
        output=text,
    )
    log_event(
        log,
        "watched command ended",
        command=shlex.join(command),
        returncode=watched.returncode,
        wall_s=round(wall_s, 3),
        peak_mb=watched.peak_mb,
    )
    if check and watched.returncode:
        raise DensebatchError(
            f"`{' '.join(command)}` ended with {watched.returncode}: "
            f"{' '.join(text[-_TAIL:].split())}"
        )
    return watched
