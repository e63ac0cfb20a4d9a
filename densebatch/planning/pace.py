"""How long a run will take: from what one took on this machine before, or from a trial.

A run that was done in one session, with workers of its own, leaves its pace: seconds of a worker
for each patch of the network and each Mpx that is traced and numbered, what share of its time
workers had work, and what does not grow with the slide: loading the network in each worker, and
workers that wait for the first task to start and the last to end. It is kept for the model, what
evaluates it and the number of workers (`engines.findings`), or for a scheduler.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from densebatch.base.machine import count_cores
from densebatch.base.names import count_of, round_to
from densebatch.engines.backend import patch_shape
from densebatch.engines.findings import recall, remember
from densebatch.engines.make import name_device
from densebatch.planning.capacity import count_lanes
from densebatch.planning.engine_trial import make_plan_backend, time_backends
from densebatch.planning.gate import draw_sample
from densebatch.planning.measured import choose_measures
from densebatch.slides.slide import reopen_slide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.planning.plan import FlowPlan
    from densebatch.planning.settings import SegmentSettings

LEAST_PX = 3 * 10**6  # of a slide in patches, from which its pace says something of others
_ROUNDS = 1
_TASKS_WAITED = 2  # as long as so many tasks a worker is idle while the first starts, the last ends
# Of a trial, which times the network alone: a worker's seconds for each Mpx of dense tissue, and
# what does not grow with the slide (`benchmarks/results/pace.json`).
_TRACE_S, _NUMBER_S, _SURVEY_S, _START_S = 0.12, 0.02, 0.01, 3.0


@dataclass(frozen=True)
class Pace:
    """What work took.

    Attributes
    ----------
    patch_s : seconds of a worker for a patch of the network
    trace_s : for a Mpx of the slide whose patch is not skipped
    number_s : for a Mpx and each plane: the labels, and each channel that is measured or copied
    survey_s : of the main process, for a Mpx of each channel that is seen
    other_s : of the session, whatever the slide's size
    workers : that worked at once
    busy : share of the time that they had work, apart from the start and the end
    slide_px : pixels that this is from, of a slide whose patches are not skipped; 0 for a trial
    """

    patch_s: float
    trace_s: float
    number_s: float
    survey_s: float
    other_s: float
    workers: int
    busy: float
    slide_px: int

    def estimate(self, plan: FlowPlan, settings: SegmentSettings) -> float:
        """Seconds of a run.

        Parameters
        ----------
        plan
            Complete.
        settings
            Of the run, for what is measured.
        """
        measured = choose_measures(reopen_slide(plan.slide), settings).channels
        n_planes = 1 + len(plan.slide.channels if plan.copy_image else measured)
        mpx = plan.shape[0] * plan.shape[1] / 1e6
        work = plan.network_patches * self.patch_s + mpx * n_planes * self.number_s
        work += mpx * _find_share(plan) * self.trace_s
        before = self.other_s + mpx * len(plan.seen_channels) * self.survey_s
        return before + work / (max(1, self.workers) * self.busy)

    def tell(self, plan: FlowPlan, settings: SegmentSettings) -> str:
        """How long a run will take, in words; as `estimate`."""
        return f"about {tell_duration(self.estimate(plan, settings))}, {self.tell_origin(settings)}"

    def tell_origin(self, settings: SegmentSettings) -> str:
        """What it is from, in words; of a cluster, which may have grown, with its workers then."""
        by = f" by {count_of(self.workers, 'worker')}" if settings.is_remote else ""
        if not self.slide_px:
            return "by a trial of some patches; tracing and the rest as on dense tissue elsewhere"
        return f"at the pace of a run of {round_to(self.slide_px / 1e6, 3)} Mpx{by}"


_PACE = TypeAdapter(Pace)


def tell_duration(seconds: float) -> str:
    """A duration in words, to two digits.

    Examples
    --------
    >>> [tell_duration(s) for s in (7.26, 100, 500, 7100, 10000, 500000)]
    ['7.3 s', '100 s', '8.3 min', '120 min', '2.8 h', '140 h']
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{round_to(seconds / length, 2)} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _find_share(plan: FlowPlan) -> float:
    """How much of the slide lies in patches that are not skipped, as glass and other areas are."""
    height, width = plan.network_shape
    return plan.covered_px / (height * width)


def _identify(plan: FlowPlan, settings: SegmentSettings, workers: int) -> dict[str, Any]:
    where: dict[str, Any] = {"workers": workers, "lanes": count_lanes(plan, settings, workers)}
    if settings.is_remote:
        where = {"scheduler": [settings.scheduler_address, str(settings.scheduler_file)]}
    return {
        "finding": "pace", "model": plan.model.sha256, "engine": asdict(plan.engine),
        "shape": asdict(patch_shape(plan.lattice)), "tile": settings.tile,
        "gpu": name_device(plan.engine.device), **where,
    }  # fmt: skip


def recall_pace(plan: FlowPlan, settings: SegmentSettings, workers: int) -> Pace | None:
    """The pace of runs like this one, None if nobody has made any here.

    Parameters
    ----------
    plan
        Complete, with its engine.
    settings
        Of the run.
    workers
        Processes of this machine that do it; 0 if this one does, or a cluster.
    """
    known = recall(_identify(plan, settings, workers))
    try:
        return _PACE.validate_python(known) if known is not None else None
    except ValidationError:
        return None


def remember_pace(
    plan: FlowPlan, settings: SegmentSettings, workers: int, report: Mapping[str, Any]
) -> None:
    """Keep the pace of a run for who plans the next.

    Parameters
    ----------
    plan, settings, workers
        As of `recall_pace`.
    report
        Content of `run.json`. Of a run that went on with an earlier session's work, and of little
        or of much less than one before, nothing is kept.
    """
    mpx, seconds, tasks = report["slide_px"] / 1e6, report["seconds"], report["task_seconds"]
    covered_px = round(report["slide_px"] * _find_share(plan))
    before = recall_pace(plan, settings, workers)
    if (
        report["tasks_kept"]
        or covered_px < LEAST_PX
        or not plan.network_patches
        or (before is not None and 2 * covered_px < before.slide_px)
    ):
        return
    at_once, stages = max(1, report["workers"]), report["stages"]
    # What a task of the network takes beside its parts is the loading of it, once a worker.
    patches_s = sum(stages["predict"]["parts"].values())
    grows_s = patches_s + tasks["trace"] + tasks["number"]
    work_s = tasks["predict"] + tasks["trace"] + tasks["number"]
    whole_s = at_once * (seconds["predict_and_trace"] + seconds["number"])
    n_tasks = sum(stages[name]["tasks"] for name in ("predict", "trace", "number"))
    waited_s = _TASKS_WAITED * at_once * work_s / n_tasks
    busy = work_s / (whole_s - min(waited_s, max(0.0, whole_s - work_s)))
    n_planes = 1 + len(report["slide_channels"])
    survey_s = max(0.0, seconds["plan"] - 1.0)
    pace = Pace(
        patch_s=patches_s / plan.network_patches,
        trace_s=tasks["trace"] / covered_px * 1e6,
        number_s=tasks["number"] / mpx / n_planes,
        survey_s=survey_s / mpx / max(1, len(plan.seen_channels)),
        other_s=max(0.0, seconds["total"] - grows_s / at_once / busy - survey_s),
        workers=at_once,
        busy=busy,
        slide_px=covered_px,
    )
    remember(_identify(plan, settings, workers), asdict(pace))


def measure_pace(
    plan: FlowPlan, settings: SegmentSettings, workers: int, packed: bytes | None
) -> Pace:
    """Evaluate a few patches as a run would, on this machine.

    Parameters
    ----------
    plan, settings, workers
        As of `recall_pace`.
    packed
        The quantised network, for int8.

    Raises
    ------
    InputError
        If the backend cannot be used here.
    """
    at_once = max(1, workers)
    lanes = min(count_cores(), at_once * count_lanes(plan, settings, workers))
    backend = make_plan_backend(plan, plan.engine, packed, lanes)
    sample = draw_sample(plan.model, patch_shape(plan.lattice))
    s_per_mpx = time_backends({"it": backend}, sample, _ROUNDS)["it"]
    patch_s = s_per_mpx * plan.lattice.patch_area / 1e6 * at_once
    return Pace(patch_s, _TRACE_S, _NUMBER_S, _SURVEY_S, _START_S, at_once, 1.0, 0)
