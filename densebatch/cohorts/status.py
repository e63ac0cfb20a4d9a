"""How a cohort stands, told by its files alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.cohorts.record import read_record
from densebatch.run.folder import OutputFolder
from densebatch.run.owner import look_for_driver
from densebatch.run.status import RunStatus, read_status

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.cohorts.record import Entry
    from densebatch.run.owner import Holder

_AT_ONCE = 32  # slides that are asked; the driver of each may have to be watched for seconds


@dataclass(frozen=True)
class CohortStatus:
    """How a cohort stands.

    Attributes
    ----------
    out : the output folder
    entries : of its slides, as the record has them
    running : of slides that are worked on now, by their samples
    driver : who drives the cohort, or did last and left without a word; None if nobody
    driver_state : as of `RunStatus`
    """

    out: str
    entries: list[Entry]
    running: dict[str, RunStatus]
    driver: Holder | None
    driver_state: str | None

    @property
    def state(self) -> str:
        """`running`, `interrupted` (the same command continues), `partial` or `complete`."""
        if self.driver_state == "alive":
            return "running"
        states = {entry.state for entry in self.entries}
        if "waiting" in states:
            return "interrupted"
        return "partial" if states & {"failed", "partial"} else "complete"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "out": self.out,
            "state": self.state,
            "samples": [entry.to_dict() for entry in self.entries],
            "running": {name: found.to_dict() for name, found in self.running.items()},
        }


def read_cohort(out: Path) -> CohortStatus | None:
    """Look at the output folder of a cohort; writes nothing.

    Parameters
    ----------
    out
        Of a cohort in whatever state.

    Returns
    -------
    CohortStatus or None
        Within seconds; None if the folder has no record of a cohort.

    Raises
    ------
    InputError
        If its files cannot be read.
    """
    entries = read_record(out)
    if entries is None:
        return None
    try:
        driver, alive = look_for_driver(OutputFolder(out).owner)
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({error.strerror or error})") from error
    running: dict[str, RunStatus] = {}
    if alive == "alive":
        owned = [e.sample for e in entries if OutputFolder(out / e.sample).owner.exists()]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looked = pool.map(lambda sample: _read(out / sample), owned)
            running = {
                sample: found
                for sample, found in zip(owned, looked, strict=True)
                if found is not None and found.state == "running"
            }
    return CohortStatus(str(out), entries, running, driver, alive)


def _read(out: Path) -> RunStatus | None:
    """How a slide stands; None if that cannot be told at the moment."""
    try:
        return read_status(OutputFolder(out))
    except InputError:
        return None
