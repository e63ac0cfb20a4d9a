"""One normalisation for all slides of a cohort: `--normalise together`.

The tissue of every slide is counted, by the survey that each has by itself, and the counts are
added; the percentiles of the sums become 0 and 1 in all slides. Counts are integers, so the order
of the slides does not matter. Slides are read one after the other, by workers where there are many,
and no pixels are kept. What is debris, and what is shown apart as rare bright cells, stays each
slide's own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.log import log_event
from densebatch.base.names import count_of, quote_names
from densebatch.planning.plan import FlowPlan
from densebatch.planning.planner import (
    count_low_bits,
    draft_plan,
    list_percentiles,
    refine_draft,
    survey_channels,
)
from densebatch.regions.tissue import SlideTissue
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import MANY_READS, count_reads, map_bands
from densebatch.run.report import Progress
from densebatch.survey.percentiles import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from densebatch.cohorts.crew import Crew
    from densebatch.cohorts.record import Record
    from densebatch.cohorts.rows import Row
    from densebatch.planning.plan import Plan
    from densebatch.planning.planner import Limits
    from densebatch.planning.scale import DiameterEstimate
    from densebatch.planning.settings import SegmentSettings
    from densebatch.survey.reader import BandMap

    _Seen = tuple[SlideTissue | None, DiameterEstimate | None]

log = logging.getLogger(__name__)

_STAGE = "survey together"


@dataclass(frozen=True)
class Together:
    """Bounds of several slides together.

    Attributes
    ----------
    channels : names of those that the network or the segmenter sees
    limits : pixel values of each that become 0 and 1; None for one without tissue
    slides : how many slides they are of
    digest : of all that they depend on
    """

    channels: tuple[str, ...]
    limits: tuple[Limits | None, ...]
    slides: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """For the cohort's record."""
        return asdict(self)


@dataclass(frozen=True)
class _Kind:
    """What slides of a batch must have in common."""

    channels: tuple[str, ...]
    dtype: str
    percentiles: tuple[float, float]

    def __str__(self) -> str:
        return f"the channels {quote_names(self.channels)} of {self.dtype}"


def find_limits(
    rows: Sequence[Row],
    record: Record,
    out: Path,
    settings: SegmentSettings,
    progress: Progress,
    crew: Crew | None = None,
    *,
    restart: bool = False,
) -> tuple[Limits | None, ...] | None:
    """What becomes 0 and 1 in all slides, if that is to be one for all.

    Parameters
    ----------
    rows, out, progress, crew, restart
        As of `survey_together`.
    record
        Of the cohort, which is told.
    settings
        Of the command, which say whether.

    Returns
    -------
    tuple or None
        As of `survey_plan`; None if each slide has its own.
    """
    if settings.normalise == "slide":
        record.normalise = None
        return None
    found = survey_together(rows, out, progress, record.normalise, crew, restart=restart)
    record.normalise = None if found is None else found.to_dict()
    return None if found is None else found.limits


def survey_together(
    rows: Sequence[Row],
    out: Path,
    progress: Progress,
    known: dict[str, Any] | None,
    crew: Crew | None = None,
    *,
    restart: bool = False,
) -> Together | None:
    """Find the bounds of all slides of a cohort together.

    Parameters
    ----------
    rows
        Of the cohort. Those that cannot be opened, or not be surveyed, do not count.
    out
        Its output folder.
    progress
        Is told of each slide that was read.
    known
        What an earlier command has found, as `Together.to_dict` has it; taken as it is if all that
        it depends on is the same.
    crew
        Whose workers read, if there are many; it has no tasks yet.
    restart
        What folders hold does not count.

    Returns
    -------
    Together or None
        None if no slide could be surveyed.

    Raises
    ------
    InputError
        If slides differ in their channels, or the type of their pixels.
    DensebatchError
        If a slide cannot be read for a reason that may pass: the bounds would not be those of all,
        and would be kept.
    """
    kind: _Kind | None = None
    first = ""
    identities = []
    usable = []
    n_reads = 0
    seen: dict[str, _Seen] = {}
    for row, draft, earlier in _draft_all(rows, out, seen, restart=restart):
        own = _describe(draft)
        kind, first = (own, row.sample) if kind is None else (kind, first)
        if own != kind:
            raise InputError(
                f"--normalise together: {row.sample} has {own} and {first} has {kind}; accepted "
                "are slides that have the same channels and type of pixels, and one model"
            )
        usable.append(row)
        n_reads += count_reads(draft)
        identities.append(_identify(draft, earlier))
    if kind is None:
        return None
    digest = _digest(kind, identities)
    if known is not None and known.get("digest") == digest:
        limits = tuple(None if pair is None else (pair[0], pair[1]) for pair in known["limits"])
        return Together(kind.channels, limits, len(usable), digest)
    pools = [Pool(kind.percentiles, np.dtype(kind.dtype)) for _ in kind.channels]
    progress.stage(_STAGE, len(usable), 0)
    surveyed: dict[str, list[bool]] = {}
    with _lend(crew, n_reads) as elsewhere:
        for row, draft, earlier in _draft_all(usable, out, seen, restart=restart):
            try:
                surveys = survey_channels(draft, earlier, elsewhere=elsewhere)
            except InputError:  # its row fails in its turn
                continue
            # A slide that is constant tells nothing of how bright tissue is.
            counts = [survey.bounds.high > survey.bounds.low for survey in surveys]
            for pool, survey, does_count in zip(pools, surveys, counts, strict=True):
                if does_count:
                    pool.add(survey.tissue)
            surveyed[row.sample] = counts
            progress.advance(_STAGE, draft.shape[0] * draft.shape[1])
        wanted = [pool.wanted for pool in pools]
        if any(bins.size for bins in wanted):
            for row in [row for row in usable if row.sample in surveyed]:
                draft, earlier = _draft(row, out, seen, restart=restart)
                found_low = count_low_bits(draft, earlier, wanted, elsewhere)
                for pool, low_bits, does_count in zip(
                    pools, found_low, surveyed[row.sample], strict=True
                ):
                    if does_count:
                        pool.add_low_bits(low_bits)
    found = Together(
        kind.channels, tuple(pool.find_limits() for pool in pools), len(surveyed), digest
    )
    told = ", ".join(
        f"{name} {pair[0]:g} to {pair[1]:g}"
        for name, pair in zip(found.channels, found.limits, strict=True)
        if pair is not None
    )
    progress.note(
        f"normalised together: {told} becomes 0 to 1 in {count_of(found.slides, 'slide')}"
    )
    log_event(log, "slides surveyed together", **found.to_dict())
    return found


@contextmanager
def _lend(crew: Crew | None, n_reads: int) -> Iterator[BandMap | None]:
    """Workers that read the slides; None if there are too few, or too little to read."""
    if crew is None or n_reads < MANY_READS:
        yield None
        return
    crew.begin(())
    with crew.for_survey("all slides", crew.size.largest) as executor:
        yield None if executor is None else map_bands(executor, Progress())


def _draft_all(
    rows: Sequence[Row], out: Path, seen: dict[str, _Seen], *, restart: bool
) -> Iterator[tuple[Row, Plan, Plan | None]]:
    """Drafts of the slides that can be opened, one after the other, with what their runs began.

    `seen` keeps tissue and diameters that are found.
    """
    for row in rows:
        try:
            draft, earlier = _draft(row, out, seen, restart=restart)
        except (InputError, OSError):  # its row fails in its turn
            continue
        yield row, draft, earlier


def _draft(
    row: Row, out: Path, seen: dict[str, _Seen], *, restart: bool
) -> tuple[Plan, Plan | None]:
    """As `_draft_all`, of one slide."""
    earlier = None if restart else OutputFolder(out / row.sample).read_marker()
    settings = row.read_settings()
    draft = draft_plan(row.slide, settings)
    draft = refine_draft(row.slide, settings, draft, earlier, *seen.get(row.sample, ()))
    seen[row.sample] = _recall(draft)
    return draft, earlier


def _recall(draft: Plan) -> _Seen:
    """What was found on a slide for its draft."""
    tissue = None if draft.tissue is None else SlideTissue(draft.tissue, draft.region)
    return tissue, draft.estimate if isinstance(draft, FlowPlan) else None


def _describe(draft: Plan) -> _Kind:
    names = tuple(bounds.name for bounds in draft.seen_channels)
    return _Kind(names, draft.slide.dtype, list_percentiles(draft))


def _identify(draft: Plan, earlier: Plan | None) -> str:
    """What a slide's counts depend on."""
    rescale = draft.rescale if isinstance(draft, FlowPlan) else None
    seen = () if earlier is None else earlier.seen_channels
    left_out = [asdict(bounds)["unread"] for bounds in seen if bounds.unread]
    channels = [bounds.channel for bounds in draft.seen_channels]
    told = [draft.slide.identity, draft.slide.path, channels, rescale, draft.mask_debris, left_out]
    if draft.region is not None:
        told.append(draft.region.digest)
    return json.dumps(told)


def _digest(kind: _Kind, identities: Sequence[str]) -> str:
    versions = {name: version(name) for name in ("densebatch", "numpy")}
    told = json.dumps([asdict(kind), sorted(identities), versions], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
