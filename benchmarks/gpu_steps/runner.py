"""Steps within a budget of seconds: each a process of its own, the record whole after each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from densebatch.base.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).absolute().parents[2]
_END_S = 5.0  # of the budget, for ending a step that does not end
_LAST_LINES = 15


@dataclass(frozen=True)
class Step:
    """One thing to measure, in a process of its own.

    Attributes
    ----------
    name : unique
    command : prints what it finds as JSON objects, one a line; other lines are ignored
    estimate_s : seconds that it takes, as far as is known beforehand
    like : an earlier step and a factor: once that is done, the factor times its seconds is the
        estimate
    needs : steps without which this one makes no sense
    memory_mb, disk_mb : that must be free
    """

    name: str
    command: tuple[str, ...]
    estimate_s: float
    like: tuple[str, float] | None = None
    needs: tuple[str, ...] = ()
    memory_mb: float = 0.0
    disk_mb: float = 0.0

    def estimate(self, outcomes: Mapping[str, Mapping[str, Any]]) -> float:
        """Seconds that the step takes, as far as is known after the `outcomes` of others."""
        if self.like is not None:
            name, factor = self.like
            if outcomes[name]["state"] == "done":
                return factor * float(outcomes[name]["seconds"])
        return self.estimate_s


def find_obstacle(
    step: Step, outcomes: Mapping[str, Mapping[str, Any]], left_s: float, work: Path
) -> str | None:
    """Why a step cannot begin, in words; None if it can.

    Parameters
    ----------
    step
        The next one.
    outcomes
        Of all steps, by name.
    left_s
        Seconds that are left of the budget.
    work
        Folder whose disk is written to.
    """
    for name in step.needs:
        if outcomes[name]["state"] != "done":
            return f"needs {name}, which is {outcomes[name]['state']}"
    needed_s = step.estimate(outcomes)
    if needed_s > left_s:
        return f"takes about {needed_s:.0f} s and {max(0.0, left_s):.0f} s are left"
    free = {
        "memory": (step.memory_mb, psutil.virtual_memory().available / 1e6),
        "disk": (step.disk_mb, shutil.disk_usage(work).free / 1e6),
    }
    for what, (needed_mb, free_mb) in free.items():
        if needed_mb > free_mb:
            return f"takes about {needed_mb:.0f} MB of {what} and {free_mb:.0f} MB are free"
    return None


def run_step(step: Step, limit_s: float, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a step's command; end it, and all that it started, when its time is up.

    Parameters
    ----------
    step
        What to run.
    limit_s
        Seconds that it may take.
    env
        Its environment; None for this process's.

    Returns
    -------
    dict
        `state` (done or failed), `seconds`, `values` that it told, also before it failed; and of a
        failed step the `reason` and its `last_lines`.
    """
    begin = time.monotonic()
    # files, since a pipe that nobody empties would stop the command
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        process = subprocess.Popen(
            step.command, stdout=said, stderr=complained, cwd=ROOT, env=env, start_new_session=True
        )
        reason = None
        try:
            if process.wait(limit_s):
                reason = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"was ended after {limit_s:.0f} s"
        finally:
            if process.returncode != 0:
                # also what a program that crashed has left behind, which would hold the GPU
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # a driver may hold it
                    process.wait(_END_S)
        texts = []
        for file in (said, complained):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    outcome = {
        "state": "done" if reason is None else "failed",
        "seconds": round(time.monotonic() - begin, 2),
        "values": read_values(texts[0]),
    }
    if reason is not None:
        lines = "\n".join(texts).splitlines()[-_LAST_LINES:]
        outcome |= {"reason": reason, "last_lines": lines}
    return outcome


def read_values(text: str) -> dict[str, Any]:
    """What a step told: the JSON objects among its lines, the later ones over the earlier."""
    values: dict[str, Any] = {}
    for line in text.splitlines():
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                values |= found
    return values


def run_steps(
    steps: Sequence[Step],
    record: Path,
    about: Mapping[str, Any],
    seconds: float,
    work: Path,
    env: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run what fits into the time; the record is written before and after every step.

    Parameters
    ----------
    steps
        In order of worth.
    record
        JSON file: `about`, the budget, the seconds spent, and each step's outcome.
    about
        What the record begins with.
    seconds
        Budget of all steps together. A sixteenth of it is what a step may take beyond twice its
        estimate.
    work
        Folder that the steps write to.
    env
        Of the steps; None for this process's.

    Returns
    -------
    dict
        Outcome by step: its `state` (done, skipped or failed), and see `run_step`.
    """
    started = time.monotonic()
    outcomes: dict[str, dict[str, Any]] = {step.name: {"state": "waiting"} for step in steps}

    def write() -> None:
        spent = round(time.monotonic() - started, 1)
        document = {**about, "budget_s": seconds, "spent_s": spent, "steps": outcomes}
        write_atomic(record, (json.dumps(document, indent=1) + "\n").encode())

    for step in steps:
        left_s = seconds - _END_S - (time.monotonic() - started)
        obstacle = find_obstacle(step, outcomes, left_s, work)
        if obstacle is not None:
            outcomes[step.name] = {"state": "skipped", "reason": obstacle}
        else:
            estimate_s = step.estimate(outcomes)
            outcomes[step.name] = {"state": "running"}
            write()
            outcome = run_step(step, min(left_s, 2 * estimate_s + seconds / 16), env)
            outcomes[step.name] = {**outcome, "estimate_s": round(estimate_s, 1)}
        write()
        print(describe_outcome(step.name, outcomes[step.name]), flush=True)
    return outcomes


def describe_outcome(name: str, outcome: Mapping[str, Any]) -> str:
    """One line, and of a failed step its last lines below it."""
    took = f" in {outcome['seconds']:.1f} s" if "seconds" in outcome else ""
    why = outcome.get("reason") or outcome["values"].get("headline", "")
    first = f"{name}: {outcome['state']}{took}, {why}"
    return "\n    ".join([first, *outcome.get("last_lines", ())])
