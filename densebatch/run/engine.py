"""Which engine a run takes, and what workers must have for it.

The engine is the one that the run began with, or what a worker of its cluster or this machine
chooses.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import digest
from densebatch.engines.backend import BACKENDS, Engine
from densebatch.engines.make import check_backend, check_kind, choose_device, measure_free_bytes
from densebatch.engines.quantization import read_quantised
from densebatch.models.model import find_model
from densebatch.planning.capacity import (
    PROCESS_MB,
    estimate,
    patch_bytes,
    trace_window_px,
    weight_bytes,
)
from densebatch.planning.engine_choice import CANDIDATES, EngineChoice, choose_engine
from densebatch.planning.plan import FlowPlan, LabelPlan
from densebatch.remote.address import is_address
from densebatch.slides.slide import check_reach
from densebatch.stages.label import require_segmenter
from densebatch.workers.check import Requirements, SharedFile
from densebatch.workers.cluster import ask_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.folder import OutputFolder


_CUDA_CONTEXT_BYTES = 600 * 10**6
_DEVICE_TRACE_BYTES_PER_PX = 400  # of a window that is all foreground, see `tracing.device`
_GPU_SHARE = 0.8  # of its free memory
# Half of the workers use the GPU, because with a third of them (5 of 16) the others
# waited for flows to trace (docs/design.md).
_WORKERS_PER_DEVICE_WORKER = 2


def list_requirements(
    plans: Sequence[Plan], settings: SegmentSettings, engine: Engine | None = None
) -> Requirements:
    """What each worker must have.

    Parameters
    ----------
    plans
        Of the runs.
    settings
        Of all of them.
    engine
        What evaluates the network; None if that is yet to be chosen.

    Returns
    -------
    Requirements
        The versions of the plans, their slides and models, the device, and memory for the largest
        task.

    Raises
    ------
    InputError
        If a slide or a model is gone.
    """
    files = {}
    questions: list[tuple[Any, tuple[Any, ...]]] = []
    for plan in plans:
        needed = []
        if is_address(plan.slide.path):
            questions.append((check_reach, (plan.slide,)))
        else:
            needed.append(("the slide", plan.slide.path, True))
        if isinstance(plan, FlowPlan):
            # its content is compared when it is loaded
            needed.append(("the model", plan.model.path, False))
        elif isinstance(plan, LabelPlan):
            questions.append((require_segmenter, (plan.segmenter, plan.segmenter_identity)))
        for what, path, dated in needed:
            try:
                files[path] = SharedFile.look(Path(path).absolute(), what, dated=dated)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    device = settings.device if engine is None else engine.device
    if device == "cuda":
        questions.append((choose_device, (device,)))
    if engine is not None:
        # A quantised network is evaluated without the library that has made it.
        name = "openvino" if engine.backend == "openvino-int8" else engine.backend
        questions.append((check_backend, (name, device)))
    largest = max((estimate(p, settings.tile) for p in plans), key=lambda need: need.worker_mb)
    versions = {name: version for plan in plans for name, version in plan.versions.items()}
    versions.pop("densebatch", None)  # which is always compared
    return Requirements(
        versions, tuple(files.values()), tuple(questions),
        PROCESS_MB, largest.task_mb, largest.worst_task,
    )  # fmt: skip


def check_engine(settings: SegmentSettings, plans: Sequence[Plan]) -> None:
    """Refuse at once what this machine cannot do; another machine's workers are asked later.

    Parameters
    ----------
    settings
        Of all runs.
    plans
        Of them, for the kinds of their networks.

    Raises
    ------
    InputError
        See `check_backend`, `check_kind` and `choose_device` of `engines.make`.
    """
    flow_plans = [plan for plan in plans if isinstance(plan, FlowPlan)]
    if not flow_plans:
        return
    if settings.backend != "auto":
        for plan in flow_plans:
            check_kind(settings.backend, plan.model.kind)
    anywhere = settings.backend == "auto" or BACKENDS[settings.backend].devices == tuple(CANDIDATES)
    if settings.is_remote or (settings.device == "auto" and anywhere):
        return  # nothing to refuse; asking which device there is takes seconds where it is a GPU
    device = choose_device(settings.device)
    if settings.backend != "auto":
        check_backend(settings.backend, device)


def count_device_workers(plans: Sequence[Plan], settings: SegmentSettings, workers: int) -> int:
    """How many of a machine's workers use the GPU, to evaluate the network and to trace; 0 if all.

    A few processes keep a GPU busy, the more so as each of them needs seconds and memory there for
    a context, weights, two batches and a tile of its own; the others trace meanwhile.
    """
    flow_plans = [plan for plan in plans if isinstance(plan, FlowPlan)]
    if not flow_plans or settings.is_remote or workers < 2:
        return 0
    if choose_device(settings.device) != "cuda":
        return 0
    each = _CUDA_CONTEXT_BYTES + max(
        weight_bytes(p)
        + 2 * p.network_batch * patch_bytes(p)
        + trace_window_px(p, settings.tile) * _DEVICE_TRACE_BYTES_PER_PX
        for p in flow_plans
    )
    fitting = int(_GPU_SHARE * measure_free_bytes() // each)
    return max(1, min(workers // _WORKERS_PER_DEVICE_WORKER, fitting))


def add_engine(
    plan: FlowPlan,
    settings: SegmentSettings,
    folder: OutputFolder,
    *,
    restart: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[FlowPlan, EngineChoice]:
    """Complete a surveyed plan with its engine.

    Parameters
    ----------
    plan, settings, folder
        Of the run. If the folder holds an earlier session of it, that one's backend is kept as
        far as the settings leave the choice.
    restart
        What the folder holds does not count.
    note
        Is told what the user should know of a scheduler's workers.

    Returns
    -------
    plan
        With its engine, and the versions that the engine's bits depend on.
    choice
        The engine, and why it was chosen.

    Raises
    ------
    InputError
        If a backend that was asked for cannot be used or fails the gate, or the scheduler cannot be
        reached, or its workers cannot work.
    DensebatchError
        If the scheduler has no workers for as long as the user is patient.
    """
    earlier = None if restart else folder.read_marker()
    if not isinstance(earlier, FlowPlan):
        earlier = None
    began = earlier.engine if earlier is not None else None
    if earlier is not None and earlier.engine.quantised is not None:
        kept = _recall_quantised(folder, earlier, settings)
        if kept is not None:
            return _with_engine(plan, kept), kept
    arguments = (plan, settings.backend, settings.device, began)
    scheduler = settings.scheduler
    if scheduler is None:
        choice = choose_engine(*arguments)
    elif began is not None and folder.report.exists() and _is_as_asked(began, settings):
        choice = EngineChoice(began, "as this run began")  # finished, so no worker need be there
    else:
        needs = list_requirements([plan], settings)
        choice = ask_worker(scheduler, needs, choose_engine, *arguments, note=note, returning=True)
    return _with_engine(plan, choice), choice


def _is_as_asked(began: Engine, settings: SegmentSettings) -> bool:
    """Whether the engine of an earlier session is what the settings ask for, or leave open."""
    return settings.backend in ("auto", began.backend) and settings.device in (
        "auto",
        began.device,
    )


def recall_engine(plan: FlowPlan, model: str) -> tuple[FlowPlan, EngineChoice]:
    """What a finished run evaluated the network with, to evaluate it again.

    Parameters
    ----------
    plan
        Of the run.
    model
        As the settings name it, for weights that lie elsewhere now.

    Returns
    -------
    plan
        With the path of the weights as it is now.
    choice
        The run's engine.

    Raises
    ------
    InputError
        If the weights or the engine are not there any more.
    """
    weights = plan.model
    if not _has_digest(Path(weights.path), weights.sha256):
        found = find_model(model)
        if found.sha256 != weights.sha256:
            raise InputError(
                f"model {model}: has the sha256 {found.sha256[:12]} now, and the run used "
                f"{weights.sha256[:12]}"
            )
        plan = replace(plan, model=replace(weights, path=found.path))
    choice = choose_engine(plan, plan.engine.backend, plan.engine.device, plan.engine)
    if choice.engine != plan.engine:
        raise InputError(
            f"the network was evaluated by {plan.engine}, and here that is {choice.engine}"
        )
    return plan, choice


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return digest(path) == sha256
    except InputError:
        return False


def _with_engine(plan: FlowPlan, choice: EngineChoice) -> FlowPlan:
    versions = dict(plan.versions)
    if BACKENDS[choice.engine.backend].library == "openvino":
        versions["openvino"] = version("openvino")
    return replace(plan, engine=choice.engine, versions=versions)


def _recall_quantised(
    folder: OutputFolder, earlier: FlowPlan, settings: SegmentSettings
) -> EngineChoice | None:
    """The quantised network of an earlier session, if it is still there or no longer needed."""
    began = earlier.engine
    if settings.backend != began.backend or began.quantised is None:
        return None
    reason = "as this run began"
    try:
        packed = read_quantised(folder.tasks(earlier), began.quantised)
    except InputError:
        return EngineChoice(began, reason) if folder.report.exists() else None
    return EngineChoice(began, reason, packed=packed)
