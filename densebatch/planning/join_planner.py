"""The form of a run's output, and the plan of a run that joins two others."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from densebatch.base.errors import InputError
from densebatch.cells.labels import in_place_spec
from densebatch.compartments.growing import LONGEST_PX
from densebatch.planning.label_planner import USUAL_UM_PER_PX
from densebatch.planning.measured import choose_measures
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan
from densebatch.remote.address import is_address
from densebatch.slides.slide import reopen_slide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.ngff.metadata import Version
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.slides.info import SlideInfo


def join_plans(runs: Mapping[str, Plan], settings: SegmentSettings) -> JoinPlan:
    """The plan by which runs of one slide, of nuclei and perhaps cells, are joined.

    Parameters
    ----------
    runs
        Complete plans by what they segment, see `SegmentSettings.split_runs`.
    settings
        Of the whole.

    Raises
    ------
    InputError
        If there is no such channel to measure, labels cannot be written in place, a distance in um
        is asked for and nobody tells the pixel size, or it is longer than any cell.
    """
    first, nuclei = next(iter(runs.values())), runs["nuclei"]
    info, um_per_px = first.slide, first.um_per_px
    check_in_place(info, settings)
    choose_measures(reopen_slide(info), settings)  # refuses channels that are none
    if settings.expand is not None and um_per_px is None:
        raise InputError(
            f"{info.path}: tells no pixel size, which --expand {settings.expand:g} um needs; state "
            "it with --pixel-size"
        )
    ring_px = max(1.0, _to_px(settings.membrane_width, um_per_px or USUAL_UM_PER_PX))
    grow_px = 0.0
    if settings.expand is not None:
        grow_px = _to_px(settings.expand, cast("float", um_per_px))
    for option, px in (("--expand", grow_px), ("--membrane-width", ring_px)):
        if px > LONGEST_PX:
            raise InputError(
                f"{info.path}: {option} is {px:g} px, at {um_per_px or USUAL_UM_PER_PX:g} um/px; "
                f"accepted are up to {LONGEST_PX} px"
            )
    notes = []
    if um_per_px is None:
        notes.append(
            f"pixel size unknown: the membrane of a cell is a ring of {ring_px:g} px, "
            f"{settings.membrane_width:g} um at {USUAL_UM_PER_PX:g} um/px; state it with "
            "--pixel-size"
        )
    return JoinPlan(
        slide=info,
        membrane=first.membrane if "cells" in runs else (),
        nuclei=nuclei.membrane[0],
        um_per_px=um_per_px,
        mask_debris=settings.mask_debris,
        ngff=cast("Version", info.ngff) if settings.in_place else settings.ngff,
        copy_image=copies_image(info, settings),
        in_place=settings.in_place,
        versions={name: found for plan in runs.values() for name, found in plan.versions.items()},
        notes=tuple(notes),
        region=first.region,
        tissue=first.tissue,
        runs={role: plan.fingerprint for role, plan in runs.items()},
        made_by={role: _name_maker(plan) for role, plan in runs.items()},
        grow_px=grow_px,
        ring_px=ring_px,
    )


def name_options(role: str, text: str) -> str:
    """What is told of a run that is joined with another, with the options that are for it.

    Examples
    --------
    >>> name_options("nuclei", "state theirs with --diameter")
    'state theirs with --nuclei-diameter'
    """
    if role == "nuclei":  # whose overlap has no option
        for other in (", or the overlap with --overlap", " unless --overlap states it"):
            text = text.replace(other, "")
        text = text.replace("--diameter", "--nuclei-diameter")
    return text


def _to_px(um: float, um_per_px: float) -> float:
    """A distance in pixels, so that whole ones are whole.

    Examples
    --------
    >>> 0.3 / 0.1, _to_px(0.3, 0.1)
    (2.9999999999999996, 3.0)
    """
    return round(um / um_per_px, 6)


def _name_maker(plan: Plan) -> str:
    if isinstance(plan, FlowPlan):
        return f"model {plan.model.name} (sha256 {plan.model.sha256[:12]})"
    assert isinstance(plan, LabelPlan)
    return f"segmenter {plan.segmenter}"


def copies_image(info: SlideInfo, settings: SegmentSettings) -> bool:
    """Whether the image is written beside the labels."""
    return settings.image == "copy" or (settings.image == "auto" and info.kind != "ome-zarr")


def check_in_place(info: SlideInfo, settings: SegmentSettings) -> None:
    """Refuse to write labels into what is no OME-Zarr, or in another version than the slide's."""
    if settings.in_place and is_address(info.path):
        raise InputError(
            f"{info.path}: labels cannot be written into what an address names; accepted without "
            "--in-place, because outputs go to a file system"
        )
    if settings.in_place and info.kind != "ome-zarr":
        raise InputError(
            f"{info.path}: labels can be written in place only into OME-Zarr, this is {info.kind}"
        )
    if settings.in_place and "ngff" in settings.model_fields_set and settings.ngff != info.ngff:
        raise InputError(
            f"{info.path}: is OME-Zarr {info.ngff}, and labels written into it are too; "
            f"--ngff {settings.ngff} is not accepted with --in-place"
        )
    if settings.in_place and (info.z is not None or info.t is not None):
        raise InputError(
            f"{info.path}: labels of one of several images along z or t cannot be written in place"
        )
    if settings.in_place:
        in_place_spec(info.path, info.scene, info.axes)  # refuses scales that labels cannot copy
