"""Which tasks of a run are done, in a way that survives the death of any process.

A task is done when its record exists, still has the digest it was written with, and the files it
names still have the digests it states. Records are written after the data and appear whole
(written aside, synced, renamed), so there is no moment at which a record claims data that are not
there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.files import digest_file, write_atomic

if TYPE_CHECKING:
    from pathlib import Path


def _digest_record(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Journal:
    """Records of one run in one folder, a small JSON file per task."""

    folder: Path

    def _path(self, task: str) -> Path:
        return self.folder / f"{task}.json"

    def record(self, task: str, files: list[Path], facts: dict[str, Any]) -> dict[str, Any]:
        """State that a task is done: the digests of its files, and facts for the summary.

        Returns
        -------
        dict
            The facts as `done` will return them, which is as JSON keeps them.
        """
        root = self.folder.parent
        document = {
            "task": task,
            "files": {os.path.relpath(file, root): digest_file(file) for file in files},
            "facts": facts,
        }
        document = json.loads(json.dumps(document))
        text = json.dumps({**document, "digest": _digest_record(document)}, sort_keys=True)
        write_atomic(self._path(task), text.encode())
        kept: dict[str, Any] = document["facts"]
        return kept

    def list_files(self) -> set[str]:
        """Names, relative to the work folder, of all files that a record covers."""
        return {
            name
            for path in self.folder.glob("*.json")
            for name in json.loads(path.read_bytes())["files"]
        }

    def done(self, task: str) -> dict[str, Any] | None:
        """Facts of a finished task, or None if it must be run (again)."""
        try:
            document = json.loads(self._path(task).read_bytes())
            # A document whose digest fits is as `record` wrote it, so its parts are not checked.
            if document.pop("digest") != _digest_record(document) or document["task"] != task:
                return None
            root = self.folder.parent
            if any(digest_file(root / name) != old for name, old in document["files"].items()):
                return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        facts: dict[str, Any] = document["facts"]
        return facts
