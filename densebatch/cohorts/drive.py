"""Segment the slides of a cohort: `drive_cohort`, beneath `cohorts.segment`.

Each slide is a run of its own (`run.segment.run_slide`) with a driver of its own, in a thread; all
share the workers. One slide is surveyed at a time, and no more are open than keep the workers busy:
those under way and the next. Where this process does the tasks itself, one slide comes after the
other.

The driver of the cohort owns OUTDIR and hears signals: the first lets the tasks of all slides that
are under way end, the second ends everything at once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError, describe_cause
from densebatch.base.files import refuse_address, sentences_for_disk
from densebatch.base.log import log_event, logged_with
from densebatch.base.names import count_of, quote_names
from densebatch.cohorts.crew import Crew, Place, size_crew
from densebatch.cohorts.progress import RowProgress
from densebatch.cohorts.record import Entry, Record, describe_result
from densebatch.cohorts.rows import RECORD
from densebatch.cohorts.together import find_limits
from densebatch.models.model import find_model
from densebatch.run.driver import Driver
from densebatch.run.engine import check_engine
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress
from densebatch.run.segment import run_slide
from densebatch.segmenters.find import find_segmenter
from densebatch.workers.scheduler import check_scheduler

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from densebatch.cohorts.rows import Row
    from densebatch.planning.planner import Limits
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.segment import SegmentResult
    from densebatch.workers.schedule import Job

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_END_S = 5.0  # for slides to let their outputs go after the second Ctrl-C
_FEW = 2  # slides under way, or on the way there, at least
_STOP = "a signal"


@dataclass(frozen=True)
class CohortResult:
    """What became of a cohort.

    Attributes
    ----------
    out : output folder
    entries : of its slides, in their order
    """

    out: Path
    entries: tuple[Entry, ...]

    def count(self, state: str) -> int:
        """How many slides are in a state, see `Entry`."""
        return sum(entry.state == state for entry in self.entries)


@dataclass(eq=False)
class _Run:
    """A slide under way."""

    row: Row
    place: Place
    driver: Driver | None = None
    thread: threading.Thread | None = None


def drive_cohort(
    rows: Sequence[Row],
    out: Path,
    settings: SegmentSettings,
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> CohortResult:
    """Segment slides, each into a folder of its own, and write what became of them.

    Parameters
    ----------
    rows
        Slides, and settings that are each one's own. No two have one name.
    out
        Folder for their folders: absent, empty, or of a cohort.
    settings
        Of all rows as to workers, cluster and network; the other settings are the rows'.
    restart
        Remove what earlier runs left of these slides and begin again.
    progress
        Receives stages and tasks as they happen.

    Returns
    -------
    CohortResult
        Slides that failed do not raise.

    Raises
    ------
    InputError
        For a folder, scheduler or network that cannot be used, whatever the slides.
    DensebatchError
        If the workers are lost for good, or another process took the folder over.
    KeyboardInterrupt
        For Ctrl-C and SIGTERM, as `segment`. The same call continues.
    """
    progress = progress or Progress()
    refuse_address(out)
    folder = OutputFolder(out.absolute())
    with Driver(progress) as driver:
        driver.refuse_living(folder)
        _check_folder(folder)
        _check_networks(rows)
        check_scheduler(settings.scheduler, progress.note)
        size = size_crew(rows, settings)
        check_engine(settings, size.largest)
        driver.own(folder)
        record = Record(folder.path, rows, restart=restart)
        with Crew(settings, size, progress.note) as crew:
            limits = find_limits(
                rows, record, folder.path, settings, progress, crew, restart=restart
            )
            with sentences_for_disk(folder.path):
                record.write()
            _tell_others(record, folder.path, progress)
            log_event(
                log, "cohort begun", out=str(folder.path), slides=len(rows), workers=size.workers
            )
            cohort = _Cohort(folder.path, settings, crew, record, progress, limits, restart=restart)
            with driver.drive(cohort):
                cohort.run(rows)
    result = CohortResult(folder.path, tuple(record.entries))
    log_event(
        log, "cohort ended", done=result.count("done"), partial=result.count("partial"),
        failed=result.count("failed"),
    )  # fmt: skip
    return result


def _tell_others(record: Record, out: Path, progress: Progress) -> None:
    """Tell of samples of earlier commands."""
    if record.others:
        progress.note(
            f"{out}: {count_of(len(record.others), 'sample')} of earlier commands "
            f"({quote_names(record.others)}) {'is' if len(record.others) == 1 else 'are'} not "
            "among these and left alone"
        )


def _check_networks(rows: Sequence[Row]) -> None:
    """Refuse models and segmenters that cannot be used, each of which is looked at once.

    Raises
    ------
    InputError
        As `find_model` and `find_segmenter`.
    """
    for segmenter in {row.settings.segmenter for row in rows}:
        if segmenter is not None:
            find_segmenter(segmenter)
    for model in {row.settings.model for row in rows if row.settings.segmenter is None}:
        find_model(model)


def _check_folder(folder: OutputFolder) -> None:
    """Refuse a folder that holds something else than runs.

    Raises
    ------
    InputError
        Naming what it holds.
    """
    path = folder.path
    if folder.marker.exists():
        raise InputError(
            f"{path}: is the output of one slide; accepted is a folder of which each slide gets "
            "one inside"
        )
    if (path / RECORD).exists() or not path.is_dir():
        if not path.is_dir():
            folder.check()
        return
    try:
        for inside in sorted(path.iterdir()):
            if not (inside.name.startswith(".") or OutputFolder(inside).marker.exists()):
                raise InputError(
                    f"{path}: holds {inside.name!r} and is no output of densebatch; accepted is a "
                    "new or empty folder, or one of earlier slides"
                )
    except OSError as error:
        raise folder.unusable(error) from error


class _Cohort:
    """The slides under way and those to come; for the driver, one that has tasks (`Stoppable`)."""

    def __init__(
        self,
        out: Path,
        settings: SegmentSettings,
        crew: Crew,
        record: Record,
        progress: Progress,
        limits: tuple[Limits | None, ...] | None,
        *,
        restart: bool,
    ) -> None:
        self._out = out
        self._limits = limits
        self._crew = crew
        self._record = record
        self._progress = progress
        self._restart = restart
        # A slide's own choice of their number would go by its tasks alone.
        self._shared: dict[str, Any] = {} if settings.is_remote else {"workers": crew.size.workers}
        self._in_turn = not (settings.is_remote or crew.size.workers)
        self._runs: list[_Run] = []
        self._ended: queue.SimpleQueue[tuple[_Run, dict[str, Any] | None]] = queue.SimpleQueue()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether no more tasks are handed out."""
        return self._stopping

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._stopping = value
        for run in list(self._runs):
            if run.driver is not None:
                run.driver.stop(_STOP)

    @property
    def running(self) -> list[Job]:
        """Tasks of all slides that are handed out now."""
        return [job for run in list(self._runs) for job in run.place.running]

    def run(self, rows: Iterable[Row]) -> None:
        """Segment slides; what becomes of them is in the record.

        Raises
        ------
        InputError, DensebatchError
            If there are no workers any more.
        """
        if self._in_turn:
            for row in rows:
                if self._stopping:
                    return
                run = self._add(row)
                self._note(run, self._segment(run))
        else:
            self._run_in_threads(deque(rows))

    def _run_in_threads(self, waiting: deque[Row]) -> None:
        """Have slides under way at once, each in a thread, until all have ended."""
        try:
            while waiting or self._runs:
                while waiting and not self._stopping and self._takes_another():
                    self._start(waiting.popleft())
                # A slide that is yet being surveyed has nothing to lose.
                if self._stopping and not any(run.place.has_tasks for run in self._runs):
                    return
                with suppress(queue.Empty):
                    self._note(*self._ended.get(timeout=_LOOK_S))
                self._crew.check()
        except BaseException:
            self._crew.abort()
            until = time.monotonic() + _END_S
            for run in self._runs:
                if run.thread is not None and run.place.has_tasks:
                    run.thread.join(max(0.0, until - time.monotonic()))
            raise

    def _start(self, row: Row) -> None:
        """Begin a slide in a thread of its own."""
        run = self._add(row)
        run.thread = threading.Thread(
            target=lambda: self._ended.put((run, self._segment(run))),
            name=f"densebatch-{row.sample}",
            daemon=True,  # in a survey, nobody waits for it after Ctrl-C
        )
        run.thread.start()

    def _takes_another(self) -> bool:
        """Whether the survey of one more slide may begin."""
        if any(not run.place.has_tasks for run in self._runs):
            return False
        n = len(self._runs)
        return n < _FEW or (n < self._crew.most_slides and self._crew.is_hungry)

    def _add(self, row: Row) -> _Run:
        run = _Run(row, Place(self._crew, row.sample))
        self._runs.append(run)
        with sentences_for_disk(self._out):
            self._record.begin(row.sample)
        return run

    def _note(self, run: _Run, found: dict[str, Any] | None) -> None:
        """Write what became of a slide; None if it was interrupted."""
        self._runs.remove(run)
        if found is None or (self._crew.error is not None and found["state"] == "failed"):
            return
        with sentences_for_disk(self._out):
            entry = self._record.take(run.row.sample, **found)
        told = entry.reason or f"{entry.cells} cells, {entry.seconds:.1f} s"
        self._progress.note(f"{entry.sample}: {entry.state} ({told})")
        log_event(
            log, "slide ended", logging.INFO if entry.state == "done" else logging.WARNING,
            **entry.to_dict(),
        )  # fmt: skip

    def _segment(self, run: _Run) -> dict[str, Any] | None:
        """Segment a slide; what its `Entry` tells, None if it was interrupted.

        Raises
        ------
        KeyboardInterrupt
            Where this process does the tasks, for the second Ctrl-C.
        """
        row, began = run.row, time.monotonic()
        try:
            return describe_result(self._run_slide(run))
        except KeyboardInterrupt:
            if self._in_turn and not self._stopping:
                raise
            return None
        except Exception as error:  # of whatever kind, the others go on
            if not isinstance(error, DensebatchError):
                log_event(
                    log, "slide failed unexpectedly", logging.ERROR, sample=row.sample,
                    traceback=traceback.format_exc(),
                )  # fmt: skip
            return {
                "state": "failed",
                "seconds": round(time.monotonic() - began, 3),
                "reason": describe_cause(error),
            }

    def _run_slide(self, run: _Run) -> SegmentResult:
        """Segment a slide; errors as of `run_slide`."""
        row = run.row
        with (
            logged_with(sample=row.sample),
            RowProgress(self._progress, row.sample) as progress,
            Driver(progress) as driver,
            run.place,
        ):
            run.driver = driver
            if self._stopping:
                driver.stop(_STOP)
            return run_slide(
                row.slide,
                OutputFolder(self._out / row.sample),
                row.read_settings().model_copy(update=self._shared),
                driver,
                run.place,
                progress,
                limits=self._limits,
                restart=self._restart,
            )
