"""Files: written whole or not at all, and digested; and the folder of caches."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import platformdirs
import xxhash

from densebatch.base.errors import DensebatchError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

CACHE_VARIABLE = "DENSEBATCH_CACHE"
_PARSING = threading.Lock()


_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENXIO}


# Also as a path that was made of an address has it, which keeps one of its slashes.
_ADDRESS = re.compile(r"(?P<schemes>[A-Za-z][\w+.-]+(?:::[A-Za-z][\w+.-]+)*):/")
_SECRETS = re.compile(r"(?<=:/)/?.*@|[?#].*", re.DOTALL)  # of an address


def refuse_address(path: Path) -> None:
    """Refuse the address of something elsewhere, given for a path, unless there is such a path.

    Raises
    ------
    InputError
        Naming the scheme.
    """
    found = _ADDRESS.match(str(path))
    if found is not None and not path.exists():
        raise InputError(
            f"{hide_secrets(path)}: is an address ({found['schemes']}://) and no path; accepted "
            "are files and folders that this machine sees, such as a mounted share; only OME-Zarr "
            "slides are read from s3://, gs:// and https:// too"
        )


def hide_secrets(path: Path) -> str:
    """A path as a text; if it is an address, without user, password, query and fragment."""
    is_address = _ADDRESS.match(str(path)) is not None
    return _SECRETS.sub("...", str(path)) if is_address else str(path)


def is_disk_trouble(error: OSError) -> bool:
    """Whether a disk is full or fails, which another path or permission does not mend."""
    return error.errno in _DISK_TROUBLE


def describe_trouble(error: OSError, folder: Path) -> DensebatchError:
    """What to raise when an error of the system ends a run: one sentence, with the file it met.

    Parameters
    ----------
    error
        Of a write or read of this process.
    folder
        Of the run, for an error that names no file.
    """
    where = error.filename if isinstance(error.filename, str | Path) else folder
    return DensebatchError(
        f"{where}: cannot be used any more ({error.strerror or error}); nothing that was done is "
        "lost, and the same command continues once it can"
    )


@contextmanager
def sentences_for_disk(folder: Path) -> Iterator[None]:
    """Within this context, an error of the system becomes a sentence, see `describe_trouble`.

    Errors of connections, which are the system's as well, stay as they are.

    Parameters
    ----------
    folder
        Of the run.

    Raises
    ------
    DensebatchError
        Instead of an `OSError` of a file or a disk.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise describe_trouble(error, folder) from error


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """An array from a NumPy file, in any thread.

    NumPy parses the head of the file as Python, and threads of Python 3.11 that do so at once may
    get "AST constructor recursion depth mismatch". So they do it one after the other.

    Parameters
    ----------
    path
        The file, without pickled objects.
    mmap_mode
        `r` maps the file rather than reading it.
    """
    import numpy as np  # which `--help` need not wait for

    with _PARSING:
        array: NDArray[Any] = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    return array


def load_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Named arrays from a NumPy file, in any thread; see `load_array`.

    Parameters
    ----------
    path
        The file.
    names
        Of the arrays that are read; None for all.
    """
    import numpy as np

    with _PARSING, np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in (stored.files if names is None else names)}


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent, old or whole.

    A process that dies on the way may leave `.NAME.*.partial` beside it, which nobody reads.

    Raises
    ------
    OSError
        With the file's name, also where the system names none, as for a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Workers on two hosts may have the same process id, and threads of one process always do.
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{unique}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, into which somebody may still write.

    It is moved out of the way in one step first: who goes on writing makes it anew, under its own
    name, and does not disturb the removal.

    Raises
    ------
    OSError
        If that cannot be done.
    """
    trash = path.with_name(f".{path.name}.deleted")
    if trash.is_dir():  # of a process that was killed here
        shutil.rmtree(trash)
    if path.is_dir():
        path.rename(trash)
        shutil.rmtree(trash)


def digest_file(path: Path) -> str:
    """XXH3 (128 bits) of a file's bytes; of a missing file, the word `absent`.

    Such a digest detects accidents, not forgery, and costs a twentieth of a cryptographic one. A
    zarr chunk or shard that holds fill values only has no file, and `absent` is then right.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except FileNotFoundError:
        return "absent"


@contextmanager
def no_empty_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Within this context, folders may be made; after a failure those still empty are removed.

    Parameters
    ----------
    folders
        That the context will make, with their parents. What exists already is left alone.
    """
    made = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    try:
        yield
    except BaseException:
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                path.rmdir()
        raise


def digest(path: Path, name: str | None = None) -> str:
    """SHA-256 of a file that a user gave or fetched; see `digest_file` for those of a run.

    Parameters
    ----------
    path
        Of the file.
    name
        What the user knows it by, for the error; its path if None.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{name or path}: cannot be read ({error.strerror})") from error


def cache_folder() -> Path:
    """`$DENSEBATCH_CACHE`, else `densebatch` in what the system uses for caches.

    An unknown user without a home, as in a container, has a folder of the temporary one instead.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    with suppress(RuntimeError):  # "~" is nowhere
        if chosen:
            return Path(chosen).expanduser()
        found = Path(platformdirs.user_cache_dir("densebatch", appauthor=False))
        if found.is_absolute():  # some versions return a folder called "~"
            return found
    return Path(tempfile.gettempdir()) / f"densebatch-{os.getuid()}"


def check_free(path: Path) -> None:
    """Refuse a path at which something is.

    Raises
    ------
    InputError
        Saying so.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: exists; remove it or choose another path")


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """Within this context, write a file or folder beside a path, which takes its name at the end.

    Parameters
    ----------
    path
        Of the file or folder.

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
            what = f"{path}: cannot be written ({error.strerror or error})"
            if is_disk_trouble(error):
                raise DensebatchError(f"{what}; nothing of it is left behind") from error
            raise InputError(f"{what}; accepted is a path that can be written") from error
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
        with suppress(OSError):
            path.unlink()
