"""Check the results of a cohort, and mend them: `verify` and `repair` for each of its slides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, describe_cause
from densebatch.cohorts.progress import RowProgress
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.cohorts.record import Entry
    from densebatch.run.report import Progress
    from densebatch.upkeep.verify import Verification


@dataclass
class CohortVerification:
    """What was found of the slides of a cohort.

    Attributes
    ----------
    out : output folder
    looked_at : by sample, of slides that are done or partial
    unread : by sample, why a result could not be looked at or made again
    unfinished : samples that are yet to be done
    failed : samples that have no result, as the record says
    """

    out: Path
    looked_at: dict[str, Verification] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether each slide has its result, or failed, and nothing is wrong with any result."""
        right = all(found.is_right for found in self.looked_at.values())
        return right and not self.unread and not self.unfinished

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "out": str(self.out),
            "ok": self.is_right,
            "samples": {name: found.to_dict() for name, found in self.looked_at.items()},
            "unread": self.unread,
            "unfinished": self.unfinished,
            "failed": self.failed,
        }


def verify_cohort(
    out: Path,
    entries: list[Entry],
    progress: Progress,
    *,
    mend: bool = False,
    workers: int | None = None,
) -> CohortVerification:
    """Check the result of each slide, one after the other.

    Parameters
    ----------
    out
        Output folder of the cohort.
    entries
        Of its record.
    progress
        Receives stages and tasks as they happen.
    mend
        Make again what is damaged, see `repair`.
    workers
        As of `repair`; or threads, as of `verify`.
    """
    result = CohortVerification(out)
    for entry in entries:
        if entry.state == "waiting":
            result.unfinished.append(entry.sample)
        elif entry.state == "failed":
            result.failed.append(entry.sample)
        else:
            try:
                with RowProgress(progress, entry.sample) as told:
                    if mend:
                        found = repair(out / entry.sample, workers=workers, progress=told)
                    else:
                        found = verify(out / entry.sample, threads=workers or None, progress=told)
            except DensebatchError as error:
                result.unread[entry.sample] = describe_cause(error)
            else:
                result.looked_at[entry.sample] = found
    return result
