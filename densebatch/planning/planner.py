"""Decide everything about a run: from metadata (`draft_plan`), then from one pass of pixels.

What either road to labels adds is decided in `flow_planner` and `label_planner`.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

from densebatch.base.errors import InputError
from densebatch.base.names import explain_choice, quote_names
from densebatch.engines.make import choose_device
from densebatch.models.model import CPNET, find_model
from densebatch.planning.diameter import choose_fields, estimate_diameter
from densebatch.planning.flow_planner import draft_flows, survey_flows
from densebatch.planning.join_planner import check_in_place, copies_image
from densebatch.planning.label_planner import draft_labels, survey_labels
from densebatch.planning.measured import choose_measures
from densebatch.planning.plan import FlowPlan, LabelPlan
from densebatch.regions.read import RegionFiles, read_areas
from densebatch.regions.tissue import SlideTissue
from densebatch.segmenters.find import find_segmenter
from densebatch.slides.slide import open_slide, reopen_slide
from densebatch.survey.channel import count_low_bits_again, signal_side, survey_channel
from densebatch.survey.kernels import BLOCK_PX
from densebatch.survey.normalization import ChannelBounds
from densebatch.survey.notes import explain_light, explain_pixels
from densebatch.survey.tissue import find_tissue

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.models.model import Model
    from densebatch.ngff.metadata import Version
    from densebatch.planning.plan import Plan
    from densebatch.planning.scale import DiameterEstimate
    from densebatch.planning.settings import SegmentSettings
    from densebatch.regions.areas import Areas
    from densebatch.remote.tree import Place
    from densebatch.slides.info import SlideInfo
    from densebatch.slides.slide import Slide
    from densebatch.survey.channel import ChannelSurvey
    from densebatch.survey.reader import BandMap

LARGEST_SIZE_PX = 2**31 - 1  # areas of cells are counted in int32

_LABEL_PERCENTILES = (1.0, 99.0)  # as of Cellpose, that become 0 and 1 for a segmenter

_TOGETHER = "channels are normalised by the pixels of all slides of the cohort together"

Limits = tuple[float, float]
"""Pixel values of a channel that become 0 and 1."""


def build_plan(path: str | Place, settings: SegmentSettings) -> Plan:
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
    return survey_plan(refine_draft(path, settings, draft_plan(path, settings)))


def draft_plan(
    path: str | Place,
    settings: SegmentSettings,
    estimate: DiameterEstimate | None = None,
    tissue: SlideTissue | None = None,
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
    tissue
        Where that is to be found. Before it is, all of the slide counts, or what files tell.

    Returns and errors as for `build_plan`.
    """
    _check_settings(path, settings)
    slide = open_slide(
        path, settings.scene, settings.axes, z=settings.z, t=settings.t, panel=settings.panel
    )
    slide.source.renew()  # the tasks of this run compare with the slide as it is now
    info = slide.info
    libraries = ["densebatch", "numpy"]
    if settings.segmenter is None:
        model = find_model(settings.model)
        libraries += ["torch", "numba"]
        membrane, nuclei, notes = _choose_channels(slide, settings, model)
    else:
        segmenter = find_segmenter(settings.segmenter)
        membrane, nuclei, notes = _choose_channels(slide, settings, None)
    check_in_place(info, settings)
    choose_measures(slide, settings)  # refuses channels that are none
    region, region_notes = read_region(info, settings)
    common: dict[str, Any] = {
        "slide": info,
        "membrane": tuple(_unknown_bounds(info, channel) for channel in membrane),
        "nuclei": _unknown_bounds(info, nuclei) if nuclei is not None else None,
        "um_per_px": settings.pixel_size or info.um_per_px,
        "mask_debris": settings.mask_debris,
        "ngff": cast("Version", info.ngff) if settings.in_place else settings.ngff,
        "copy_image": copies_image(info, settings),
        "in_place": settings.in_place,
        "versions": {name: version(name) for name in libraries},
        "notes": (*notes, *region_notes, *(() if tissue is None else tissue.explain())),
        "region": region if tissue is None else tissue.region,
        "tissue": None if tissue is None else tissue.search,
    }
    if settings.segmenter is None:
        return draft_flows(info, settings, model, common, estimate)
    return draft_labels(info, settings, segmenter, common)


def refine_draft(
    path: str | Place,
    settings: SegmentSettings,
    draft: Plan,
    earlier: Plan | None = None,
    tissue: SlideTissue | None = None,
    estimate: DiameterEstimate | None = None,
) -> Plan:
    """The draft with what must be found on the slide first: its tissue, then its cells' diameter.

    Parameters
    ----------
    path, settings
        As of `build_plan`.
    draft
        As `draft_plan` makes it from these.
    earlier
        Of the run that is to go on, if there is one.
    tissue, estimate
        If they are known already.
    """
    if settings.tissue == "auto":
        tissue = tissue or find_slide_tissue(draft, settings, earlier)
        draft = draft_plan(path, settings, None, tissue)
    if settings.diameter == "auto" and isinstance(draft, FlowPlan):
        estimate = estimate or estimate_scale(draft, settings, earlier)
        draft = draft_plan(path, settings, estimate, tissue)
    return draft


def find_slide_tissue(draft: Plan, settings: SegmentSettings, earlier: Plan | None) -> SlideTissue:
    """Find the tissue of a slide by its membrane and nuclear channels, or recall it.

    Parameters
    ----------
    draft, settings, earlier
        As of `refine_draft`. What a run began with holds while its slide does not change, because
        a piece that cannot be read for a while would move the tissue's edge.
    """
    slide = reopen_slide(draft.slide)
    # The nuclear channel also where the network does not see it.
    named = [] if settings.nuclei is None else [slide.channel_index(settings.nuclei)]
    channels = list(dict.fromkeys([*(b.channel for b in draft.seen_channels), *named]))
    if earlier is not None and earlier.tissue is not None:
        names = [slide.info.channels[channel] for channel in channels]
        looked_at = [about.name for about in earlier.tissue.channels]
        if names == looked_at and _identify_search(earlier) == _identify_search(draft):
            return SlideTissue(earlier.tissue, earlier.region)
    files = RegionFiles(settings.roi, settings.exclude)
    return find_tissue(slide, channels, draft.um_per_px, files, draft.region)


def _identify_search(plan: Plan) -> list[Any]:
    """What the tissue of a slide depends on, besides channels."""
    digests = {r: d for r, (_, d) in plan.region.files.items()} if plan.region else {}
    return [plan.slide.identity, plan.um_per_px, digests]


def estimate_scale(
    draft: FlowPlan, settings: SegmentSettings, earlier: Plan | None = None
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
    began = earlier if isinstance(earlier, FlowPlan) else None
    if began is not None and began.estimate and began.model.sha256 == draft.model.sha256:
        return began.estimate
    surveys = survey_channels(draft, earlier)
    bounds = [survey.bounds for survey in surveys]
    return estimate_diameter(
        reopen_slide(draft.slide), draft.model, bounds[: len(draft.membrane)],
        bounds[-1] if draft.nuclei is not None else None,
        choose_fields(surveys, draft.shape), choose_device(settings.device),
    )  # fmt: skip


def survey_plan(
    draft: Plan,
    earlier: Plan | None = None,
    limits: Sequence[Limits | None] | None = None,
    elsewhere: BandMap | None = None,
) -> Plan:
    """Complete a draft with what one pass over the pixels tells.

    Parameters
    ----------
    draft
        As `draft_plan` makes it.
    earlier
        Of the run that is to go on, if there is one. What could not be read when it began is left
        out again, because it would move the normalisation a little, and a run must keep to one.
    limits
        Of each of `draft.seen_channels`, what becomes 0 and 1 in several slides together; None
        for a channel without tissue.
    elsewhere
        Has others do bands of the passes over the pixels; None where this process does all.
    """
    slide = reopen_slide(draft.slide)
    surveys = survey_channels(draft, earlier, limits, elsewhere)
    bounds = [survey.bounds for survey in surveys]
    together = () if limits is None else (_TOGETHER,)
    plan = replace(
        draft,
        membrane=tuple(bounds[: len(draft.membrane)]),
        nuclei=bounds[-1] if draft.nuclei is not None else None,
        notes=(*draft.notes, *explain_light(slide), *explain_pixels(surveys), *together),
    )
    if isinstance(plan, FlowPlan):
        return survey_flows(plan, surveys)
    assert isinstance(plan, LabelPlan)
    return survey_labels(plan, surveys)


def survey_channels(
    draft: Plan,
    earlier: Plan | None,
    limits: Sequence[Limits | None] | None = None,
    elsewhere: BandMap | None = None,
) -> list[ChannelSurvey]:
    """Survey the channels that the network or the segmenter sees, at the draft's scale.

    Parameters
    ----------
    draft, earlier, limits, elsewhere
        As of `survey_plan`.
    """
    slide, left_out = reopen_slide(draft.slide), _list_left_out(earlier)
    counted = _choose_blocks(draft)
    # Beyond the edge of a file's area a cell may go on, and beyond tissue's margin none does.
    return [
        survey_channel(
            slide, b.channel, list_percentiles(draft), _find_side(draft),
            mask_debris=draft.mask_debris, left_out=left_out.get(b.channel, ()), limits=own,
            elsewhere=elsewhere, counted=counted,
            rest_is_glass=draft.region is not None and not draft.region.files,
        )
        for b, own in zip(draft.seen_channels, limits or repeat(None), strict=False)
    ]  # fmt: skip


def count_low_bits(
    draft: Plan,
    earlier: Plan | None,
    wanted: Sequence[NDArray[np.uint32]],
    elsewhere: BandMap | None = None,
) -> list[NDArray[np.int64]]:
    """Count the wide values of the channels once more, see `count_low_bits_again`.

    Parameters
    ----------
    draft, earlier, elsewhere
        As of `survey_plan`.
    wanted
        Of each of `draft.seen_channels`.
    """
    slide, left_out = reopen_slide(draft.slide), _list_left_out(earlier)
    counted = _choose_blocks(draft)
    return [
        count_low_bits_again(
            slide, b.channel, bins, _find_side(draft), mask_debris=draft.mask_debris,
            left_out=left_out.get(b.channel, ()), elsewhere=elsewhere, counted=counted,
        )
        for b, bins in zip(draft.seen_channels, wanted, strict=True)
    ]  # fmt: skip


def list_percentiles(draft: Plan) -> tuple[float, float]:
    """Percentiles of a channel's tissue that become 0 and 1."""
    return draft.model.percentiles if isinstance(draft, FlowPlan) else _LABEL_PERCENTILES


def _find_side(draft: Plan) -> int:
    return signal_side(draft.rescale if isinstance(draft, FlowPlan) else 1.0)


def _choose_blocks(draft: Plan) -> NDArray[np.bool_] | None:
    """The blocks of a survey that count; None for all."""
    return None if draft.region is None else draft.region.choose_blocks(BLOCK_PX)


def _list_left_out(earlier: Plan | None) -> dict[int, tuple[Region, ...]]:
    return {} if earlier is None else {b.channel: b.unread for b in earlier.seen_channels}


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
    if type(earlier) is not type(plan):
        return plan
    surveyed = ["membrane", "nuclei", "notes"]
    surveyed += ["active"] if isinstance(plan, FlowPlan) else ["levels", "options"]
    kept = replace(plan, **{name: getattr(earlier, name) for name in surveyed})
    used = [[b.channel for b in p.seen_channels] for p in (plan, earlier)]
    as_begun = kept
    if isinstance(kept, FlowPlan) and isinstance(earlier, FlowPlan):
        as_begun = replace(kept, engine=earlier.engine)
    is_same = as_begun.to_json() == earlier.to_json()
    return kept if is_same and used[0] == used[1] else plan


def read_region(info: SlideInfo, settings: SegmentSettings) -> tuple[Areas | None, tuple[str, ...]]:
    """The part of the slide that counts, None for all, and notes on how it was told.

    Raises
    ------
    InputError
        If a file that tells it cannot be used.
    """
    files = RegionFiles(settings.roi, settings.exclude)
    return read_areas(files, (info.height, info.width)) if files.any else (None, ())


def _check_settings(path: str | Place, settings: SegmentSettings) -> None:
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


def _choose_channels(
    slide: Slide, settings: SegmentSettings, model: Model | None
) -> tuple[list[int], int | None, tuple[str, ...]]:
    """Membrane channels, the nuclear channel that the network gets, and remarks.

    A segmenter, which has no model, gets all that are named.
    """
    panel_membrane, panel_nuclei = slide.panel_channels
    if settings.membrane:
        membrane = [slide.channel_index(name) for name in settings.membrane]
    else:
        membrane = list(panel_membrane) or [slide.default_channel()]
    if len(set(membrane)) != len(membrane):
        raise InputError(
            f"{slide.info.path}: membrane channels {quote_names(settings.membrane)} name one "
            "channel twice; each is accepted once"
        )
    nuclei = panel_nuclei[0] if panel_nuclei else None
    if settings.nuclei is not None:
        nuclei = slide.channel_index(settings.nuclei)
    channels = slide.info.channels
    named = [("membrane", name) for name in settings.membrane]
    named += [("nuclei", settings.nuclei)] if settings.nuclei is not None else []
    notes = [
        f"--{role} {name} {remark}"
        for role, name in named
        if (remark := explain_choice(channels, name)) is not None
    ]
    notes += _tell_panel(slide, settings)
    if model is None:
        return membrane, nuclei, tuple(notes)
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


def _tell_panel(slide: Slide, settings: SegmentSettings) -> list[str]:
    """Which channels were not named by the user but by the panel."""
    channels, (membrane, nuclei) = slide.info.channels, slide.panel_channels
    notes = []
    if membrane and not settings.membrane:
        notes.append(
            f"the panel's membrane channels are {quote_names([channels[c] for c in membrane])}"
        )
    if nuclei and settings.nuclei is None:
        names = [channels[c] for c in nuclei]
        several = f": {names[0]!r} is used, since one is accepted" if len(names) > 1 else ""
        notes.append(f"the panel's nuclear channels are {quote_names(names)}{several}")
    return notes


def _unknown_bounds(info: SlideInfo, channel: int) -> ChannelBounds:
    return ChannelBounds(channel, info.channels[channel], 0.0, 0.0, 0.0, 0)
