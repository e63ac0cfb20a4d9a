"""What is measured of the cells: from what the user asked for, and as `run.json` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from densebatch.compartments.masks import COMPARTMENTS
from densebatch.measuring.schema import Measures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.slides.slide import Slide

_SETTINGS = ("channels", "quantiles", "neighbour_radius")


def choose_measures(slide: Slide, settings: SegmentSettings) -> Measures:
    """What is measured of the cells.

    Parameters
    ----------
    slide
        That is measured.
    settings
        What the user asked for.

    Raises
    ------
    InputError
        If it has no such channel.
    """
    channels = {slide.channel_index(name) for name in settings.channels}
    every = range(len(slide.source.layout.channels))
    return Measures(
        channels=tuple(sorted(channels or every)),
        quantiles=tuple(settings.quantiles),
        radius_um=settings.neighbour_radius,
        compartments=COMPARTMENTS if settings.is_joined else (),
    )


def is_measured(slide: Slide, settings: SegmentSettings, report: Mapping[str, Any]) -> bool:
    """Whether a finished run measured what is asked for now, or it was measured since.

    Parameters
    ----------
    slide
        Of the run.
    settings
        What is asked for.
    report
        Content of `run.json`.
    """
    told = {name: report["settings"][name] for name in _SETTINGS}
    asked = choose_measures(slide, settings)
    then = choose_measures(slide, settings.model_copy(update=told))
    return asked == then or (report["measured"]["from"] is None and asked == read_measures(report))


def describe_measures(
    measures: Measures, channels: Sequence[str], source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was measured, as `run.json` has it under `measured`.

    Parameters
    ----------
    measures
        What was measured.
    channels
        Names of all channels of the image.
    source
        Which image, if it is not the run's slide.

    Returns
    -------
    dict
        `unread` is for what `densebatch measure` could not read; what the run could not read is in
        its report already.
    """
    return {
        "from": source,
        "channels": [channels[index] for index in measures.channels],
        "channel_indices": list(measures.channels),
        "quantiles": list(measures.quantiles),
        "neighbour_radius_um": measures.radius_um,
        "compartments": list(measures.compartments),
        "unread": [],
    }


def read_measures(report: Mapping[str, Any]) -> Measures:
    """What was measured, from the content of `run.json`."""
    told = report["measured"]
    return Measures(
        tuple(told["channel_indices"]),
        tuple(told["quantiles"]),
        told["neighbour_radius_um"],
        tuple(told.get("compartments", ())),
    )
