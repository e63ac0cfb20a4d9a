"""What a worker of a running scheduler must have for the tasks of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.engines.make import check_backend, choose_device
from densebatch.planning.capacity import PROCESS_MB, estimate
from densebatch.workers.check import Requirements, SharedFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.engines.backend import Engine
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings


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
    for plan in plans:
        for what, path, dated in (
            ("the slide", plan.slide.path, True),
            ("the model", plan.model.path, False),  # its content is compared when it is loaded
        ):
            try:
                files[path] = SharedFile.look(Path(path).absolute(), what, dated=dated)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    device = settings.device if engine is None else engine.device
    questions: list[tuple[Any, tuple[Any, ...]]] = []
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
