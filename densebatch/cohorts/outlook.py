"""What a cohort would do, slide by slide, without doing it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, describe_cause
from densebatch.cohorts.crew import size_crew
from densebatch.cohorts.record import Record
from densebatch.cohorts.together import find_limits
from densebatch.planning.engine_trial import estimate_seconds
from densebatch.planning.join_planner import name_options
from densebatch.planning.plan import FlowPlan
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import prepare
from densebatch.run.report import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from densebatch.cohorts.rows import Row
    from densebatch.planning.planner import Limits
    from densebatch.planning.settings import SegmentSettings


@dataclass(frozen=True)
class Outlook:
    """What a slide would take.

    Attributes
    ----------
    sample, slide : as of `Row`
    mpx : size of the slide
    network_mpx : what the network would see; None with a segmenter
    network_seconds : how long that takes with all workers, where it can be told
    worker_mb, disk_mb : memory of each worker, and room on the disk, that are needed; with
        compartments by all runs of the slide
    fingerprint : of the run
    reason : why it would fail; all but its name is None then
    """

    sample: str
    slide: str
    mpx: float | None = None
    network_mpx: float | None = None
    network_seconds: float | None = None
    worker_mb: int | None = None
    disk_mb: int | None = None
    fingerprint: str | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def look_ahead(
    rows: Sequence[Row],
    out: Path,
    settings: SegmentSettings,
    progress: Progress | None = None,
) -> Iterator[Outlook]:
    """Plan the slides of a cohort, one after the other.

    Parameters
    ----------
    rows, out, settings
        As of `drive_cohort`.
    progress
        Is told what the user should know.

    Yields
    ------
    Outlook
    """
    progress, out = progress or Progress(), out.absolute()
    workers = size_crew(rows, settings).workers
    limits = find_limits(rows, Record(out, rows), out, settings, progress)
    shared: dict[str, Any] = {} if settings.is_remote else {"workers": workers}
    for row in rows:
        try:
            yield _look(row, OutputFolder(out / row.sample), shared, limits, progress.note)
        except (DensebatchError, OSError) as error:
            yield Outlook(row.sample, str(row.slide), reason=describe_cause(error))


def _look(
    row: Row,
    folder: OutputFolder,
    shared: dict[str, Any],
    limits: tuple[Limits | None, ...] | None,
    note: Callable[[str], None],
) -> Outlook:
    def tell(text: str) -> None:
        note(f"{row.sample}: {text}")

    settings = row.read_settings().model_copy(update=shared)
    [run] = prepare([(row.slide, folder)], settings, limits=limits, note=tell)
    folder.compare(run.plan)
    for role, each in run.inner.items():
        for text in each.plan.notes:
            tell(f"{role}: {name_options(role, text)}")
    for text in run.plan.notes:
        tell(text)
    network_px, seconds = None, None
    runs = list(run.inner.values()) or [run]
    plans = [(each.plan, each.settings) for each in runs if isinstance(each.plan, FlowPlan)]
    if len(plans) == len(runs):
        network_px = sum(plan.network_px for plan, _ in plans)
        found = [estimate_seconds(plan, own, run.workers) for plan, own in plans]
        known = [each for each in found if each is not None]
        seconds = sum(known) if len(known) == len(found) else None
    return Outlook(
        row.sample,
        str(row.slide),
        mpx=round(run.plan.shape[0] * run.plan.shape[1] / 1e6, 3),
        network_mpx=None if network_px is None else round(network_px / 1e6, 3),
        network_seconds=None if seconds is None else round(seconds, 1),
        worker_mb=max(each.needs.worker_mb for each in (*run.inner.values(), run)),
        disk_mb=run.needs.disk_mb,
        fingerprint=run.plan.fingerprint,
    )
