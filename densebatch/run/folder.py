"""The output folder: whose it is, whether it can be used, and what an earlier run left in it.

A folder belongs to a run by its marker, which holds the run's plan. Order matters wherever a kill
may come in between: the marker is the first thing written and the last removed, and `run.json` is
the last thing written and the first removed, for it says that all the rest is there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import xxhash
from pydantic import ValidationError

from densebatch.base.errors import InputError
from densebatch.base.files import describe_trouble, is_disk_trouble, remove_folder, write_atomic
from densebatch.cells import labels
from densebatch.cells.kept import Tree, forget, forget_work, list_trees, work_tree
from densebatch.planning.plan import Plan, describe_difference, parse_plan
from densebatch.run.report import is_partial, read_report

if TYPE_CHECKING:
    from densebatch.base.errors import DensebatchError

_ACCEPTED = "accepted is a folder that can be created or written"
_SEGMENTATION = "segmentation.ome.zarr"
_RUNS = "runs"


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
        """What is removed when a run is complete: the state, and the folder of its tasks."""
        return self.path / "work"

    def tasks(self, plan: Plan) -> Path:
        """Where the tasks of a run leave flows, traces and records.

        Runs differ in the name, because tasks of an earlier one may outlive their driver on the
        workers of a cluster: what they write late lies where nobody reads it, and is removed.
        """
        return self.work / plan.fingerprint[:16]

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

    def inner(self, role: str) -> OutputFolder:
        """The folder of a run whose result is joined with another's to be this one."""
        return OutputFolder(self.path / _RUNS / role)

    @property
    def _markers(self) -> tuple[Path, Path]:
        """The marker, and the copy that a finished run has of it."""
        return self.marker, cast("Path", self._own_tree.copy_of(self.marker.name))

    @property
    def _own_tree(self) -> Tree:
        return list_trees(self.path, self.path, in_place=False)[0]

    @property
    def owner(self) -> Path:
        """Tells who writes the folder now, see `run.owner`; absent when nobody does."""
        return self.path / ".densebatch-owner.json"

    @property
    def state(self) -> Path:
        """How the session stands that writes the folder, or did last, see `run.status`."""
        return self.work / "state.json"

    def plan_path(self, plan: Plan) -> Path:
        """Where the tasks read the plan; the name changes with its content."""
        return self.tasks(plan) / f"plan-{plan.edition}.json"

    def root(self, plan: Plan) -> Path:
        """The OME-Zarr image group that gets the labels."""
        return Path(plan.slide.path) if plan.in_place else self.path / _SEGMENTATION

    @property
    def is_fresh(self) -> bool:
        """Whether `claim` found nothing of a run, so that all is yet to be done."""
        return self._fresh

    def trees(self, plan: Plan) -> list[Tree]:
        """Where the files of the result are, and the lists of their checksums."""
        return list_trees(self.path, self.root(plan), in_place=plan.in_place)

    def work_tree(self, plan: Plan) -> Tree:
        """As `trees`, of what tasks have left, if it stays."""
        return work_tree(self.path, self.tasks(plan))

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
            # What is complete may lie on a disk that is read only, for there is nothing to write.
            usable = usable or (self.marker.exists() and self.report.exists())
            if usable and existing == self.path:
                self.check_foreign()
        except OSError as error:
            raise self.unusable(error) from error
        if not usable:
            kind = "is not writable" if existing.is_dir() else "is a file"
            raise InputError(f"{self.path}: cannot be used as output folder, {existing} {kind}; "
                             f"{_ACCEPTED}")  # fmt: skip

    def check_foreign(self) -> bool:
        """Whether the folder holds a run; False if it is empty.

        Raises
        ------
        InputError
            If it holds somebody's files.
        OSError
            If it cannot be listed.
        """
        if any(path.exists() for path in self._markers):
            return True
        names = self._names()
        if names:
            raise InputError(
                f"{self.path}: holds {names[0]!r} and is no output of densebatch; "
                "accepted is a new or empty folder, or one of the same run"
            )
        return False

    def read_marker(self) -> Plan | None:
        """The plan of the run that the folder belongs to, if it can be read."""
        try:
            return self.require_marker()
        except (OSError, InputError):  # a marker that cannot be read is told by `compare`
            return None

    def require_marker(self) -> Plan:
        """The plan of the run that the folder belongs to, if need be from a copy of the marker.

        Raises
        ------
        InputError
            If the marker is damaged and there is no copy, or it is of another version.
        OSError
            If it cannot be read, or there is none.
        """
        contents = [path.read_bytes() for path in self._markers if path.is_file()]
        if not contents:
            raise FileNotFoundError(errno.ENOENT, "is missing", str(self.marker))
        found = next((marker for marker in map(_parse_marker, contents) if marker), None)
        if found is None:
            copies = [plan for plan in map(_read_copy, self.work.glob("*/plan-*.json")) if plan]
            if len({copy.fingerprint for copy in copies}) == 1:  # its slide may have been touched
                return copies[0]
            raise InputError(
                f"{self.marker}: is damaged (its content does not fit its digest), so that nobody "
                "knows which run the folder holds; choose another folder or give --restart"
            )
        told, writer = found
        try:
            return parse_plan(json.dumps(told))
        except (ValidationError, ValueError) as error:
            raise InputError(
                f"{self.path}: holds a run of another version of densebatch ({writer}), whose plan "
                f"this version ({version('densebatch')}) cannot read; use that version, choose "
                "another folder or give --restart"
            ) from error

    def compare(self, plan: Plan) -> None:
        """Refuse a folder that another run uses.

        Raises
        ------
        InputError
            With the first difference, or why it cannot be told.
        """
        try:
            earlier = self.require_marker()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self.unusable(error) from error
        if earlier.fingerprint != plan.fingerprint:
            raise InputError(
                f"{self.path}: holds another run: {describe_difference(earlier, plan)}; "
                "choose another folder or give --restart"
            )

    def may_need_workers(self) -> bool:
        """Whether tasks are likely to be left; False says that workers can wait until one is.

        All cells are numbered by the union of their keys, which is written when all tiles are
        traced: what is left after it is little, and nothing if the run was killed as it ended.
        """
        return not self.report.exists() and not any(self.work.glob("*/trace-*/keys.npy"))

    def read_complete(self, plan: Plan) -> dict[str, Any] | None:
        """The report of a run that left nothing to do, None if there is something."""
        report = read_report(self.path) if self.report.exists() else None
        if report is None or is_partial(report):
            return None
        try:
            labels.read_labels(self.root(plan))
            written = labels.read_run(self.root(plan)).get("fingerprint")
            if not written == report["fingerprint"] == plan.fingerprint:
                return None  # one of them has been replaced by another run's
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
            self.make()
            if restart and any(path.exists() for path in self._markers):
                self._clear()
            self._fresh = not self._names()
            for trash in self.path.glob(".*.deleted"):
                shutil.rmtree(trash)
            for unfinished in self.path.glob(".*.partial"):  # a killed writer leaves such files
                if unfinished.is_dir():  # an export
                    shutil.rmtree(unfinished)
                elif not unfinished.name.startswith(f".{self.owner.name}"):  # written all the time
                    unfinished.unlink(missing_ok=True)
            self.write_marker(plan)
            self._remove_late(plan)
            write_atomic(self.plan_path(plan), plan.to_json().encode())
        except OSError as error:
            self.release()
            raise self.unusable(error) from error

    def remove_work(self) -> None:
        """Remove what is of no use any more when a run is complete, as far as the disk lets us."""
        shutil.rmtree(self.work, ignore_errors=True)
        with suppress(OSError):
            forget_work(self.path)

    def _remove_late(self, plan: Plan) -> None:
        """Remove what tasks of an earlier run have written since its work folder was removed."""
        for path in [path for path in self.work.glob("*") if path.is_dir()]:
            if path != self.tasks(plan):
                remove_folder(path)

    def write_marker(self, plan: Plan) -> None:
        """Write whose the folder is, with a digest that tells damage from another version."""
        told = json.loads(json.dumps(asdict(plan)))
        document = {"densebatch": version("densebatch"), "digest": _digest_plan(told), "plan": told}
        write_atomic(self.marker, json.dumps(document, sort_keys=True).encode())

    def mend_marker(self) -> None:
        """Write the marker of a finished run as it was if it is damaged or gone, where one can."""
        with suppress(OSError):
            copy = self._markers[1].read_bytes()
            is_whole = self.marker.is_file() and _parse_marker(self.marker.read_bytes())
            if not is_whole and _parse_marker(copy):
                write_atomic(self.marker, copy)

    def make(self) -> None:
        """Create the folder, with its parents.

        Raises
        ------
        OSError
            If that cannot be done.
        """
        self._created += [p for p in (self.path, *self.path.parents) if not p.exists()]
        self.path.mkdir(parents=True, exist_ok=True)

    def release(self) -> None:
        """Undo `claim` if nothing of the run was there before: leave nothing behind."""
        if self._fresh:
            self._clear()
        self.remove_empty()

    def remove_empty(self) -> None:
        """Remove the folders that `make` created, as far as they are empty."""
        for path in self._created:
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return

    def _clear(self) -> None:
        """Remove what a run writes and nothing else."""
        self.report.unlink(missing_ok=True)
        forget(self.path)
        for folder in (self.path / _SEGMENTATION, self.work, self.path / _RUNS):
            remove_folder(folder)
        for path in (self.table, self.marker):
            path.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """What the folder holds, without the owner file and the leavings of killed writers."""
        names = (p.name for p in self.path.iterdir() if not p.match(".*.partial"))
        return sorted(name for name in names if name != self.owner.name)

    def unusable(self, error: OSError) -> DensebatchError:
        """What to raise if the folder cannot be used: the user's to change, or the disk's trouble.

        Parameters
        ----------
        error
            Of the system.
        """
        if is_disk_trouble(error):
            return describe_trouble(error, self.path)
        return InputError(
            f"{self.path}: cannot be used as output folder ({error.strerror or error}); {_ACCEPTED}"
        )


def _digest_plan(plan: Any) -> str:  # noqa: ANN401  as JSON has it
    """Digest of a plan as JSON, whatever version wrote it."""
    return xxhash.xxh3_128(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _parse_marker(content: bytes) -> tuple[Any, str] | None:
    """A plan as JSON and the version that wrote it, None if they are not as they were written.

    A marker whose form is unknown is of another version, and whole as far as this one knows.
    """
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        document = json.loads(content)
        if not {"plan", "densebatch", "digest"} & set(document):
            return None, "unknown"
        if document["digest"] == _digest_plan(document["plan"]):
            return document["plan"], str(document["densebatch"])
    return None


def _read_copy(path: Path) -> Plan | None:
    """The plan in a work folder, None unless it is as its file's name says."""
    try:
        plan = parse_plan(path.read_text())
    except (OSError, ValueError):
        return None
    return plan if path.stem == f"plan-{plan.edition}" else None
