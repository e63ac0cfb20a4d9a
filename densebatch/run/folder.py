"""The output folder: whose it is, whether it can be used, and what an earlier run left in it.

A folder belongs to a run by its marker, which holds the run's plan. Order matters wherever a kill
may come in between: the marker is the first thing written and the last removed, and `run.json` is
the last thing written and the first removed, for it says that all the rest is there.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.cells import labels
from densebatch.planning.plan import Plan, describe_difference, parse_plan

_ACCEPTED = "accepted is a folder that can be created or written"
_SEGMENTATION = "segmentation.ome.zarr"


@dataclass
class OutputFolder:
    """The folder `path` and the places in it.

    Attributes
    ----------
    path : absolute
    """

    path: Path
    _created: list[Path] = field(default_factory=list, init=False)
    _fresh: bool = field(default=False, init=False)

    @property
    def work(self) -> Path:
        """Flows, traces and journal; removed when a run is complete."""
        return self.path / "work"

    @property
    def table(self) -> Path:
        """The cell table."""
        return self.path / "cells.parquet"

    @property
    def report(self) -> Path:
        """The report of the run."""
        return self.path / "run.json"

    @property
    def marker(self) -> Path:
        """Tells that the folder is ours, and which run's."""
        return self.path / ".densebatch.json"

    def plan_path(self, plan: Plan) -> Path:
        """Where the tasks read the plan; the name changes with its content."""
        return self.work / f"plan-{plan.fingerprint}.json"

    def root(self, plan: Plan) -> Path:
        """The OME-Zarr image group that gets the labels."""
        return Path(plan.slide.path) if plan.in_place else self.path / _SEGMENTATION

    def check(self) -> None:
        """Refuse, before a slide is read, what cannot be an output folder of any run.

        Raises
        ------
        InputError
            If the path is a file, cannot be created or written, or holds somebody's files.
        """
        try:
            existing = next(p for p in (self.path, *self.path.parents) if p.exists())
            usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
            names = self._names() if existing == self.path and existing.is_dir() else []
        except OSError as error:
            raise self._unusable(error) from error
        if not usable:
            kind = "is not writable" if existing.is_dir() else "is a file"
            raise InputError(f"{self.path}: cannot be used as output folder, {existing} {kind}; "
                             f"{_ACCEPTED}")  # fmt: skip
        if names and not self.marker.exists():
            raise InputError(
                f"{self.path}: holds {names[0]!r} and is no output of densebatch; "
                "accepted is a new or empty folder, or one of the same run"
            )

    def read_marker(self) -> Plan | None:
        """The plan of the run that the folder belongs to, if it can be read."""
        try:
            return parse_plan(self.marker.read_text())
        except (OSError, ValueError):  # a marker that cannot be read is refused by `compare`
            return None

    def compare(self, plan: Plan) -> None:
        """Refuse a folder that another run uses.

        Raises
        ------
        InputError
            With the first difference.
        """
        try:
            earlier = parse_plan(self.marker.read_text())
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error
        except (ValidationError, ValueError) as error:
            raise InputError(
                f"{self.path}: holds a run of another version of densebatch; choose another folder "
                "or give --restart"
            ) from error
        if earlier.fingerprint != plan.fingerprint:
            raise InputError(
                f"{self.path}: holds another run: {describe_difference(earlier, plan)}; "
                "choose another folder or give --restart"
            )

    def read_complete(self, plan: Plan) -> dict[str, Any] | None:
        """The report of a run that left nothing to do, None if there is something."""
        try:
            report: dict[str, Any] = json.loads(self.report.read_bytes())
        except (OSError, ValueError):
            return None
        if not report.get("complete") or report.get("failed_tiles") or report.get("unread"):
            return None
        if report.get("missing_px"):
            return None
        try:
            labels.read_labels(self.root(plan))
            if labels.read_run(self.root(plan)).get("fingerprint") != plan.fingerprint:
                return None  # another run has replaced the labels by its own
        except InputError:  # somebody has removed the labels
            return None
        return report if self.table.is_file() else None

    def claim(self, plan: Plan, *, restart: bool) -> None:
        """Make the folder this run's.

        Parameters
        ----------
        plan
            The run.
        restart
            Remove what an earlier run left.

        Raises
        ------
        InputError
            If the folder is another run's or somebody's, or cannot be written.
        """
        self.check()
        if not restart:
            self.compare(plan)
        try:
            self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            if restart and self.marker.exists():
                self._clear()
            self._fresh = not self._names()
            for unfinished in self.path.glob(".*.partial"):  # a killed writer leaves such files
                unfinished.unlink(missing_ok=True)
            write_atomic(self.marker, plan.to_json().encode())
            write_atomic(self.plan_path(plan), plan.to_json().encode())
        except OSError as error:
            self.release()
            raise self._unusable(error) from error

    def release(self) -> None:
        """Undo `claim` if nothing of the run was there before: leave nothing behind."""
        if self._fresh:
            self._clear()
        for path in self._created:
            try:
                path.rmdir()
            except OSError:
                return

    def _clear(self) -> None:
        """Remove what a run writes and nothing else."""
        for path in (self.report, self.table, self.path / _SEGMENTATION, self.work, self.marker):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """What the folder holds, without the leavings of a writer that was killed."""
        return sorted(p.name for p in self.path.iterdir() if not p.match(".*.partial"))

    def _unusable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be used as output folder ({error.strerror or error}); {_ACCEPTED}"
        )
