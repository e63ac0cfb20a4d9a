"""Who writes an output: one driver at a time, told by a file with a heartbeat.

Tasks take no locks. The driver of a run keeps a small file beside the marker of its output (and,
where labels go into a slide, one in the slide), which says who it is, and changes it every few
seconds. Not all network file systems keep locks; all can create a file that must not exist.

Whether an owner lives is judged by what is seen to happen, because the clocks of two hosts differ:

- A process of this machine that is gone, or whose id belongs to another one now, is dead at once.
- A file that changes while it is watched has a living owner. Its rival is refused within seconds.
- A file that does not change for a minute of the watcher's own clock has none. An owner that was
  only suspended finds the other's name in the file when it goes on, and stops.

Two who take the same file over at the same time both write their names, wait, and look whose is
left. Whoever lost finds out at the next beat; until then both write the same bytes, which is waste.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import secrets
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import TypeAdapter, ValidationError

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BEAT_S = 3.0
"""An owner changes its file this often."""
SILENCE_S = 60.0
"""An owner that has not been heard for so long does not stand in the way."""
_GLANCE_S = 2.5 * BEAT_S  # after which a living owner must have been seen to beat
_LOOK_S = 0.2
_SETTLE_S = 0.3  # between writing one's name and looking whose is left
_TELL_S = BEAT_S + 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds an output, as its owner file tells.

    Attributes
    ----------
    token : of this one ownership
    out : the output folder, also where the file lies in a slide
    host, user, pid : of the driver
    machine : within which a process id means one process
    started : when that process began, in the system's own terms; a later process with the same id
        has another value
    since : ISO 8601, UTC by the host's clock, when the output was taken
    beat : counts the changes of the file
    """

    token: str
    out: str
    host: str
    user: str
    pid: int
    machine: str
    started: str
    since: str
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on host {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Whether its process id means a process of this machine."""
        return self.machine == name_machine()

    @property
    def is_alive(self) -> bool | None:
        """Whether its process runs; None if that cannot be told from here."""
        if not self.is_here:
            return None
        found = find_start(self.pid)
        if found is None:
            return False
        return found == self.started if found and self.started else None


_ADAPTER = TypeAdapter(Holder)


def read_holder(path: Path) -> Holder | None:
    """Who holds an output, None if nobody does or the file does not tell.

    Raises
    ------
    OSError
        If there is a file that cannot be read.
    """
    content = _read(path)
    return None if content is None else _parse(content)


def look_for_driver(path: Path) -> tuple[Holder | None, str | None]:
    """Who drives the run of an owner file, and whether it lives; writes nothing.

    Returns
    -------
    holder : Holder or None
        None if there is none, or the file does not tell.
    state : str or None
        "alive"; "dead"; "silent", if it is elsewhere and was not heard while it should have been;
        None if there is no driver.

    Raises
    ------
    OSError
        If there is a file that cannot be read.
    """
    first = _read(path)
    holder = None if first is None else _parse(first)
    if holder is not None and holder.is_alive is not None:
        return holder, "alive" if holder.is_alive else "dead"
    until = time.monotonic() + _GLANCE_S
    content = first
    while content == first and content is not None and time.monotonic() < until:
        time.sleep(_LOOK_S)
        content = _read(path)
    if content is None:
        return None, None
    return _parse(content), "silent" if content == first else "alive"


def find_start(pid: int) -> str | None:
    """When a process began.

    None if there is no such process (or only its exit code is left); "" if there is one of another
    user that the system hides.
    """
    try:
        # Not as seconds since the epoch, because these move when the clock is set.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return "" if _is_hidden(pid) else None
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else str(round(process.create_time()))
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ""


def _is_hidden(pid: int) -> bool:
    """Whether a process that /proc does not show is there all the same, as under `hidepid`."""
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def name_machine() -> str:
    """Name of what process ids are counted in: a boot of a host, and a container in it."""
    parts = [platform.node()]
    if sys.platform != "linux":  # hosts may be called alike
        parts.append(f"{uuid.getnode():x}")
    with contextlib.suppress(OSError):  # only Linux tells these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


class Ownership:
    """The right to write an output, from `acquire` to `release`.

    Parameters
    ----------
    out
        The output folder.

    Attributes
    ----------
    lost : why this is the owner no longer, None as long as it is
    """

    def __init__(self, out: Path) -> None:
        self._watches: dict[Path, _Watch] = {}
        self._held: list[Path] = []
        self._beaten_at: dict[Path, float] = {}
        self._beating = threading.Lock()
        self.lost: str | None = None
        self._me = Holder(
            token=secrets.token_hex(8),
            out=str(out),
            host=platform.node(),
            user=_name_user(),
            pid=os.getpid(),
            machine=name_machine(),
            started=find_start(os.getpid()) or "",
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )

    def refuse_living(self, place: Path) -> None:
        """Refuse an output whose owner is seen to live; takes seconds at most, and nothing.

        Parameters
        ----------
        place
            An owner file.

        Raises
        ------
        InputError
            Naming the owner.
        """
        until = time.monotonic() + _GLANCE_S
        while self._watch(place).look() == "unsure" and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def remove_dead(self, place: Path) -> None:
        """Remove the owner file of a dead process and what it left half written, where one can."""
        if self._watch(place).look() == "stale":
            with contextlib.suppress(OSError):
                for path in (place, *place.parent.glob(f".{place.name}.*.partial")):
                    path.unlink(missing_ok=True)

    def acquire(self, places: Sequence[Path], tell: Callable[[str], None]) -> None:
        """Become the owner, if need be after a minute in which nobody is heard.

        Parameters
        ----------
        places
            Owner files: of the folder, and of the slide if labels go into it.
        tell
            Called with a sentence if there is something to wait for.

        Raises
        ------
        InputError
            If another owner lives.
        OSError
            If a file cannot be written.
        """
        try:
            for path in places:
                self._take(path, self._watch(path), tell)
                self._beaten_at[path] = _read_clock()
                self._held.append(path)
        except BaseException:
            self.release()
            raise

    def _watch(self, path: Path) -> _Watch:
        """What was seen of a file so far counts."""
        return self._watches.setdefault(path, _Watch(path))

    def _take(self, path: Path, watch: _Watch, tell: Callable[[str], None]) -> None:
        start, told = time.monotonic(), False
        while True:
            state = watch.look()
            if state == "absent":
                if self._create(path):
                    return
            elif state == "stale":
                self._write(path)
                time.sleep(_SETTLE_S)
                if self._is_mine(path):
                    return
            else:
                if not told and time.monotonic() - start > _TELL_S:
                    told = True
                    tell(
                        f"{path.parent}: was left by {watch.holder or 'somebody unknown'}; "
                        f"waiting up to {SILENCE_S:.0f} s to see whether it is alive"
                    )
                time.sleep(_LOOK_S)

    def _content(self) -> bytes:
        return (json.dumps(asdict(self._me)) + "\n").encode()

    def _create(self, path: Path) -> bool:
        """Write the file if there is none."""
        try:
            file = path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self._content())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _write(self, path: Path) -> None:
        write_atomic(path, self._content())

    def _is_mine(self, path: Path) -> bool:
        holder = read_holder(path)
        return holder is not None and holder.token == self._me.token

    def beat(self) -> None:
        """Change the files, so that others see that this owner lives; notes if it is one no more.

        A disk that refuses is tried again at the next beat.
        """
        with self._beating:
            self._me = replace(self._me, beat=self._me.beat + 1)
            for path in self._held:
                if self.lost is None:
                    self._renew(path)

    def _renew(self, path: Path) -> None:
        try:
            if self._is_mine(path):
                self._write(path)
            elif self._may_have_been_taken(path) or not self._create(path):
                self.lost = (
                    f"{path.parent}: was taken over by {read_holder(path) or 'another run'}, "
                    f"because nothing was heard from this one for {SILENCE_S:.0f} s"
                )
                return
            self._beaten_at[path] = _read_clock()
        except OSError:  # of a full disk, say; tried again at the next beat
            if not path.parent.is_dir():
                self.lost = f"{path.parent}: is gone"

    def _may_have_been_taken(self, path: Path) -> bool:
        """Whether a file that is gone may be another's who has come and ended meanwhile.

        A file that somebody has removed under an owner that beats comes back.
        """
        return _read_clock() - self._beaten_at[path] > SILENCE_S - _GLANCE_S

    def check(self) -> None:
        """Make sure, by a look at the files, that this is still the owner.

        Raises
        ------
        DensebatchError
            If it is not.
        """
        self.beat()
        if self.lost is not None:
            raise DensebatchError(
                f"{self.lost}; this one stops here, and the same command continues the run once "
                "nobody else does"
            )

    def release(self) -> None:
        """Let others have the output."""
        with self._beating:
            for path in self._held:
                with contextlib.suppress(OSError):
                    if self._is_mine(path):
                        path.unlink()
                    for unfinished in path.parent.glob(f".{path.name}.*.partial"):
                        unfinished.unlink(missing_ok=True)  # left by owners that were killed
            self._held = []


class _Watch:
    """What has been seen of an owner file, and since when it has not changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holder: Holder | None = None
        self._content: bytes | None = None
        self._since = time.monotonic()

    def look(self) -> str:
        """Look once.

        Returns
        -------
        str
            "absent"; "stale" if its owner is dead or silent; "unsure" if more has to be seen.

        Raises
        ------
        InputError
            If the file has changed since an earlier look: its owner lives.
        """
        content, now = _read(self.path), time.monotonic()
        if content is None:
            self._content = None
            return "absent"
        self.holder = _parse(content)
        if self.holder is not None and self.holder.is_alive is False:
            return "stale"
        if self._content is None:
            self._content, self._since = content, now
        elif content != self._content:
            raise InputError(
                f"{self.path.parent}: is being written by another run"
                f"{self._describe_out()} ({self.holder or 'somebody unknown'}); accepted is "
                "another folder, or the same command once that one has ended"
            )
        return "stale" if now - self._since >= SILENCE_S else "unsure"

    def _describe_out(self) -> str:
        """Which output, where the file lies in a slide."""
        if self.holder is None or Path(self.holder.out) == self.path.parent:
            return ""
        return f" with the output {self.holder.out}"


def _read_clock() -> float:
    """Seconds, also of the time that this machine has slept."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(content: bytes) -> Holder | None:
    try:
        return _ADAPTER.validate_json(content)
    except (ValidationError, ValueError):
        return None


def _name_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return str(os.getuid())
