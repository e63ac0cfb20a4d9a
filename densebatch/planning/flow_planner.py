"""The plan of a run whose labels come from flows: scale, lattice, tracing, and where to look."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.geometry import Lattice, Region, fit_axis
from densebatch.models.flow_models import get_kind, list_packages
from densebatch.models.model import Model
from densebatch.planning.plan import FlowPlan
from densebatch.planning.scale import (
    choose_rescale,
    explain_estimate,
    explain_scale,
    settle_diameter,
)
from densebatch.survey.channel import contrast_in
from densebatch.tracing.tile import TraceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.planning.scale import DiameterEstimate
    from densebatch.planning.settings import SegmentSettings
    from densebatch.regions.areas import Areas
    from densebatch.slides.info import SlideInfo
    from densebatch.survey.channel import ChannelSurvey

# Lattice cores of a predict task make up about this many pixels along each axis: large enough that
# the scheduler is idle, small enough that losing a task costs about a second of network time.
_GROUP_PX = 1024
_CELLPOSE_TFLOP = 0.618  # for each Mpx, of Cellpose's own CPnets
_DEAR_TIMES = 4.0  # as much as those, from which it is told before a run

# A patch whose means over half a cell's width span less than this share of the slide's normalised
# range holds nothing that the network would find. tests/planning/test_skipping.py proves it on real
# fields: the faintest cell that the bundled network finds there spans 0.0337 in its own
# neighbourhood, and dimmed tissue is found down to 0.0159. Simulated glass spans 0.0044 at most.
SKIP_CONTRAST = 0.0079


def draft_flows(
    info: SlideInfo,
    settings: SegmentSettings,
    model: Model,
    common: Mapping[str, Any],
    estimate: DiameterEstimate | None,
) -> FlowPlan:
    """The plan as far as metadata tell.

    Parameters
    ----------
    info
        The slide.
    settings
        What the user asked for.
    model
        Of the settings.
    common
        Fields of `Plan`.
    estimate
        Of the cells' diameter, where that is to be estimated and has been.

    Raises
    ------
    InputError
        If the scale cannot be used.
    """
    um_per_px = common["um_per_px"]
    diameter_px = settle_diameter(info.path, settings, um_per_px, estimate)
    rescale, reason = choose_rescale(model, um_per_px, diameter_px)
    scale_notes = explain_scale(model, info.um_per_px, settings.pixel_size, diameter_px)
    height, width = (max(1, round(n * rescale)) for n in (info.height, info.width))
    kind = get_kind(model.kind)
    lattice = Lattice(
        *(
            fit_axis(n, model.patch_px, model.margin_px, kind.multiple, stretches=kind.stretches)
            for n in (height, width)
        )
    )
    diameter = model.diameter_px / rescale
    trace = TraceSettings(
        cellprob_threshold=settings.cellprob_threshold,
        flow_threshold=settings.flow_threshold,
        min_size_px=settings.min_size,
        max_size_px=settings.max_size or math.ceil(math.pi / 4 * (10 * diameter) ** 2),
        # Cellpose takes 200 steps at the network's scale. A step is at most about a pixel of the
        # slide long, so the same way takes 1 / rescale times as many.
        iterations=max(1, round(200 / rescale)),
        travel_limit_px=max(256, math.ceil(16 * diameter)),
    )
    own: dict[str, Any] = {
        "versions": {**common["versions"], **list_packages(model.kind)},
        "notes": (
            *info.notes, *model.notes, *common["notes"], *scale_notes,
            *explain_estimate(estimate), *_explain_cost(model),
        ),
    }  # fmt: skip
    return FlowPlan(
        **{**common, **own},
        model=Model(**{**asdict(model), "card": {}}),
        rescale=rescale,
        rescale_reason=reason,
        lattice=lattice,
        group_y=max(1, round(_GROUP_PX / lattice.y.step)),
        group_x=max(1, round(_GROUP_PX / lattice.x.step)),
        active=_pack(_find_counted_cores(lattice, info, common["region"])),
        skip_contrast=SKIP_CONTRAST if settings.skip_background else -1.0,
        trace=trace,
        travel_px=16 * math.ceil(2 * diameter / 16),
        estimate=estimate,
    )


def survey_flows(plan: FlowPlan, surveys: Sequence[ChannelSurvey]) -> FlowPlan:
    """Complete a plan, whose bounds are known, with the patches that hold signal.

    Parameters
    ----------
    plan
        With the bounds of its surveys.
    surveys
        Of the channels that the network sees.
    """
    threshold = plan.skip_contrast
    if not any(b.high > b.low for b in plan.membrane):
        # A slide without any contrast has nothing to evaluate, whatever is asked for.
        threshold = np.inf
    scale = (plan.shape[0] / plan.network_shape[0], plan.shape[1] / plan.network_shape[1])
    active = find_active_cores(plan.lattice, surveys, scale, threshold, plan.active_cores)
    return replace(plan, active=_pack(active))


def _explain_cost(model: Model) -> Iterator[str]:
    flop = get_kind(model.kind).patch_flop(model.widths, model.patch_px, model.patch_px)
    tflop_per_mpx = (flop or 0) / model.patch_px**2 / 1e6
    if tflop_per_mpx > _DEAR_TIMES * _CELLPOSE_TFLOP:
        yield (
            f"model {model.name} computes {tflop_per_mpx:.3g} TFLOP for each Mpx that it sees, "
            f"{tflop_per_mpx / _CELLPOSE_TFLOP:.0f} times as much as Cellpose's cyto3: `densebatch "
            "plan` tells how long that takes here"
        )


def find_active_cores(
    lattice: Lattice,
    surveys: Sequence[ChannelSurvey],
    scale: tuple[float, float],
    threshold: float,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Choose the lattice cores whose patch holds signal.

    A patch is looked at with all of its margin, grown to whole survey blocks, because a cell at a
    core's border needs the core evaluated.

    Parameters
    ----------
    lattice
        Patches at the network's scale.
    surveys
        Of the channels that the network sees.
    scale
        Slide pixels in a network pixel, along y and x.
    threshold
        A core is chosen if the contrast of its patch is above it; -1 chooses all.
    counted
        `(rows, cols)`: cores of which one may be chosen; None for all.

    Returns
    -------
    ndarray
        `(rows, cols)` of the lattice.
    """
    cores = lattice.cores
    active = np.zeros((cores.rows, cores.cols), bool)
    for row, col in cores:
        if counted is not None and not counted[row, col]:
            continue
        contrast = contrast_in(surveys, _find_source(lattice, row, col, scale))
        # Where a piece could not be read there may be anything, so that it must be tried.
        active[row, col] = contrast > threshold or contrast == np.inf
    return active


def _find_counted_cores(
    lattice: Lattice, info: SlideInfo, region: Areas | None
) -> NDArray[np.bool_]:
    """The cores in whose patch a pixel counts: `(rows, cols)` of the lattice."""
    cores = lattice.cores
    counted = np.ones((cores.rows, cores.cols), bool)
    if region is not None:
        scale = (info.height / lattice.y.length, info.width / lattice.x.length)
        for row, col in cores:
            counted[row, col] = region.touches(_find_source(lattice, row, col, scale))
    return counted


def _find_source(lattice: Lattice, row: int, col: int, scale: tuple[float, float]) -> Region:
    """Pixels of the slide that a patch sees."""
    patch = lattice.patch(row, col)
    return Region(
        math.floor(max(patch.y0, 0) * scale[0]),
        math.floor(max(patch.x0, 0) * scale[1]),
        math.ceil(patch.y1 * scale[0]),
        math.ceil(patch.x1 * scale[1]),
    )


def _pack(active: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(active).tobytes()).decode()
