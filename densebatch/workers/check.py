"""What is asked of each worker of a running scheduler before it gets a task.

`ask` is called by the main process, `examine` by the worker. A worker that lacks densebatch could
not even be sent `examine`, so it is asked with a function of Python's own first.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import pickle
import stat
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, StoreError, describe_cause
from densebatch.workers.carry import call_pickled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_TIME_S = 2.0  # some file systems keep times to two seconds


@dataclass(frozen=True)
class SharedFile:
    """A file or folder that a worker has to see as this process does.

    Attributes
    ----------
    path : absolute
    size : bytes of a file; 0 for a folder
    mtime_s : when it was changed last; None if that does not matter
    what : it is called to the user
    """

    path: str
    size: int
    mtime_s: float | None
    what: str

    @classmethod
    def look(cls, path: Path, what: str, *, dated: bool = True) -> SharedFile:
        """A file as it is now.

        Raises
        ------
        OSError
            If it is not there.
        """
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):  # labels may be written into it meanwhile
            return cls(str(path), 0, None, what)
        return cls(str(path), found.st_size, found.st_mtime if dated else None, what)


@dataclass(frozen=True)
class Requirements:
    """What a worker must have to do the tasks of a run.

    Attributes
    ----------
    versions : of packages, by name; the same as here
    files : that it must see
    questions : functions and their arguments that raise a `DensebatchError` on a worker that does
        not do
    process_mb, task_mb, task : memory of a worker without a task, and of the largest task; 0 for
        unknown
    probe : a file in the folder that workers write to, which holds its own name; None for none
    """

    versions: dict[str, str] = field(default_factory=dict)
    files: tuple[SharedFile, ...] = ()
    questions: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = ()
    process_mb: int = 0
    task_mb: int = 0
    task: str = ""
    probe: str | None = None


@dataclass(frozen=True)
class Lack:
    """Why a worker cannot take part.

    Attributes
    ----------
    text : in words that follow the worker's name
    may_pass : whether it may be otherwise in a moment, as where a file system is slow to show what
        another machine has written
    """

    text: str
    may_pass: bool = False


@lru_cache(maxsize=1)
def digest_code() -> str:
    """Digest of the package's source: two builds may go by one version."""
    root = Path(__file__).parents[1]
    digest = blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ask(client: Any, address: str, threads: int, limit: int, needs: Requirements) -> list[Lack]:  # noqa: ANN401
    """Ask one worker of a scheduler for all that it must have.

    Parameters
    ----------
    client
        Of the scheduler.
    address
        The worker's.
    threads
        Tasks that it does at once.
    limit
        Its memory limit in bytes; 0 for none.
    needs
        What it must have.

    Returns
    -------
    list of Lack
        Empty if it can take part; of its scheduler too.
    """
    here = importlib.metadata.version("densebatch")
    there = _run(client, address, importlib.metadata.version, "densebatch")
    if isinstance(there, ImportError):  # PackageNotFoundError is one
        return [Lack("cannot import densebatch, which is not installed there")]
    if isinstance(there, BaseException):
        return [Lack(f"does not answer ({describe_cause(there)})", may_pass=True)]
    if there != here:
        return [Lack(f"has densebatch {there} and this process {here}")]
    unread = _ask_scheduler(client)
    if unread is not None:
        return [unread]
    found = _run(client, address, examine, needs, digest_code())
    if isinstance(found, OSError):
        return [Lack(f"does not answer ({describe_cause(found)})", may_pass=True)]
    if isinstance(found, BaseException):
        return [Lack(f"cannot import densebatch as it is here ({describe_cause(found)})")]
    lacks: list[Lack] = found[0]
    pause: float = found[1]
    wanted = needs.process_mb + threads * needs.task_mb
    if limit and needs.task_mb and wanted > pause * limit / 1e6:
        usable = f"{pause:.0%} of " if pause < 1 else ""
        many = f"{threads} threads" if threads > 1 else "a task"
        lacks.append(
            Lack(
                f"may use {usable}its memory limit of {limit // 10**6} MB, and {many} may need "
                f"{wanted} MB (to {needs.task}); start it with a larger --memory-limit or fewer "
                "--nthreads, or choose a smaller --tile"
            )
        )
    return lacks


def _run(client: Any, address: str, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
    """What a function returns or raises on a worker."""
    try:
        return client.run(function, *args, workers=[address], on_error="return")[address]
    except KeyError:  # the worker has left
        return OSError("it has left")
    except Exception as error:  # as where the scheduler is gone
        return error


def _ask_scheduler(client: Any) -> Lack | None:  # noqa: ANN401
    """What a scheduler lacks, which has to read what it hands on; any version will do."""
    try:
        client.run_on_scheduler(call_pickled, pickle.dumps((int, ())))
    except OSError as error:
        return Lack(
            f"has a scheduler that does not answer ({describe_cause(error)})", may_pass=True
        )
    except Exception as error:  # as what its process raises
        return Lack(
            f"has a scheduler that cannot import densebatch ({describe_cause(error)}); install it "
            "where the scheduler runs too"
        )
    return None


async def examine(needs: Requirements, code: str) -> tuple[list[Lack], float]:
    """Look, on a worker, for what it lacks.

    Parameters
    ----------
    needs
        What it must have.
    code
        `digest_code` of the main process.

    Returns
    -------
    lacks
        Empty if it can take part.
    share
        Of its memory limit, how much it uses before Dask pauses it.
    """
    # In a thread, because a slow file system must not keep the worker from telling that it lives.
    lacks = await asyncio.to_thread(lambda: list(_find_lacks(needs, code)))
    return lacks, _read_pause()


def _read_pause() -> float:
    import dask.config

    shares = [
        dask.config.get(f"distributed.worker.memory.{name}", False)
        for name in ("pause", "terminate")
    ]
    return min([float(share) for share in shares if share], default=1.0)


def _find_lacks(needs: Requirements, code: str) -> Iterator[Lack]:
    if digest_code() != code:
        version = importlib.metadata.version("densebatch")
        yield Lack(f"has other code than this process, though both are densebatch {version}")
    for name, here in needs.versions.items():
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Lack(f"lacks the package {name}")
            continue
        if there != here:
            yield Lack(f"has {name} {there} and this process {here}")
    for file in needs.files:
        yield from _compare_file(file)
    if needs.probe is not None:
        yield from _try_folder(Path(needs.probe))
    for function, args in needs.questions:
        try:
            function(*args)
        except DensebatchError as error:
            may_pass = isinstance(error, StoreError) and not error.is_denied
            yield Lack(str(error), may_pass=may_pass)
        except Exception as error:  # such as a library that cannot be loaded there
            yield Lack(f"cannot be asked for {function.__name__} ({describe_cause(error)})")


def _compare_file(file: SharedFile) -> Iterator[Lack]:
    try:
        there = SharedFile.look(Path(file.path), file.what, dated=file.mtime_s is not None)
    except OSError as error:
        yield Lack(f"does not see {file.what} {file.path} ({error.strerror})", may_pass=True)
        return
    if there.size != file.size:
        yield Lack(
            f"sees another file as {file.what} {file.path} (size {there.size}, here {file.size})",
            may_pass=True,
        )
    elif file.mtime_s is not None and there.mtime_s is not None:
        apart = abs(there.mtime_s - file.mtime_s)
        if apart > _TIME_S:
            yield Lack(
                f"sees another file as {file.what} {file.path} (changed {apart:.0f} s apart from "
                "the one here; a copy has to keep the time, as by cp -p)",
                may_pass=True,
            )


def write_probe(folder: Path) -> Path:
    """Write a file that a worker has to see, and to write beside.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = folder / f".probe-{uuid.uuid4().hex}"
    path.write_text(path.name)
    return path


def _try_folder(probe: Path) -> Iterator[Lack]:
    """Look for a file of the main process, and write one beside it."""
    try:
        seen = probe.read_text() == probe.name
    except OSError:
        seen = False
    if not seen:
        yield Lack(
            f"does not see the output folder {probe.parent} as this process does", may_pass=True
        )
        return
    own = probe.with_name(f"{probe.name}-{uuid.uuid4().hex}")
    try:
        own.write_text(own.name)
        own.unlink()
    except OSError as error:
        yield Lack(f"cannot write in the output folder {probe.parent} ({error.strerror})")


def join_lacks(lacks: Sequence[Lack]) -> str:
    """All that a worker lacks, as the end of a sentence."""
    return "; ".join(lack.text for lack in lacks)
