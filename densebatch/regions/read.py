"""Read which part of a slide counts: the areas of one file without those of another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.names import count_of
from densebatch.cells.read import FILE_SUFFIXES, open_labels
from densebatch.regions.areas import Areas, pack_areas
from densebatch.regions.geojson import read_geojson
from densebatch.regions.imagej import read_rois
from densebatch.regions.runs import (
    Runs,
    concatenate,
    draw_outlines,
    find_runs,
    settle,
    stretch_mask,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.regions.runs import Outline

_ACCEPTED = (
    "accepted are GeoJSON (.geojson, .json), regions of ImageJ (.roi, .zip), and a mask image "
    "(.png, .tif, .npy, OME-Zarr)"
)
_BAND_PX = 2**24  # of a mask that are read at once
_STRETCH = 1.01  # by which a mask may be stretched more along one axis before that is told


class _Drawn(NamedTuple):
    """Areas of one file.

    Attributes
    ----------
    runs : whose values are 1, 2, ...
    names : of these
    notes : what a user should know of them
    """

    runs: Runs
    names: tuple[str, ...]
    notes: tuple[str, ...]


class NothingLeftError(InputError):
    """Of what files tell, nothing is tissue."""


@dataclass(frozen=True)
class RegionFiles:
    """The files that tell which part of a slide counts.

    Attributes
    ----------
    roi : what counts; None for all
    exclude : what does not, whatever `roi` says
    """

    roi: Path | None = None
    exclude: Path | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.roi is not None or self.exclude is not None


def read_areas(
    files: RegionFiles, shape: tuple[int, int], tissue: NDArray[np.bool_] | None = None
) -> tuple[Areas, tuple[str, ...]]:
    """The part of a slide that counts, and notes on how files were taken.

    Parameters
    ----------
    files
        At least one, unless there is `tissue`.
    shape
        Height and width of the slide.
    tissue
        `(h, w)` mask of any scale: of what the files tell, only what is true here counts.

    Raises
    ------
    InputError
        If a file cannot be read, or lies outside of the slide, or nothing is left.
    NothingLeftError
        If no tissue is left.
    """
    notes: list[str] = []
    runs = _fill(shape)
    names: tuple[str, ...] = ("",)
    if files.roi is not None:
        runs, names, notes_of = _draw(files.roi, shape)
        notes += notes_of
        runs, names = _rank(runs, names)
    if files.exclude is not None:
        cleared = _draw(files.exclude, shape)
        notes += cleared.notes
        runs = concatenate([runs, cleared.runs._replace(value=np.zeros_like(cleared.runs.value))])
    if tissue is not None:
        glass = stretch_mask(find_runs(~tissue, 0), (len(tissue), tissue.shape[1]), shape)
        runs = concatenate([runs, glass._replace(value=np.zeros_like(glass.value))])
    runs = settle(runs)
    told = {"roi": files.roi, "exclude": files.exclude}
    by_role = {role: path for role, path in told.items() if path is not None}
    if not runs.row.size and tissue is not None:
        raise NothingLeftError("no pixel of the region is tissue")
    if not runs.row.size:
        raise InputError(
            f"{files.exclude}: leaves no pixel of "
            f"{'the slide' if files.roi is None else files.roi}; accepted is what leaves some"
        )
    listed = {role: (str(path), _digest(path)) for role, path in by_role.items()}
    return pack_areas(runs, shape, names, listed), tuple(notes)


def _fill(shape: tuple[int, int]) -> Runs:
    rows = np.arange(shape[0])
    return Runs(rows, np.zeros_like(rows), np.full_like(rows, shape[1]), np.ones_like(rows))


def _rank(runs: Runs, names: Sequence[str]) -> tuple[Runs, tuple[str, ...]]:
    """Number areas so that of those over a pixel the smallest value counts.

    That is the smallest area, because it says most; one without a name comes last.
    """
    px = np.bincount(runs.value, runs.x1 - runs.x0, len(names) + 1)[1:]
    order = sorted(range(len(names)), key=lambda k: (not names[k], px[k], k))
    ranks = np.zeros(len(names) + 1, np.int64)
    ranks[np.array(order) + 1] = np.arange(len(names)) + 1
    return runs._replace(value=ranks[runs.value]), tuple(names[k] for k in order)


def _draw(path: Path, shape: tuple[int, int]) -> _Drawn:
    """Areas of a file, which may overlap.

    Raises
    ------
    InputError
        If it cannot be read, has no area, or none on the slide.
    """
    suffix = path.suffix.lower()
    try:
        if not path.exists():
            raise InputError(f"{path}: does not exist; {_ACCEPTED}")
        if suffix in (".geojson", ".json"):
            return _draw_outlines(path, *read_geojson(path), shape)
        if suffix in (".roi", ".zip") and path.is_file():
            return _draw_outlines(path, *read_rois(path), shape)
        if suffix in FILE_SUFFIXES or path.is_dir():
            return _draw_mask(path, shape)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({describe_cause(error)})") from error
    raise InputError(f"{path}: is of an unknown kind; {_ACCEPTED}")


def _draw_outlines(
    path: Path, outlines: Sequence[Outline], n_bare: int, shape: tuple[int, int]
) -> _Drawn:
    height, width = shape
    if not outlines:
        raise InputError(f"{path}: has no area, as a polygon has; {_ACCEPTED}")
    names = tuple(dict.fromkeys(outline.name for outline in outlines))
    values = {name: value for value, name in enumerate(names, 1)}
    runs = draw_outlines(outlines, [values[outline.name] for outline in outlines], shape)
    if not runs.row.size:
        raise InputError(
            f"{path}: has no pixel of the slide, which is {height} x {width} px; accepted are "
            "outlines in pixels of the slide at full resolution, from its upper left corner"
        )
    notes = []
    if n_bare:
        notes.append(
            f"{path}: {count_of(n_bare, 'object')} without an area (points, lines) left out"
        )
    beyond = sum(
        any((ring < -1).any() or (ring > (width + 1, height + 1)).any() for ring in outline.rings)
        for outline in outlines
    )
    if beyond:
        notes.append(
            f"{path}: outlines that reach beyond the slide, which is {height} x {width} px: "
            f"{beyond} of {len(outlines)}; what lies there does not count"
        )
    return _Drawn(runs, names, tuple(notes))


def _draw_mask(path: Path, shape: tuple[int, int]) -> _Drawn:
    mask = open_labels(path, masks=True)
    height, width = mask.shape
    rows = max(1, _BAND_PX // width // max(1, mask.chunks[0])) * max(1, mask.chunks[0])
    runs = concatenate(
        find_runs(mask[slice(y, min(y + rows, height)), slice(0, width)] > 0, y)
        for y in range(0, height, rows)
    )
    stretched = stretch_mask(runs, (height, width), shape)
    if not stretched.row.size:
        what = (
            "has no pixel but 0" if not runs.row.size else "has no pixel left at the slide's size"
        )
        raise InputError(f"{path}: {what}; accepted is a mask that is not 0 inside")
    y, x = shape[0] / height, shape[1] / width
    notes = list(mask.notes)
    # Levels of a pyramid are rounded to whole pixels.
    is_odd = abs(shape[0] / x - height) > 1 and abs(shape[1] / y - width) > 1
    if is_odd and max(y, x) > _STRETCH * min(y, x):
        notes.append(
            f"{path}: is {height} x {width} px and is stretched to the slide {y:.4g} times along y "
            f"and {x:.4g} times along x; if it is of a part of the slide, it lies wrong"
        )
    return _Drawn(stretched, ("",), tuple(notes))


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and contents."""
    told = hashlib.sha256()
    if path.is_file():
        told.update(path.read_bytes())
    else:
        for file in _list_files(path):
            told.update(f"{file.relative_to(path).as_posix()}\n".encode())
            told.update(file.read_bytes())
    return told.hexdigest()


def _list_files(path: Path) -> Iterator[Path]:
    return iter(sorted(p for p in path.rglob("*") if p.is_file()))


def describe_areas(areas: Areas) -> dict[str, object]:
    """What `run.json` has of a region."""
    return {
        "files": {role: {"path": path, "sha256": sha} for role, (path, sha) in areas.files.items()},
        "area_px": areas.area_px,
        "share": round(areas.area_px / (areas.height * areas.width), 6),
        "names": [name for name in areas.names if name],
        "digest": areas.digest,
    }
