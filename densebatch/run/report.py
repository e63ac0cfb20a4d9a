"""What a run tells of itself: to those who watch it, and in `run.json`."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from densebatch.base.checksums import ABSENT, fits_checksum
from densebatch.base.files import write_atomic
from densebatch.base.names import count_of
from densebatch.cells.kept import REPORT, list_trees, read_list
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan
from densebatch.regions.read import describe_areas
from densebatch.stages.predict import PredictGroup

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from densebatch.base.geometry import Grid
    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.stages.work import Task

_MISSING = ("failed_tiles", "failed_groups", "unread", "missing_px")
# What reports are read for, so that one without is none.
_READ = (
    *_MISSING, "cells", "fingerprint", "measured", "positivity", "settings", "stages", "workers",
)  # fmt: skip
_LIBRARIES = ("dask", "distributed", "zarr", "ome-zarr-models", "tifffile", "imagecodecs", "scipy")


@dataclass
class Progress:
    """Receives what happens; the command line shows it. Subclass what you need."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage of `total` tasks, `done` of which were finished in an earlier run."""

    def advance(self, name: str, pixels: int) -> None:
        """One task of a stage is done; it covered `pixels` of the slide."""

    def drop(self, name: str) -> None:
        """A stage is of no interest any more, because its slide has come to an end among others."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class SegmentResult:
    """What a run produced.

    Attributes
    ----------
    out : output folder
    labels : path of the multiscale label image
    table : path of the cell table
    report : the content of `run.json`
    """

    out: Path
    labels: Path
    table: Path
    report: dict[str, Any]

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.report["cells"])

    @property
    def failed_tiles(self) -> list[dict[str, Any]]:
        """Tiles without labels: region, reason."""
        return list(self.report["failed_tiles"])

    @property
    def unread(self) -> list[dict[str, Any]]:
        """Pieces of the slide that cannot be read: channel, region, reason.

        Cells there have no mean intensity in that channel, and a copied image is 0 there. If the
        network sees the channel, pixels whose cells depend on them are missing.
        """
        return list(self.report["unread"])

    @property
    def missing_px(self) -> int:
        """Pixels without a result, which are 1 in the label image `missing` beside the cells."""
        return int(self.report["missing_px"])

    @property
    def is_partial(self) -> bool:
        """Whether anything is missing; the same command tries it again."""
        return is_partial(self.report)

    def tell_missing(self) -> str:
        """One sentence on what is missing."""
        return tell_missing(self.report)


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


def describe_gaps(
    plan: Plan,
    facts: Mapping[Task, Mapping[str, Any]],
    lost: Mapping[Task, str],
    before: Mapping[str, Sequence[dict[str, Any]]],
) -> dict[str, Any]:
    """What has no result, beside the tiles that failed.

    Parameters
    ----------
    plan
        Of the run.
    facts
        By task, from the records in the journal, of this session and of earlier ones.
    lost
        Tasks that failed for good, with the reason.
    before
        The same of the runs that are joined, if this run joins some.

    Returns
    -------
    dict
        `failed_groups`: groups of patches whose task failed, so that their flows are unknown: which
        group, its pixels (y0, x0, y1, x1) and why. `unread`: pieces of the slide that cannot be
        read (channel, region, reason), each once, whoever met them. `missing_px`: pixels that the
        label image `missing` marks.
    """
    groups: list[dict[str, Any]] = []
    for task, reason in lost.items():
        if isinstance(task, PredictGroup) and isinstance(plan, FlowPlan):
            scale_y, scale_x = (n / m for n, m in zip(plan.shape, plan.network_shape, strict=True))
            area = plan.groups[task.row, task.col]
            groups.append(
                {
                    "group": [task.row, task.col],
                    "region": [
                        math.floor(area.y0 * scale_y),
                        math.floor(area.x0 * scale_x),
                        math.ceil(area.y1 * scale_y),
                        math.ceil(area.x1 * scale_x),
                    ],
                    "reason": reason,
                }
            )
    found = [h for t in sorted(facts, key=lambda t: t.name) for h in facts[t].get("unread", ())]
    holes = {(h["channel"], *h["region"]): h for h in (*before.get("unread", ()), *found)}
    return {
        "failed_groups": [
            *before.get("failed_groups", ()),
            *sorted(groups, key=lambda group: group["group"]),
        ],
        "unread": [holes[key] for key in sorted(holes)],
        "missing_px": sum(f.get("missing_px", 0) for t, f in facts.items() if t.stage == "number"),
    }


def keep_tracebacks(lost: Mapping[Task, str]) -> list[str]:
    """Names of the files, in the output folder, with the tracebacks of what failed.

    A task that took its worker with it could not write one; its file has the reason.

    Parameters
    ----------
    lost
        Tasks that failed for good, with the reason.
    """
    kept = []
    for task, reason in lost.items():
        file = task.work.failure(task.name)
        if not file.exists():
            write_atomic(file, f"{reason}\n".encode())
        kept.append(str(file.relative_to(task.work.folder.parents[1])))
    return sorted(kept)


def read_report(out: Path) -> dict[str, Any] | None:
    """Content of `run.json` in an output folder, or of its copy, whichever is whole; None without.

    Parameters
    ----------
    out
        The output folder.
    """
    tree = list_trees(out, out, in_place=False)[0]
    listed, _ = read_list(tree)
    for path in (out / REPORT, tree.copy_of(REPORT)):
        if path is None or (listed and not fits_checksum(path, listed.get(REPORT, ABSENT))):
            continue
        try:
            report = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(report, dict) and report.get("complete") and report.keys() >= set(_READ):
            return report
    return None


def is_partial(report: Mapping[str, Any]) -> bool:
    """Whether anything is missing, so that the same command tries it again.

    Parameters
    ----------
    report
        Content of `run.json`.
    """
    return any(report[name] for name in _MISSING)


def tell_missing(report: Mapping[str, Any]) -> str:
    """One sentence on what has no result, for the user.

    Parameters
    ----------
    report
        Content of `run.json`.
    """
    parts = []
    if report["failed_tiles"]:
        first = report["failed_tiles"][0]
        parts.append(
            f"{_have(report['failed_tiles'], 'tile')} no labels, the first at pixels "
            f"{first['region']} ({first['reason']})"
        )
    if report["failed_groups"]:
        first = report["failed_groups"][0]
        parts.append(
            "the network has not been evaluated in "
            f"{count_of(len(report['failed_groups']), 'group')} of patches, the first at pixels "
            f"{first['region']} ({first['reason']})"
        )
    if report["unread"]:
        first = report["unread"][0]
        parts.append(
            f"{count_of(len(report['unread']), 'piece')} of the slide cannot be read, the first at "
            f"pixels {first['region']} of channel {first['channel']} ({first['reason']})"
        )
    if report["missing_px"]:
        share = report["missing_px"] / report["slide_px"]
        parts.append(
            f"{report['missing_px']} pixels ({share:.2%}) have no result and are 1 in the label "
            "image 'missing'"
        )
    return f"{'; '.join(parts)}; the same command tries them again"


def _have(items: Sequence[object], name: str) -> str:
    return f"{count_of(len(items), name)} {'has' if len(items) == 1 else 'have'}"


def describe_run(
    plan: Plan,
    settings: SegmentSettings,
    choice: EngineChoice | None,
    facts: Mapping[Task, Mapping[str, Any]],
    n_cells: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What was decided beforehand, and what was found.

    Parameters
    ----------
    plan, settings, choice
        Of the run.
    facts
        By task, from the records in the journal, of this session and of earlier ones.
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
    document = json.loads(plan.to_json())
    document.pop("active", None)
    (document["region"] or {}).pop("runs", None)
    return {
        "cells": n_cells,
        "notes": list(plan.notes),
        "slide_px": height * width,
        "region": None if plan.region is None else describe_areas(plan.region),
        "tissue": document["tissue"],
        **_describe_road(plan, choice, _by_stage(plan, facts)),
        "seconds": dict(seconds),
        "mpx_per_second": round(height * width / 1e6 / seconds["total"], 4),
        "cells_per_second": round(n_cells / seconds["total"], 2),
        "settings": settings.model_dump(mode="json"),
        "plan": document,
        "fingerprint": plan.fingerprint,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
            **plan.versions,
        },
    }


def _describe_road(
    plan: Plan, choice: EngineChoice | None, by_stage: Mapping[str, list[Mapping[str, Any]]]
) -> dict[str, Any]:
    """What a report has of one road to labels only."""
    if isinstance(plan, JoinPlan):
        return {}
    if isinstance(plan, LabelPlan):
        return {
            "segmenter": {
                "name": plan.segmenter,
                "options": plan.options,
                "tile_px": plan.tile_px,
                "overlap_px": plan.overlap_px,
            }
        }
    assert isinstance(plan, FlowPlan)
    assert choice is not None
    trace, predict = by_stage["trace"], by_stage["predict"]
    return {
        "rejected_cells": sum(f["rejected"] for f in trace),
        "dropped_px": sum(f["dropped_px"] for f in trace),
        "max_travel_px": max((f["max_travel_px"] for f in trace), default=0.0),
        "network_px": plan.network_px,
        "network_patches": plan.network_patches,
        "bright_patches": sum(f["bright_patches"] for f in predict),
        "network_covered_px": plan.covered_px,
        "network_redundancy": round(plan.network_px / max(1, plan.covered_px), 4),
        "engine": choice.to_dict(),
        "devices": sorted({f["device"] for f in predict if f["device"]}),
        "model": {"name": plan.model.name, "sha256": plan.model.sha256},
    }


def describe_costs(
    plan: Plan,
    facts: Mapping[Task, Mapping[str, Any]],
    kept: Collection[Task],
    workers: int,
    total_s: float,
    main: Mapping[str, Any],
) -> dict[str, Any]:
    """Where time, bytes and memory went.

    Parameters
    ----------
    plan
        Of the run.
    facts
        By task, from the records in the journal, of this session and of earlier ones.
    kept
        Tasks that an earlier session had finished.
    workers
        Tasks that the network was evaluated for at once.
    total_s
        Wall time of this session.
    main
        What the `Meter` of the whole session read.

    Returns
    -------
    dict
        `task_seconds`, summed over the tasks of each stage. `stages`: for each the number of
        tasks, their seconds in all and by part, the slide's Mpx over these seconds (the rate of
        one worker), bytes read and written (null where the system does not count them), bytes and
        requests of stores elsewhere, and the largest peak of a process. `network_seconds`: the wall
        time that the network's patches take with all these workers busy and nothing else to do, and
        `wall_over_network`: how many times as long the session took; null if an earlier session
        shared the work. Bytes and requests in all: of this session. `peak_rss_mb` of the main
        process, `worker_peak_rss_mb` of the largest one, and `all_peak_rss_mb`, an upper bound for
        all of this session's processes on every machine together.
    """
    mpx = plan.shape[0] * plan.shape[1] / 1e6
    by_stage = _by_stage(plan, facts)
    new = [f for task, f in facts.items() if task not in kept]
    elsewhere = [f for f in new if f["process"] != main["process"]]
    peaks: dict[str, int] = {}
    for f in elsewhere:
        peaks[f["process"]] = max(peaks.get(f["process"], 0), f["peak_rss_mb"])
    network_s = sum(f["parts"].get("network", 0.0) for f in facts.values()) / max(1, workers)
    return {
        "task_seconds": {stage: _total(some, "seconds") for stage, some in by_stage.items()},
        "stages": {stage: _describe_stage(some, mpx) for stage, some in by_stage.items()},
        "network_seconds": round(network_s, 3),
        "wall_over_network": round(total_s / network_s, 4) if network_s and not kept else None,
        "bytes_read": _sum_known([main, *elsewhere], "bytes_read"),
        "bytes_written": _sum_known([main, *elsewhere], "bytes_written"),
        **_sum_remote([main, *elsewhere]),
        "peak_rss_mb": main["peak_rss_mb"],
        "worker_peak_rss_mb": max((f["peak_rss_mb"] for f in facts.values()), default=0),
        "all_peak_rss_mb": main["peak_rss_mb"] + sum(peaks.values()),
    }


def _by_stage(
    plan: Plan, facts: Mapping[Task, Mapping[str, Any]]
) -> dict[str, list[Mapping[str, Any]]]:
    """Facts of all tasks of each stage; those of the plan come first, whether they ran."""
    tasks = sorted(facts, key=lambda task: task.name)
    stages = dict.fromkeys([*plan.stages, *(task.stage for task in tasks)])
    return {stage: [facts[task] for task in tasks if task.stage == stage] for stage in stages}


def _describe_stage(facts: Sequence[Mapping[str, Any]], mpx: float) -> dict[str, Any]:
    seconds = _total(facts, "seconds")
    parts = {name for f in facts for name in f["parts"]}
    return {
        "tasks": len(facts),
        "seconds": seconds,
        "parts": {
            name: round(sum(f["parts"].get(name, 0.0) for f in facts), 3) for name in sorted(parts)
        },
        "mpx_per_second": round(mpx / seconds, 4) if seconds else None,
        "bytes_read": _sum_known(facts, "bytes_read"),
        "bytes_written": _sum_known(facts, "bytes_written"),
        **_sum_remote(facts),
        "peak_rss_mb": max((f["peak_rss_mb"] for f in facts), default=0),
    }


def _sum_known(facts: Iterable[Mapping[str, Any]], key: str) -> int | None:
    values = [f[key] for f in facts]
    return None if None in values else sum(values)


def _sum_remote(facts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What came from stores elsewhere; records of earlier versions do not tell."""
    keys = ("remote_bytes_read", "remote_requests")
    return {key: sum(f.get(key, 0) for f in facts) for key in keys}


def _total(facts: Iterable[Mapping[str, Any]], key: str) -> float:
    return round(float(sum(f[key] for f in facts)), 3)
