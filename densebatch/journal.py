"""Which tasks of a run are done, in a way that survives the death of any process.

A task is done when its record exists and the files it names still have the digests it states.
Records are written after the data and appear whole (written aside, synced, renamed), so there is
no moment at which a record claims data that are not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent, old or whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def digest_file(path: Path) -> str:
    """blake2b of a file's bytes; of a missing file, the word `absent`.

    A zarr unit that holds fill values only has no file: its absence is then the stated content.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except FileNotFoundError:
        return "absent"


@dataclass(frozen=True)
class Journal:
    """Records of one run in one folder, a small JSON file per task."""

    folder: Path

    def _path(self, task: str) -> Path:
        return self.folder / f"{task}.json"

    def record(self, task: str, files: list[Path], facts: dict[str, Any]) -> dict[str, Any]:
        """State that a task is done: the digests of its files, and facts for the summary."""
        root = self.folder.parent
        document = {
            "task": task,
            "files": {os.path.relpath(file, root): digest_file(file) for file in files},
            "facts": facts,
        }
        write_atomic(self._path(task), json.dumps(document, sort_keys=True).encode())
        return facts

    def done(self, task: str) -> dict[str, Any] | None:
        """Facts of a finished task, or None if it must be run (again)."""
        try:
            document = json.loads(self._path(task).read_bytes())
            files, facts = document["files"], document["facts"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        root = self.folder.parent
        for name, digest in files.items():
            if digest_file(root / name) != digest:
                return None
        return dict(facts)

    def forget(self, prefix: str) -> None:
        """Drop the records of all tasks whose name begins with `prefix`."""
        for path in self.folder.glob(f"{prefix}*.json"):
            path.unlink(missing_ok=True)
