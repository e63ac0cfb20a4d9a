"""Where an export is written: it appears whole, or not at all, and replaces nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.files import describe_trouble, is_disk_trouble, no_empty_folders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def check_free(path: Path) -> None:
    """Refuse a path at which something is.

    Raises
    ------
    InputError
        Saying so.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: exists; remove it or choose another path with -o")


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """Within this context, write a file or folder beside a path, which takes its name at the end.

    Parameters
    ----------
    path
        Of the export.

    Yields
    ------
    Path
        Where to write; nothing is there.

    Raises
    ------
    InputError
        If something is at the path, or its folder cannot be written.
    DensebatchError
        If the disk is full or fails.
    """
    check_free(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    with no_empty_folders([path.parent]):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            check_free(path)
            partial.rename(path)
        except OSError as error:
            _remove(partial)
            if is_disk_trouble(error):
                raise describe_trouble(error, path) from error
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error}); choose another path with "
                "-o"
            ) from error
        except BaseException:
            _remove(partial)
            raise


def _flush(path: Path) -> None:
    """Have the disk keep a file, or all files of a folder, before it takes its name."""
    for file in (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else (path,):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
