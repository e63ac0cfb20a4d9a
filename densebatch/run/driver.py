"""The driver of runs: it owns their outputs, can be interrupted, and tells files how it goes.

Between tasks and beside them a thread renews the owner files (`owner`) and writes the state of the
run (`status`). The first Ctrl-C, or SIGTERM, lets the tasks that are handed out end and hands out
no more; the second Ctrl-C ends everything at once, and so does the first where no task is under
way. Either way the journal knows what is done, and the same command continues.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from densebatch.base.log import log_event
from densebatch.base.names import count_of
from densebatch.run.owner import BEAT_S, Ownership
from densebatch.run.status import RunState, write_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from densebatch.run.folder import OutputFolder
    from densebatch.run.report import Progress
    from densebatch.workers.executors import Stoppable

log = logging.getLogger(__name__)

_END = "end"
_JOIN_S = 10.0


class InterruptedRunError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the tasks that were under way have ended; the run can continue."""


class Driver:
    """Holds outputs and listens to signals, until the context is left.

    Parameters
    ----------
    progress
        Is told what the user should know.

    Notes
    -----
    Signals are heard in the main thread only, and only those that nobody else listens to: a
    program that has handlers of its own, or ignores a signal, keeps it so.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._owned: dict[Path, Ownership] = {}
        self._folders: list[OutputFolder] = []
        self._writing = threading.Lock()
        self._states: list[tuple[OutputFolder, RunState]] = []
        self._executor: Stoppable | None = None
        self._asked: str | None = None
        self._handlers: dict[int, Any] = {}
        # A simple queue may be put to in a signal handler; an event may lock up there.
        self._wake: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pulse, daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = {
                signal.SIGINT: (signal.default_int_handler,),
                signal.SIGTERM: (signal.SIG_DFL, signal.default_int_handler),
            }
            for number, replaced in heard.items():
                if signal.getsignal(number) in replaced:
                    self._handlers[number] = signal.signal(number, self._hear)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._wake.put(_END)
        self._thread.join(_JOIN_S)  # it may hang with a disk that does
        try:
            self._is_lost()
            for _, state in self._states:
                state.end(error)
            self._write_states()
        finally:
            for owned in self._owned.values():
                owned.release()
            for folder in self._folders:
                folder.remove_empty()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def stop(self, reason: str) -> None:
        """Have the tasks under way end and no more handed out, as the first signal does.

        Parameters
        ----------
        reason
            Why, for `InterruptedRunError`.

        Notes
        -----
        May be called in any thread, and in a signal handler.
        """
        self._asked = reason
        executor = self._executor
        if executor is not None:
            executor.stopping = True

    def _hear(self, number: int, _: FrameType | None) -> None:
        """Handle a signal: ask for a stop, or stop now."""
        again = self._asked is not None and number == signal.SIGINT
        if self._executor is None or again:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number).name
        self._executor.stopping = True
        self._wake.put(self._asked)

    def _pulse(self) -> None:
        """Beat and write the state, now and then and when a signal came."""
        while True:
            try:
                reason = self._wake.get(timeout=BEAT_S)
            except queue.Empty:
                reason = ""
            if reason == _END:
                return
            executor = self._executor
            if reason and executor is not None:
                n = len(executor.running)
                log_event(log, "stop asked", signal=reason, running=n)
                with contextlib.suppress(Exception):  # of a terminal that is gone
                    self._progress.note(
                        f"interrupted, with {count_of(n, 'task')} running: "
                        "tasks under way are finished first; Ctrl-C stops now"
                    )
            if self._is_lost() and executor is not None:
                executor.stopping = True
            self._write_states()

    def _is_lost(self) -> bool:
        """Beat; whether an output is not this driver's any more."""
        every = list(self._owned.values())
        for owned in every:
            owned.beat()
        return any(owned.lost for owned in every)

    def _write_states(self) -> None:
        """Write how the sessions stand, into outputs that are still this driver's."""
        with self._writing:
            for folder, state in self._states:
                owned = self._owned.get(folder.path)
                if owned is not None and owned.lost:
                    continue
                with contextlib.suppress(OSError):  # of a full disk, which ends no run
                    write_state(folder.work, state)

    def refuse_living(self, folder: OutputFolder) -> None:
        """Refuse, before anything is planned, an output that another run is seen to write.

        Raises
        ------
        InputError
            Naming the owner.
        """
        try:
            self._ownership(folder).refuse_living(folder.owner)
        except OSError as error:
            raise folder.unusable(error) from error

    def remove_dead(self, folder: OutputFolder) -> None:
        """Remove what a driver that was killed as its run ended left of its ownership."""
        self._ownership(folder).remove_dead(folder.owner)

    def own(self, folder: OutputFolder, slide: Path | None = None) -> None:
        """Become the owner of an output until the context is left.

        Parameters
        ----------
        folder
            That gets the output; made if need be.
        slide
            The OME-Zarr that labels are written into, if they are.

        Raises
        ------
        InputError
            If another run writes it, or it cannot be written.
        """
        places = [folder.owner, *([slide / folder.owner.name] if slide is not None else [])]
        try:
            folder.make()
            self._ownership(folder).acquire(places, self._progress.note)
        except OSError as error:
            raise folder.unusable(error) from error
        log_event(log, "output owned", files=[str(place) for place in places])

    def _ownership(self, folder: OutputFolder) -> Ownership:
        if folder.path not in self._owned:
            self._folders.append(folder)
        return self._owned.setdefault(folder.path, Ownership(folder.path))

    def watch(self, folder: OutputFolder, tile_px: int) -> RunState:
        """The state of a run, which this thread fills and the other writes into the work folder."""
        state = RunState(tile_px)
        with self._writing:
            self._states.append((folder, state))
        return state

    def unwatch(self, folder: OutputFolder) -> None:
        """Remove the state of a run whose report tells all that it does, and has a checksum."""
        with self._writing:
            self._states = [pair for pair in self._states if pair[0] is not folder]
            with contextlib.suppress(OSError):
                folder.state.unlink(missing_ok=True)

    @contextmanager
    def drive(self, executor: Stoppable) -> Iterator[None]:
        """Within, a signal asks for a stop instead of stopping.

        Raises
        ------
        InterruptedRunError
            At the end, if there was a signal.
        DensebatchError
            At the end, if an output has got another owner.
        """
        self._executor = executor
        if self._asked is not None:  # by `stop`, when no task was under way
            executor.stopping = True
        try:
            yield
        finally:
            self._executor = None
        if self._asked is not None:
            raise InterruptedRunError(f"{self._asked}; the same command continues the run")
        self.check()

    def check(self) -> None:
        """Make sure that the outputs are still owned; errors as `Ownership.check`."""
        for owned in self._owned.values():
            owned.check()
