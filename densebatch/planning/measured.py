"""What is measured of the cells: from what the user asked for, and as `run.json` has it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.compartments.names import COMPARTMENTS
from densebatch.measuring.markers import (
    Image,
    read_markers,
    read_phenotypes,
    read_shares,
    refuse_unmeasured,
)
from densebatch.measuring.schema import Marker, Measures, Phenotype, Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.regions.areas import Areas
    from densebatch.slides.slide import Slide

_SETTINGS = ("channels", "quantiles", "neighbour_radius", "fraction", "positive", "phenotype")


def choose_measures(
    slide: Slide, settings: SegmentSettings, areas: Areas | None = None
) -> Measures:
    """What is measured of the cells.

    Parameters
    ----------
    slide
        That is measured.
    settings
        What the user asked for.
    areas
        Of the slide that count; None for all.

    Raises
    ------
    InputError
        If it has no such channel, or what makes cells positive there cannot be read.
    """
    info = slide.info
    channels = {slide.channel_index(name) for name in settings.channels}
    return build_measures(
        Image(info.path, info.channels),
        tuple(sorted(channels or range(len(info.channels)))),
        settings,
        (info.height, info.width),
        COMPARTMENTS if settings.is_joined else (),
        has_regions=areas is not None and areas.has_names,
    )


def build_measures(
    image: Image,
    channels: tuple[int, ...],
    settings: SegmentSettings,
    shape: tuple[int, int],
    compartments: tuple[str, ...],
    *,
    has_regions: bool,
) -> Measures:
    """What is measured of the cells in some channels.

    Parameters
    ----------
    image
        That is measured.
    channels
        By index, ascending.
    settings
        What the user asked for.
    shape
        Height and width of the labels.
    compartments
        In which channels are measured as well.
    has_regions
        As of `Measures`.

    Raises
    ------
    InputError
        If what makes cells positive cannot be read, or is not measured, or labels that they are
        compared with cannot be opened or lie on another grid.
    """
    measures = Measures(
        channels,
        tuple(settings.quantiles),
        settings.neighbour_radius,
        compartments=compartments,
        has_regions=has_regions,
    )
    shares = read_shares(image, settings.fraction)
    markers, shares = read_markers(image, settings.positive, shares)
    measures = replace(
        measures,
        shares=shares,
        markers=markers,
        phenotypes=read_phenotypes(image, settings.phenotype, markers),
    )
    refuse_unmeasured(image, measures)
    for path in list_covers(measures):
        from densebatch.cells.read import open_labels  # and libraries for files that workers spare

        found = open_labels(path)
        if tuple(found.shape) != tuple(shape):
            raise InputError(
                f"{path}: has {found.shape[0]} x {found.shape[1]} px; accepted with --positive are "
                f"labels on the grid of the cells, {shape[0]} x {shape[1]} px"
            )
    return measures


def list_covers(measures: Measures) -> list[Path]:
    """Label images that cells are compared with."""
    return [Path(share.under) for share in measures.shares if share.under is not None]


def identify_covers(measures: Measures) -> dict[str, str]:
    """What tells whether label images that cells are compared with have changed, by path.

    Names, sizes and times of their files, as of slides.
    """
    return {str(path): _identify(path) for path in list_covers(measures)}


def find_changed_covers(report: Mapping[str, Any]) -> list[str]:
    """Label images that cells were compared with and that have changed since, or are gone.

    Parameters
    ----------
    report
        Content of `run.json`.
    """
    told = report["measured"]["covers"]
    return [path for path, identity in told.items() if _identify(Path(path)) != identity]


def _identify(path: Path) -> str:
    image = path / "segmentation.ome.zarr"
    top = image if image.is_dir() else path
    told = hashlib.blake2b(digest_size=16)
    for file in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
        stat = file.stat()
        told.update(f"{file.relative_to(top)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return told.hexdigest()


def is_measured(
    slide: Slide,
    settings: SegmentSettings,
    report: Mapping[str, Any],
    areas: Areas | None = None,
) -> bool:
    """Whether a finished run measured what is asked for now, or it was measured since.

    Parameters
    ----------
    slide
        Of the run.
    settings
        What is asked for.
    report
        Content of `run.json`.
    areas
        Of the slide that count; None for all.
    """
    told = {name: report["settings"][name] for name in _SETTINGS}
    asked = choose_measures(slide, settings, areas)
    then = choose_measures(slide, settings.model_copy(update=told), areas)
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
        "shares": [asdict(share) for share in measures.shares],
        "markers": [asdict(marker) for marker in measures.markers],
        "phenotypes": [asdict(phenotype) for phenotype in measures.phenotypes],
        "covers": identify_covers(measures),
        "compartments": list(measures.compartments),
        "regions": measures.has_regions,
        "unread": [],
    }


def read_measures(report: Mapping[str, Any]) -> Measures:
    """What was measured, from the content of `run.json`."""
    told = report["measured"]
    return Measures(
        tuple(told["channel_indices"]),
        tuple(told["quantiles"]),
        told["neighbour_radius_um"],
        tuple(Share(**share) for share in told["shares"]),
        tuple(Marker(**marker) for marker in told["markers"]),
        tuple(
            Phenotype(each["name"], tuple((channel, sign) for channel, sign in each["signs"]))
            for each in told["phenotypes"]
        ),
        tuple(told.get("compartments", ())),
        bool(told.get("regions", False)),
    )
