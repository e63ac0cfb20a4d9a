"""Decide everything about a run: from metadata (`draft_plan`), then from one pass of pixels."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict, astuple, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Lattice, Region, fit_axis
from densebatch.base.names import count_of, explain_choice, quote_names
from densebatch.cells.labels import in_place_spec
from densebatch.engines.make import choose_device
from densebatch.models.flow_models import get_kind, list_packages
from densebatch.models.model import CPNET, Model, find_model
from densebatch.planning.diameter import choose_fields, estimate_diameter
from densebatch.planning.plan import Plan
from densebatch.planning.scale import (
    choose_rescale,
    explain_estimate,
    explain_scale,
    settle_diameter,
)
from densebatch.slides.brightfield import looks_brightfield
from densebatch.slides.slide import SlideInfo, open_slide, reopen_slide
from densebatch.survey.channel import ChannelSurvey, contrast_in, signal_side, survey_channel
from densebatch.survey.kernels import BLOCK_PX
from densebatch.survey.normalization import ChannelBounds
from densebatch.tracing.tile import TraceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.ngff.metadata import Version
    from densebatch.planning.scale import DiameterEstimate
    from densebatch.planning.settings import SegmentSettings
    from densebatch.slides.slide import Slide

# Lattice cores of a predict task make up about this many pixels along each axis: large enough that
# the scheduler is idle, small enough that losing a task costs about a second of network time.
_GROUP_PX = 1024
_UNEVEN_TIMES = 10.0  # from which a part of a slide that is brighter than the rest is told
_CELLPOSE_TFLOP = 0.618  # for each Mpx, of Cellpose's own CPnets
_DEAR_TIMES = 4.0  # as much as those, from which it is told before a run
LARGEST_SIZE_PX = 2**31 - 1  # areas of cells are counted in int32

# A patch whose means over half a cell's width span less than this share of the slide's normalised
# range holds nothing that the network would find. tests/planning/test_skipping.py proves it on real
# fields: the faintest cell that the bundled network finds there spans 0.0337 in its own
# neighbourhood, and dimmed tissue is found down to 0.0159. Simulated glass spans 0.0044 at most.
SKIP_CONTRAST = 0.0079


def build_plan(path: str | Path, settings: SegmentSettings) -> Plan:
    """Read metadata and one pass of pixels, and decide everything; two of pixels for `auto`.

    Parameters
    ----------
    path
        The slide.
    settings
        What the user asked for.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the slide, a channel, the model or the scale cannot be used.
    """
    draft = draft_plan(path, settings)
    if settings.diameter == "auto":
        draft = draft_plan(path, settings, estimate_scale(draft, settings))
    return survey_plan(draft)


def draft_plan(
    path: str | Path, settings: SegmentSettings, estimate: DiameterEstimate | None = None
) -> Plan:
    """The plan as far as metadata tell: all but normalisation bounds and patches to skip.

    Enough to know what a run needs, before a slide that declares 10^12 px is read.

    Parameters
    ----------
    path, settings
        As of `build_plan`.
    estimate
        Of the cells' diameter, where that is to be estimated. Before there is one, the scale is as
        if nothing was said of it.

    Returns and errors as for `build_plan`.
    """
    _check_settings(path, settings)
    slide = open_slide(path, settings.scene, settings.axes)
    slide.source.renew()  # the tasks of this run compare with the slide as it is now
    info = slide.info
    model = find_model(settings.model)
    membrane, nuclei, channel_notes = _choose_channels(slide, settings, model)
    _check_in_place(info, settings)
    um_per_px = settings.pixel_size or info.um_per_px
    diameter_px = settle_diameter(str(info.path), settings, um_per_px, estimate)
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
    return Plan(
        slide=info,
        model=Model(**{**asdict(model), "card": {}}),
        membrane=tuple(_unknown_bounds(info, channel) for channel in membrane),
        nuclei=_unknown_bounds(info, nuclei) if nuclei is not None else None,
        um_per_px=um_per_px,
        rescale=rescale,
        rescale_reason=reason,
        lattice=lattice,
        group_y=max(1, round(_GROUP_PX / lattice.y.step)),
        group_x=max(1, round(_GROUP_PX / lattice.x.step)),
        active=_pack(np.ones((lattice.cores.rows, lattice.cores.cols), bool)),
        mask_debris=settings.mask_debris,
        skip_contrast=SKIP_CONTRAST if settings.skip_background else -1.0,
        trace=trace,
        travel_px=16 * math.ceil(2 * diameter / 16),
        ngff=cast("Version", info.ngff) if settings.in_place else settings.ngff,
        copy_image=settings.image == "copy"
        or (settings.image == "auto" and info.kind != "ome-zarr"),
        in_place=settings.in_place,
        versions={
            **{name: version(name) for name in ("densebatch", "torch", "numpy", "numba")},
            **list_packages(model.kind),
        },
        notes=(
            *info.notes, *model.notes, *channel_notes, *scale_notes,
            *explain_estimate(estimate), *_explain_cost(model),
        ),
        estimate=estimate,
    )  # fmt: skip


def estimate_scale(
    draft: Plan, settings: SegmentSettings, earlier: Plan | None = None
) -> DiameterEstimate:
    """Estimate the diameter of a slide's cells, or recall what a run began with.

    Parameters
    ----------
    draft
        As `draft_plan` makes it without an estimate.
    settings
        For the device.
    earlier
        Of the run that is to go on, if there is one. What it estimated holds, because another
        device might round otherwise.
    """
    if earlier is not None and earlier.model.sha256 == draft.model.sha256 and earlier.estimate:
        return earlier.estimate
    slide = reopen_slide(draft.slide)
    surveys = _survey_channels(draft, slide, earlier)
    bounds = [survey.bounds for survey in surveys]
    return estimate_diameter(
        slide, draft.model, bounds[: len(draft.membrane)],
        bounds[-1] if draft.nuclei is not None else None,
        choose_fields(surveys, draft.shape), choose_device(settings.device),
    )  # fmt: skip


def survey_plan(draft: Plan, earlier: Plan | None = None) -> Plan:
    """Complete a draft with what one pass over the pixels tells.

    Parameters
    ----------
    draft
        As `draft_plan` makes it.
    earlier
        Of the run that is to go on, if there is one. What could not be read when it began is left
        out again, because it would move the normalisation a little, and a run must keep to one.
    """
    slide = reopen_slide(draft.slide)
    n_membrane = len(draft.membrane)
    surveys = _survey_channels(draft, slide, earlier)
    bounds = [survey.bounds for survey in surveys]
    threshold = draft.skip_contrast
    if not any(b.high > b.low for b in bounds[:n_membrane]):
        # A slide without any contrast has nothing to evaluate, whatever is asked for.
        threshold = np.inf
    scale = (draft.shape[0] / draft.network_shape[0], draft.shape[1] / draft.network_shape[1])
    return replace(
        draft,
        membrane=tuple(bounds[:n_membrane]),
        nuclei=bounds[-1] if draft.nuclei is not None else None,
        active=_pack(find_active_cores(draft.lattice, surveys, scale, threshold)),
        notes=(*draft.notes, *_explain_light(slide), *_odd_pixels(surveys)),
    )


def _survey_channels(draft: Plan, slide: Slide, earlier: Plan | None) -> list[ChannelSurvey]:
    """Survey the channels that the network sees, at the draft's scale."""
    percentiles, side = draft.model.percentiles, signal_side(draft.rescale)
    left_out = {} if earlier is None else {b.channel: b.unread for b in earlier.seen_channels}
    return [
        survey_channel(
            slide, b.channel, percentiles, side, mask_debris=draft.mask_debris,
            left_out=left_out.get(b.channel, ()),
        )
        for b in draft.seen_channels
    ]  # fmt: skip


def keep_survey(plan: Plan, earlier: Plan | None) -> Plan:
    """The plan that a run goes on with: as it began, if only less of the slide can be read now.

    Parameters
    ----------
    plan
        As surveyed now, before its engine is chosen.
    earlier
        Of the run in the output folder, if there is one.
    """
    if earlier is None or not any(b.unread for b in plan.seen_channels):
        return plan
    kept = replace(
        plan,
        **{name: getattr(earlier, name) for name in ("membrane", "nuclei", "active", "notes")},
    )
    used = [[b.channel for b in p.seen_channels] for p in (plan, earlier)]
    is_same = replace(kept, engine=earlier.engine).to_json() == earlier.to_json()
    return kept if is_same and used[0] == used[1] else plan


def _check_settings(path: str | Path, settings: SegmentSettings) -> None:
    """What only a plan can know to be impossible."""
    for name in ("min_size", "max_size"):
        value = getattr(settings, name)
        if value is not None and value > LARGEST_SIZE_PX:
            raise InputError(f"setting {name!r} = {value}: accepted is up to {LARGEST_SIZE_PX} px")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        # Such a name can be written neither into the plan nor into OME-Zarr metadata.
        raise InputError(
            f"{str(path)!r}: the name is not valid UTF-8; accepted are names that are, so rename it"
        ) from error


def _check_in_place(info: SlideInfo, settings: SegmentSettings) -> None:
    """Refuse to write labels into what is no OME-Zarr, or in another version than the slide's."""
    if settings.in_place and info.kind != "ome-zarr":
        raise InputError(
            f"{info.path}: labels can be written in place only into OME-Zarr, this is {info.kind}"
        )
    if settings.in_place and "ngff" in settings.model_fields_set and settings.ngff != info.ngff:
        raise InputError(
            f"{info.path}: is OME-Zarr {info.ngff}, and labels written into it are too; "
            f"--ngff {settings.ngff} is not accepted with --in-place"
        )
    if settings.in_place:
        in_place_spec(info.path, info.scene, info.axes)  # refuses scales that labels cannot copy


def _choose_channels(
    slide: Slide, settings: SegmentSettings, model: Model
) -> tuple[list[int], int | None, tuple[str, ...]]:
    """Membrane channels, the nuclear channel that the network gets, and remarks."""
    if settings.membrane:
        membrane = [slide.channel_index(name) for name in settings.membrane]
    else:
        membrane = [slide.default_channel()]
    if len(set(membrane)) != len(membrane):
        raise InputError(
            f"{slide.info.path}: membrane channels {quote_names(settings.membrane)} name one "
            "channel twice; each is accepted once"
        )
    nuclei = slide.channel_index(settings.nuclei) if settings.nuclei is not None else None
    channels = slide.info.channels
    named = [("membrane", name) for name in settings.membrane]
    named += [("nuclei", settings.nuclei)] if settings.nuclei is not None else []
    notes = [
        f"--{role} {name} {remark}"
        for role, name in named
        if (remark := explain_choice(channels, name)) is not None
    ]
    is_told = model.kind != CPNET or model.card.keys() & {"use", "source"}
    if nuclei is not None and model.nuclei and not is_told:
        notes.append(
            f"model {model.name} does not tell whether it was trained with a nuclear channel: "
            f"it is taken to be, and given {channels[nuclei]!r}"
        )
    if nuclei is None or model.nuclei:
        return membrane, nuclei, tuple(notes)
    # An input that a network never saw in training would shift all of its statistics.
    notes.append(
        f"model {model.name} was trained without a nuclear channel: "
        f"{channels[nuclei]!r} is measured in the cell table but not given to the network"
    )
    return membrane, None, tuple(notes)


def _explain_light(slide: Slide) -> Iterator[str]:
    if looks_brightfield(slide):
        yield (
            "the slide looks like a brightfield picture (light background, dark content): the "
            "bundled models find what is bright on a dark background, so that cells are missed "
            "or wrong"
        )


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
    lattice: Lattice, surveys: Sequence[ChannelSurvey], scale: tuple[float, float], threshold: float
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

    Returns
    -------
    ndarray
        `(rows, cols)` of the lattice.
    """
    cores = lattice.cores
    active = np.zeros((cores.rows, cores.cols), bool)
    for row, col in cores:
        patch = lattice.patch(row, col)
        region = Region(
            math.floor(max(patch.y0, 0) * scale[0]),
            math.floor(max(patch.x0, 0) * scale[1]),
            math.ceil(patch.y1 * scale[0]),
            math.ceil(patch.x1 * scale[1]),
        )
        contrast = contrast_in(surveys, region)
        # Where a piece could not be read there may be anything, so that it must be tried.
        active[row, col] = contrast > threshold or contrast == np.inf
    return active


def _odd_pixels(surveys: Sequence[ChannelSurvey]) -> Iterator[str]:
    """Notes on channels in which a user would not expect what is found."""
    for survey in surveys:
        b = survey.bounds
        for piece, reason in list(survey.unread.items())[:1]:
            yield (
                f"channel {b.name}: {count_of(len(survey.unread), 'piece')} cannot be read, the "
                f"first at pixels {list(astuple(piece))} ({reason}): the normalisation leaves them "
                "out, and the result lacks what depends on those that cannot be read later either"
            )
        if b.nonfinite_px:
            yield (
                f"channel {b.name}: {b.nonfinite_px} pixels are NaN or infinite; the network sees "
                "0 there, for plus infinity 1"
            )
        if b.above is not None:
            yield (
                f"channel {b.name}: spots of more than {b.above:.6g}, up to {b.debris_times:.3g} "
                f"times as bright as the tissue, in {b.debris_fraction:.2%} of the blocks of "
                f"{BLOCK_PX} px, are taken for debris: the normalisation leaves them out and the "
                "network sees 0 there; if they are cells, give --no-mask-debris"
            )
        if b.bright is not None:
            yield (
                f"channel {b.name}: spots of more than {b.bright:.6g}, up to {b.bright_times:.3g} "
                f"times as bright as the tissue, in {b.bright_fraction:.2%} of the blocks of "
                f"{BLOCK_PX} px, are taken for rare bright cells: the normalisation leaves them "
                "out, and the network is shown the tissue without them and them on their own "
                "scale; --no-mask-debris shows all on one scale"
            )
        if b.dead is not None:
            yield (
                f"channel {b.name}: pixels of {b.dead:.6g} and less lie far below all others and "
                "are taken for dead or empty: the normalisation leaves their blocks out and the "
                "network sees 0 there; if that is wrong, give --no-mask-debris"
            )
        if survey.strewn:
            yield (
                f"channel {b.name}: normalised by {b.tissue_fraction:.2%} of the blocks of "
                f"{BLOCK_PX} px, strewn over the slide and far brighter than all others (upper "
                f"bound {b.high:.6g}; 99 % of the pixels are up to {survey.usual_px:.6g}); if "
                "these are not the cells, blacken them or crop the slide"
            )
        if survey.uneven_times >= _UNEVEN_TIMES:
            yield (
                f"channel {b.name}: parts of the slide are up to {survey.uneven_times:.3g} times "
                "as bright as the rest, which looks like tissue by itself; they count in the "
                f"normalisation (upper bound {b.high:.6g}), so that the rest may be seen as "
                "background; if they are no cells, blacken them"
            )
        if survey.saturated_px is not None:
            yield (
                f"channel {b.name}: saturated, its brightest pixels, at least a hundredth of the "
                f"tissue, are all {survey.saturated_px:.6g}; cells are told apart less well there"
            )
        if b.high <= b.low:
            yield f"channel {b.name}: has no contrast, so nothing is found in it"


def _unknown_bounds(info: SlideInfo, channel: int) -> ChannelBounds:
    return ChannelBounds(channel, info.channels[channel], 0.0, 0.0, 0.0, 0)


def _pack(active: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(active).tobytes()).decode()
