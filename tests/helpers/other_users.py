"""Folders that other users reach; pytest's own are for the user who runs it alone."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_folder():
    """A temporary folder that all users may look into."""
    with tempfile.TemporaryDirectory(prefix="densebatch-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
