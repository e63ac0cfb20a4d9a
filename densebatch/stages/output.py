"""The output of a run as its last stage sees it: its arrays, and which task writes what of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.cells import labels
from densebatch.cells.pyramid_spec import COMPARTMENT_LABELS, LABEL_NAME
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan

if TYPE_CHECKING:
    from densebatch.planning.plan import Plan


def output_spec(plan: Plan, root: str) -> labels.PyramidSpec:
    """Arrays and metadata of the output of a run.

    Parameters
    ----------
    plan
        The run.
    root
        The OME-Zarr image group that gets the labels.
    """
    if plan.in_place:
        return labels.in_place_spec(root, plan.slide.scene, plan.slide.axes)
    height, width = plan.shape
    layout = None
    if plan.slide.kind == "ome-zarr" and not plan.copy_image:
        layout = labels.slide_layout(plan.slide.path, plan.slide.scene, plan.slide.axes)
    return labels.PyramidSpec(
        root=root,
        ngff=plan.ngff,
        height=height,
        width=width,
        n_levels=labels.count_levels(height, width) if layout is None else len(layout.shapes),
        um_per_px=plan.um_per_px,
        origin_um=plan.slide.origin_um,
        image=plan.copy_image,
        channels=plan.slide.channels if plan.copy_image else (),
        image_dtype=plan.slide.dtype if plan.copy_image else None,
        windows=_display_windows(plan) if plan.copy_image else None,
        image_name=Path(plan.slide.path).name,
        slide=layout,
    )


def _display_windows(plan: Plan) -> tuple[tuple[float, float], ...] | None:
    """Display ranges of all channels, known when the network sees them all."""
    known = {b.channel: (b.low, b.high) for b in plan.membrane if b.high > b.low}
    if plan.nuclei is not None and plan.nuclei.high > plan.nuclei.low:
        known[plan.nuclei.channel] = (plan.nuclei.low, plan.nuclei.high)
    channels = range(len(plan.slide.channels))
    return tuple(known[c] for c in channels) if all(c in known for c in channels) else None


def label_specs(plan: Plan, root: str) -> list[labels.PyramidSpec]:
    """Arrays and metadata of each label image of a run: the cells, then what lies within them.

    Parameters as for `output_spec`.
    """
    spec = output_spec(plan, root)
    if not isinstance(plan, JoinPlan):
        return [spec]
    return [spec, *(replace(spec, label_name=name) for name in COMPARTMENT_LABELS.values())]


def list_planes(spec: labels.PyramidSpec) -> list[int | None]:
    """What there is of a shard: its labels (None), and beside cells each channel of an image."""
    has_image = spec.image and spec.label_name == LABEL_NAME
    return [None, *(range(len(spec.channels)) if has_image else ())]


def group_levels(spec: labels.PyramidSpec) -> list[range]:
    """Levels by the tasks that write them: the last ones, of a single shard each, go together.

    Their tasks could not run beside any other, and each would read back what the last has written.
    """
    top = spec.n_levels
    while top > 1 and len(labels.shard_grid(spec, top - 1)) == 1:
        top -= 1
    below = [range(level, level + 1) for level in range(top)]
    return [*below, range(top, spec.n_levels)] if top < spec.n_levels else below


def levels_with(spec: labels.PyramidSpec, level: int) -> range:
    """The levels that are written by one task, by any of them."""
    return next(levels for levels in group_levels(spec) if level in levels)


def checksum_shard(plan: Plan, root: str, level: int, row: int, col: int) -> dict[str, str]:
    """SHA-256 of the files that the task of a shard wrote, by their names relative to the root.

    Parameters
    ----------
    plan
        Of the run.
    root
        The OME-Zarr image group that has the labels.
    level, row, col
        Which shard; of a task that writes several levels, any of them.

    Returns
    -------
    dict
        A shard of background has no file, and is not in it.
    """
    return {
        name: checksum
        for spec in label_specs(plan, root)
        for channel in list_planes(spec)
        for each in levels_with(spec, level)
        for name, checksum in labels.checksum_unit(
            spec, each, labels.shard_grid(spec, each)[row, col], channel
        ).items()
    }


def describe_origin(plan: Plan, failed: list[dict[str, Any]]) -> dict[str, Any]:
    """What the label image says of its origin."""
    made_by: dict[str, Any] = {}
    if isinstance(plan, FlowPlan):
        made_by = {"model": plan.model.name, "model_sha256": plan.model.sha256}
    elif isinstance(plan, LabelPlan):
        made_by = {
            "segmenter": plan.segmenter, "segmenter_options": plan.options,
            "tile_px": plan.tile_px, "overlap_px": plan.overlap_px,
        }  # fmt: skip
    elif isinstance(plan, JoinPlan):
        made_by = {"runs": plan.made_by, "grow_px": plan.grow_px, "ring_px": plan.ring_px}
    return {
        **made_by,
        "fingerprint": plan.fingerprint,
        "normalization": [
            {"channel": b.name, "low": b.low, "high": b.high} for b in plan.seen_channels
        ],
        "failed_tiles": failed,
    }
