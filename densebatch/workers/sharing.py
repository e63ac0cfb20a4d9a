"""One cluster's workers for several runs at once: each run has a lane, which is its executor.

A thread hands out the jobs of all lanes through one `DaskExecutor`. So the window of jobs in flight
is of all runs together, and a job that may kill its worker runs alone whosever the others are. The
jobs of a lane that was opened earlier go first; those of later ones take what it leaves idle. A
lane that is opened in front has few jobs, for which much of what comes next waits.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from densebatch.base.log import log_event, logged_with
from densebatch.workers.schedule import Job, Outcome, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from densebatch.workers.executors import DaskExecutor

log = logging.getLogger(__name__)

_LOOK_S = 0.3
_JOIN_S = 10.0
_LANES_OF_A_DEVICE = 3  # that are opened for a device that idles while others have work


class Lane:
    """The executor of one run of several, until the context is left; made by `SharedExecutor`.

    Attributes
    ----------
    name : of the run, for the names of its jobs in the scheduler and in the log
    workers, device_workers, stopping : as of `Executor`
    """

    def __init__(self, shared: SharedExecutor, name: str) -> None:
        self._shared = shared
        self.name = name
        self.stopping = False
        self.news: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self._shared.leave(self)

    @property
    def workers(self) -> int:
        """Processes that do jobs, of all lanes."""
        return self._shared.executor.workers

    @property
    def device_workers(self) -> int:
        """How many of them may use a GPU, where these are some of all."""
        return self._shared.executor.device_workers

    @property
    def running(self) -> list[Job]:
        """Jobs of this lane that are handed out now."""
        return self._shared.list_running(self)

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """Run jobs as `SerialExecutor.run` does; outcomes come in the order of completion.

        Parameters
        ----------
        jobs, done, shuffle
            As `SerialExecutor.run` has them.

        Yields
        ------
        Outcome
            One for each job, failed or not.

        Raises
        ------
        ValueError, InputError, DensebatchError
            As `DaskExecutor.run`; what ends the workers ends all lanes.
        KeyboardInterrupt
            After `SharedExecutor.abort`.
        """
        schedule = Schedule(jobs, done, shuffle, n_last=self.workers)
        left = len(jobs)
        self._shared.join(self, schedule)
        try:
            while left:
                # Asked before the queue is, which gets a job's outcome before it counts as back.
                has_ended = self.stopping and not self.running
                try:
                    found = self.news.get(timeout=0 if has_ended else _LOOK_S)
                except queue.Empty:
                    if has_ended:
                        return
                    continue
                if isinstance(found, BaseException):
                    raise found
                left -= 1
                yield found
        finally:
            self._shared.leave(self, schedule)


class SharedExecutor:
    """Hands the jobs of several lanes to the workers of one executor, until the context is left.

    Parameters
    ----------
    executor
        Used by nobody else.

    Attributes
    ----------
    error : what ended the workers, and so all lanes; None as long as they work
    """

    def __init__(self, executor: DaskExecutor) -> None:
        self.executor = executor
        self.error: BaseException | None = None
        self._lanes: list[Lane] = []
        self._schedules: dict[Lane, Schedule] = {}
        self._given: dict[str, tuple[Lane, Job]] = {}
        self._changing = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._hand_out, name="densebatch-lanes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.executor.nudge()
        self._thread.join(_JOIN_S)

    def open_lane(self, name: str, *, in_front: bool = False) -> Lane:
        """A lane for one more run, behind those that are open, or in front of them."""
        lane = Lane(self, name)
        with self._changing:
            self._lanes.insert(0 if in_front else len(self._lanes), lane)
        return lane

    @property
    def is_hungry(self) -> bool:
        """Whether workers idle, or soon will, unless another lane brings them jobs."""
        with self._changing:
            schedules = list(self._schedules.values())
            ready = sum(schedule.count_ready() for schedule in schedules)
            on_device = sum(schedule.count_ready(True) for schedule in schedules)
            n_lanes = len(self._lanes)
        devices = self.executor.device_workers
        return ready < self.executor.workers or (
            on_device < devices and n_lanes < _LANES_OF_A_DEVICE
        )

    def abort(self) -> None:
        """End all lanes now, without waiting for the jobs that are under way."""
        self._end(KeyboardInterrupt())

    def join(self, lane: Lane, schedule: Schedule) -> None:
        """Hand out jobs of a lane from now on."""
        with self._changing:
            if self.error is not None:
                raise self.error
            self._schedules[lane] = schedule
        self.executor.nudge()

    def leave(self, lane: Lane, schedule: Schedule | None = None) -> None:
        """Hand out no more jobs of a lane, and wait for those that are under way.

        What they write would otherwise come after the run has let its output go.

        Parameters
        ----------
        lane
            Of the run.
        schedule
            That the lane has come to the end of; nothing happens if it has another one by now.
        """
        with self._changing:
            if schedule is not None and self._schedules.get(lane) is not schedule:
                return
            self._schedules.pop(lane, None)
            while self.error is None and any(of is lane for of, _ in self._given.values()):
                self._changing.wait(_LOOK_S)
            if lane.stopping and lane in self._lanes:
                self._lanes.remove(lane)

    def list_running(self, lane: Lane) -> list[Job]:
        """Jobs of a lane that are handed out now."""
        with self._changing:
            return [job for of, job in self._given.values() if of is lane]

    def _hand_out(self) -> None:
        try:
            while not self._closed:
                for outcome in self.executor.run_waiting(self):
                    self._deliver(outcome)
        except BaseException as error:
            if not self._closed:
                log_event(log, "workers ended", logging.WARNING, reason=str(error))
                self._end(error)

    def _end(self, error: BaseException) -> None:
        with self._changing:
            if self.error is None:
                self.error = error
            self._closed = True
            for lane in self._lanes:
                lane.news.put(self.error)
            self._changing.notify_all()
        self.executor.nudge()

    def _deliver(self, outcome: Outcome) -> None:
        """Give a lane the outcome of a job that is done."""
        with self._changing:
            lane, job = self._given[outcome.job.name]
            lane.news.put(replace(outcome, job=job))
            del self._given[outcome.job.name]
            self._changing.notify_all()

    # What follows is what `DaskExecutor.run_waiting` calls, see `executors.Waiting`.

    @property
    def unfinished(self) -> int:
        """Above 0, for more may come, until it is closed."""
        return 0 if self._closed else 1

    def next(self, on_device: bool | None = None) -> Job | None:
        """Hand out a job of the first lane that has one."""
        with self._changing:
            for lane in self._lanes:
                schedule = self._schedules.get(lane)
                if schedule is None or lane.stopping:
                    continue
                job = schedule.next(on_device)
                if job is not None:
                    # Names are unique in a lane only.
                    given = replace(job, name=f"{job.name} of {lane.name}")
                    self._given[given.name] = lane, job
                    return given
        return None

    def put_back(self, job: Job) -> None:
        """Undo `next`."""
        with self._changing:
            lane, own = self._given.pop(job.name)
            schedule = self._schedules.get(lane)
            if schedule is not None:
                schedule.put_back(own)
            self._changing.notify_all()

    def finish(self, job: Job) -> None:
        """Note that a job is done; its lane gets the outcome from `_deliver`."""
        with self._changing:
            lane, own = self._given[job.name]
            schedule = self._schedules.get(lane)
            if schedule is not None:
                schedule.finish(own)

    def fail(self, job: Job, error: str) -> list[Outcome]:
        """Note that a job failed; its lane gets the outcomes if it is given up.

        Returns
        -------
        list of Outcome
            Empty, because the names in them are the lane's own.
        """
        with self._changing:
            lane, own = self._given.pop(job.name)
            schedule = self._schedules.get(lane)
            if schedule is not None:
                with logged_with(sample=lane.name):
                    for outcome in schedule.fail(own, error):
                        lane.news.put(outcome)
            self._changing.notify_all()
        return []
