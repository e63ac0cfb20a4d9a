"""What a run says of itself: `run.json`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from densebatch.capacity import measure_peak_mb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from densebatch.config import SegmentSettings
    from densebatch.engines import EngineChoice
    from densebatch.geometry import Grid
    from densebatch.plan import Plan

_LIBRARIES = ("dask", "distributed", "zarr", "ome-zarr", "tifffile", "imagecodecs", "scipy")


def describe_lost(grid: Grid, failed: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """Tiles without a result: which, their pixels (y0, x0, y1, x1), and why."""
    return [
        {
            "tile": [row, col],
            "region": [region.y0, region.x0, region.y1, region.x1],
            "reason": failed[row, col],
        }
        for row, col in sorted(failed)
        for region in [grid[row, col]]
    ]


def describe_run(
    plan: Plan,
    settings: SegmentSettings,
    choice: EngineChoice,
    facts: Mapping[str, Mapping[str, Any]],
    n_cells: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What the tasks' records add up to, with all that was decided beforehand.

    Parameters
    ----------
    plan, settings, choice
        Of the run.
    facts
        By task name, from the records, of this session and of earlier ones.
    n_cells
        Cells of the slide.
    seconds
        By stage and in total, of this session.

    Returns
    -------
    dict
        Serialisable.
    """
    height, width = plan.shape
    predict, trace, number = (
        [facts[name] for name in sorted(facts) if name.startswith(stage)]
        for stage in ("predict-", "trace-", "number-")
    )
    document = json.loads(plan.to_json())
    document.pop("active")
    return {
        "cells": n_cells,
        "rejected_cells": sum(f["rejected"] for f in trace),
        "dropped_px": sum(f["dropped_px"] for f in trace),
        "max_travel_px": max((f["max_travel_px"] for f in trace), default=0.0),
        "slide_px": height * width,
        "network_px": plan.network_px,
        "network_patches": plan.network_patches,
        "network_covered_px": plan.covered_px,
        "network_redundancy": round(plan.network_px / max(1, plan.covered_px), 4),
        "engine": choice.to_dict(),
        "devices": sorted({f["device"] for f in predict if f["device"]}),
        "seconds": dict(seconds),
        "task_seconds": {
            "predict": _total(predict, "seconds"),
            "trace": _total(trace, "seconds"),
            "number": _total(number, "seconds"),
        },
        "mpx_per_second": round(height * width / 1e6 / seconds["total"], 4),
        "cells_per_second": round(n_cells / seconds["total"], 2),
        "peak_rss_mb": measure_peak_mb(),
        "worker_peak_rss_mb": max((f["peak_rss_mb"] for f in facts.values()), default=0),
        "unread": [hole for f in number for hole in f.get("unread", ())],
        "model": {"name": plan.model.name, "sha256": plan.model.sha256},
        "settings": settings.model_dump(mode="json"),
        "plan": document,
        "fingerprint": plan.fingerprint,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
            **plan.versions,
        },
    }


def _total(facts: Iterable[Mapping[str, Any]], key: str) -> float:
    return round(float(sum(f[key] for f in facts)), 3)
