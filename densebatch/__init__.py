"""Whole-slide cell segmentation of dense, multiplexed tissue.

`densebatch.segment(slide, out, membrane=("CD3", "CD8"))` does what the command `densebatch segment`
does and returns a `SegmentResult`; `densebatch.segment_cohort(slides, out, ...)` is that for many.
Scoring is in `densebatch.scoring` and needs neither torch nor
dask.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.machine import choose_compile_cache

if TYPE_CHECKING:
    from densebatch.cohorts.drive import CohortResult
    from densebatch.cohorts.segment import segment_cohort
    from densebatch.planning.plan import Plan
    from densebatch.planning.planner import build_plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.segment import SegmentResult, segment

choose_compile_cache(Path(__file__).parent)  # before anything imports numba, which reads it then

__all__ = [
    "CohortResult",
    "Plan",
    "SegmentResult",
    "SegmentSettings",
    "build_plan",
    "segment",
    "segment_cohort",
]

_HOMES = {
    "CohortResult": "cohorts.drive",
    "Plan": "planning.plan",
    "SegmentResult": "run.segment",
    "SegmentSettings": "planning.settings",
    "build_plan": "planning.planner",
    "segment": "run.segment",
    "segment_cohort": "cohorts.segment",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import on first use, so that scoring does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'densebatch' has no attribute {name!r}")
    return getattr(import_module(f"densebatch.{_HOMES[name]}"), name)
