"""The plan of a run whose labels come from a segmenter: its options, tiles and their overlap."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.planning.plan import LabelPlan
from densebatch.planning.scale import settle_diameter
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.segmenter import SlideFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.segmenters.segmenter import Segmenter
    from densebatch.slides.info import SlideInfo
    from densebatch.survey.channel import ChannelSurvey

_CELL_UM = 10.0  # of cells whose size nobody states
USUAL_UM_PER_PX = 0.5  # a pixel, where nobody tells
# Tiles share twice as many diameters as two tiles need to see every cell whole, because cells
# differ in size.
_OVERLAP_DIAMETERS = 4
_OVERLAP_STEP_PX = 16
_LEAST_DIAMETERS = 2


def draft_labels(
    info: SlideInfo, settings: SegmentSettings, segmenter: Segmenter, common: Mapping[str, Any]
) -> LabelPlan:
    """The plan as far as metadata tell.

    Parameters
    ----------
    info
        The slide.
    settings
        What the user asked for.
    segmenter
        Of the settings.
    common
        Fields of `Plan`.

    Raises
    ------
    InputError
        If the segmenter refuses its options, or tiles would share more than half of themselves.
    """
    um_per_px = common["um_per_px"]
    stated = settle_diameter(info.path, settings, um_per_px, None)
    diameter = stated or _CELL_UM / (um_per_px or USUAL_UM_PER_PX)
    overlap = settings.overlap
    if overlap is None:
        overlap = _OVERLAP_STEP_PX * math.ceil(_OVERLAP_DIAMETERS * diameter / _OVERLAP_STEP_PX)
    if overlap > settings.tile // 2:
        chosen = "--overlap" if settings.overlap is not None else "an overlap of"
        raise InputError(
            f"{chosen} {overlap} px: accepted is up to half of --tile, which is {settings.tile} px "
            "(the overlap follows from --diameter unless --overlap states it)"
        )
    n_planes = 1 + (common["nuclei"] is not None)
    own: dict[str, Any] = {
        "versions": {**common["versions"], **segmenter.packages},
        "notes": (
            *info.notes,
            *common["notes"],
            *_explain_tiles(settings, um_per_px, stated, overlap),
        ),
    }
    given = dict(settings.segmenter_options)
    # Wrong options are refused before the slide is read; what they lack is known after.
    segmenter.complete_options(given, SlideFacts((0.5,) * n_planes, diameter, um_per_px))
    return LabelPlan(
        **{**common, **own},
        segmenter=segmenter.spec,
        segmenter_identity=segmenter.identity,
        options=given,
        levels=(),
        tile_px=settings.tile,
        overlap_px=overlap,
        diameter_px=diameter,
    )


def _explain_tiles(
    settings: SegmentSettings, um_per_px: float | None, stated: float | None, overlap: int
) -> Iterator[str]:
    if stated is not None:
        cells = f"cells of {stated:g} px, as stated"
    elif um_per_px is not None:
        cells = f"cells of {_CELL_UM:g} um ({_CELL_UM / um_per_px:.3g} px)"
    else:
        cells = (
            f"cells of {_CELL_UM:g} um at {USUAL_UM_PER_PX:g} um/px, as the pixel size is unknown"
        )
    if settings.overlap is None:
        yield (
            f"tiles of {settings.tile} px share {overlap} px, {_OVERLAP_DIAMETERS} diameters of "
            f"{cells}: state theirs with --diameter, or the overlap with --overlap"
        )
        return
    diameter = stated or _CELL_UM / (um_per_px or USUAL_UM_PER_PX)
    if overlap < _LEAST_DIAMETERS * diameter:
        yield (
            f"tiles share {overlap} px, less than {_LEAST_DIAMETERS} diameters of {cells}: cells "
            "that no tile holds whole are put together from parts"
        )
    elif stated is None and not {"diameter_px", "diameter_um"} & set(settings.segmenter_options):
        yield f"segmenter {settings.segmenter} is to find {cells}: state theirs with --diameter"


def survey_labels(plan: LabelPlan, surveys: Sequence[ChannelSurvey]) -> LabelPlan:
    """Complete a plan, whose bounds are known, with what the segmenter needs of the slide.

    Parameters
    ----------
    plan
        With the bounds of its surveys.
    surveys
        Of the channels that the segmenter sees, membrane channels first.
    """
    n_membrane = len(plan.membrane)
    # Of several membrane channels the segmenter sees the largest value of each pixel.
    levels = [max(survey.find_level() for survey in surveys[:n_membrane])]
    levels += [survey.find_level() for survey in surveys[n_membrane:]]
    options = find_segmenter(plan.segmenter).complete_options(
        plan.options, SlideFacts(tuple(levels), plan.diameter_px, plan.um_per_px)
    )
    return replace(plan, levels=tuple(levels), options=options)
