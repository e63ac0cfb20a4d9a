"""Label tiles that another tool left: which files, and where on the slide each lies."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.image_files import read_png_header
from densebatch.cells.read import FILE_SUFFIXES, MAX_PX, open_labels
from densebatch.merging.layout import Layout, sort_regions
from densebatch.sources.lengths import square_pixel, to_um
from densebatch.tiff.choice import choose_image
from densebatch.tiff.images import open_tiff_images
from densebatch.tiff.markup import children

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from xml.etree.ElementTree import Element

_ACCEPTED = (
    "accepted are _y123_x456 in the name (px), _r0_c1 or _row0_col1 with --step, PositionX and "
    "PositionY in OME metadata, or a CSV with the columns file, y, x"
)
_START, _END = r"(?:^|[_\-. ])", r"(?=[_\-. ]|$)"
_PX = (
    re.compile(rf"{_START}y[=_-]?(?P<y>\d+)[_\-. ]?x[=_-]?(?P<x>\d+){_END}", re.IGNORECASE),
    re.compile(rf"{_START}x[=_-]?(?P<x>\d+)[_\-. ]?y[=_-]?(?P<y>\d+){_END}", re.IGNORECASE),
)
_STEPS = (
    re.compile(
        rf"{_START}r(?:ow)?[=_-]?(?P<y>\d+)[_\-. ]?c(?:ol)?[=_-]?(?P<x>\d+){_END}", re.IGNORECASE
    ),
)
_MAX_SIDE = 2**31


@dataclass(frozen=True)
class TileSet:
    """Label tiles and where they lie.

    Attributes
    ----------
    files : in the order of the layout
    layout : in pixels of the slide
    um_per_px : as their OME metadata tell, None if they do not
    notes : a sentence for each thing that a user should know
    """

    files: tuple[Path, ...]
    layout: Layout
    um_per_px: float | None
    notes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the slide, which ends with its last tiles."""
        regions = self.layout.regions
        return max(r.y1 for r in regions), max(r.x1 for r in regions)


@dataclass(frozen=True)
class _Places:
    """Row and column of the first pixel of each file, and what was found with them."""

    at: dict[Path, tuple[int, int]]
    um_per_px: float | None = None
    notes: tuple[str, ...] = ()


def find_tiles(sources: Sequence[Path], step: int | None = None) -> TileSet:
    """List label tiles and find out where they lie.

    Parameters
    ----------
    sources
        PNG, TIFF and NumPy files, folders of them, or one CSV with the columns `file` (relative to
        its folder), `y` and `x` (px).
    step
        Pixels from a tile to the next, where names tell rows and columns.

    Raises
    ------
    InputError
        For files that are missing or no label images, whose place nobody tells, that share a
        place, or that overlap nowhere.
    """
    tables = [path for path in sources if path.suffix.lower() == ".csv"]
    if tables and len(sources) > 1:
        raise InputError(f"{tables[0]}: is a list of tiles; accepted is one alone, without others")
    places = _read_table(tables[0]) if tables else _find_places(_list_files(sources), step)
    notes = list(places.notes)
    shapes = {path: _read_shape(path, notes) for path in places.at}
    if step is not None:
        _check_step(shapes, step)
    regions = {
        path: Region(y, x, y + shapes[path][0], x + shapes[path][1])
        for path, (y, x) in places.at.items()
    }
    _refuse_same_place(regions)
    paths = list(regions)
    order = sort_regions([regions[path] for path in paths])
    files = tuple(paths[k] for k in order)
    layout = Layout(tuple(regions[path] for path in files))
    notes += _tell_alone(files, layout)
    found = TileSet(files, layout, places.um_per_px, tuple(dict.fromkeys(notes)))
    if found.shape[0] * found.shape[1] > MAX_PX:
        raise InputError(
            f"{files[-1]}: lies so that the slide has {found.shape[0]} x {found.shape[1]} px; "
            f"accepted are {MAX_PX} pixels at most"
        )
    return found


def _list_files(sources: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in sources:
        if path.is_dir():
            inside = [
                each
                for each in sorted(path.iterdir())
                if each.suffix.lower() in FILE_SUFFIXES and not each.name.startswith(".")
            ]
            if not inside:
                raise InputError(
                    f"{path}: holds no label tiles; accepted are {', '.join(FILE_SUFFIXES)} files"
                )
            files += inside
        elif not path.exists():
            raise InputError(f"{path}: does not exist; accepted are label tiles, folders or a CSV")
        else:
            files.append(path)
    seen: dict[Path, Path] = {}
    for path in files:
        if path.resolve() in seen:
            raise InputError(f"{path}: is given twice")
        seen[path.resolve()] = path
    return files


def _find_places(files: Sequence[Path], step: int | None) -> _Places:
    """Places in the names of all files, else in the metadata of all."""
    in_px = {path: _match(path, _PX) for path in files}
    in_steps = {path: _match(path, _STEPS) for path in files}
    if step is None and all(in_px.values()):
        return _Places({path: place for path, place in in_px.items() if place is not None})
    counted = {path: place for path, place in in_steps.items() if place is not None}
    if len(counted) == len(files):
        if step is None:
            raise InputError(
                f"{files[0]}: its name tells row and column; give --step, the pixels from a tile "
                "to the next"
            )
        # Rows and columns count from 0 or from 1.
        first = [min(place[axis] for place in counted.values()) for axis in (0, 1)]
        return _Places(
            {path: ((y - first[0]) * step, (x - first[1]) * step)
             for path, (y, x) in counted.items()}
        )  # fmt: skip
    if step is not None:
        lost = next(path for path in files if path not in counted)
        raise InputError(f"{lost}: --step is given, and its name has no row and column (_r0_c1)")
    if any(in_px.values()) or counted:
        kind = in_px if any(in_px.values()) else in_steps
        lost = next(path for path in files if kind[path] is None)
        raise InputError(f"{lost}: does not tell where it lies, as others do; {_ACCEPTED}")
    return _read_stage(files)


def _match(path: Path, patterns: Sequence[re.Pattern[str]]) -> tuple[int, int] | None:
    for pattern in patterns:
        found = pattern.search(path.name)
        if found is not None:
            place = int(found["y"]), int(found["x"])
            if max(place) >= _MAX_SIDE:
                raise InputError(f"{path}: lies at {place} px; accepted is less than {_MAX_SIDE}")
            return place
    return None


def _read_stage(files: Sequence[Path]) -> _Places:
    """Places from the positions of the stage, the least of which is the slide's corner."""
    told: dict[Path, tuple[float, float]] = {}
    notes: tuple[str, ...] = ()
    sizes: dict[Path, float] = {}
    for path in files:
        pixels = _read_ome(path)
        found = None if pixels is None else _read_position(pixels)
        if found is None:
            raise InputError(f"{path}: does not tell where it lies; {_ACCEPTED}")
        sizes[path], told[path] = found[0], found[1:]
        assert pixels is not None
        if any("PositionXUnit" not in plane.attrib for plane in children(pixels, "Plane")):
            notes = ("PositionX and PositionY have no unit: they are taken to be in um",)
        if abs(sizes[path] - sizes[files[0]]) > 1e-6 * sizes[path]:
            raise InputError(
                f"{path}: has pixels of {sizes[path]:g} um, and {files[0].name} of "
                f"{sizes[files[0]]:g} um; accepted are tiles of one size of pixels"
            )
    least = [min(place[axis] for place in told.values()) for axis in (0, 1)]
    size = sizes[files[0]]
    return _Places(
        {path: (round((y - least[0]) / size), round((x - least[1]) / size))
         for path, (y, x) in told.items()},
        size,
        notes,
    )  # fmt: skip


def _read_ome(path: Path) -> Element | None:
    """The `Pixels` element of a tile's OME-XML, None if it has none."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    opened = open_tiff_images(path, for_cells=True)
    try:
        ome = choose_image(opened, None, only_if_several=True).image.ome
    finally:
        opened.tif.close()
    return None if ome is None else ome.pixels


def _read_position(pixels: Element) -> tuple[float, float, float] | None:
    """Size of a pixel, and y and x of the first, in um; None if not all is told."""
    sizes = [
        to_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))
        for axis in "YX"
    ]
    size = square_pixel(*sizes)
    plane = next(children(pixels, "Plane"), None)
    if size is None or plane is None:
        return None
    place = []
    for axis in "YX":
        factor = to_um(1, plane.get(f"Position{axis}Unit", "um"))
        try:
            place.append(float(plane.get(f"Position{axis}") or "") * (factor or float("nan")))
        except ValueError:
            return None
    y, x = place
    is_known = abs(y) < _MAX_SIDE * size and abs(x) < _MAX_SIDE * size  # false for NaN
    return (size, y, x) if is_known else None


def _read_table(table: Path) -> _Places:
    """Places from a CSV."""
    at: dict[Path, tuple[int, int]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            if not {"file", "y", "x"} <= names.keys():
                raise InputError(
                    f"{table}: has the columns {', '.join(filter(None, names)) or 'none'}; "
                    "accepted are file, y, x"
                )
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                place = []
                for axis in "yx":
                    text = (row[names[axis]] or "").strip()
                    if not re.fullmatch(r"\d{1,10}(\.0*)?", text) or float(text) >= _MAX_SIDE:
                        raise InputError(
                            f"{where}: {axis} is {text!r}; accepted are whole pixels from 0 on"
                        )
                    place.append(int(float(text)))
                path = table.parent / (row[names["file"]] or "").strip()
                if not path.is_file():
                    raise InputError(f"{where}: {path} is no file")
                if path in at:
                    raise InputError(f"{where}: {path} is listed twice")
                at[path] = (place[0], place[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error})") from error
    if not at:
        raise InputError(f"{table}: lists no tiles")
    return _Places(at)


def _read_shape(path: Path, notes: list[str]) -> tuple[int, int]:
    """Rows and columns of a tile; what a user should know of it is added to the notes."""
    if path.suffix.lower() == ".png":  # which would be decoded to be opened
        header = read_png_header(path)
        return header.height, header.width
    labels = open_labels(path)
    notes += [f"{path.name}: {note}" for note in labels.notes]
    return labels.shape


def _check_step(shapes: dict[Path, tuple[int, int]], step: int) -> None:
    """Refuse a step that leaves gaps between all tiles."""
    largest = max(shapes, key=lambda path: max(shapes[path]))
    if max(shapes[largest]) <= step:
        height, width = shapes[largest]
        raise InputError(
            f"{largest}: has {height} x {width} px, and tiles that are {step} px apart (--step) do "
            "not overlap; accepted is a step smaller than the tiles"
        )


def _refuse_same_place(regions: dict[Path, Region]) -> None:
    taken: dict[tuple[int, int], Path] = {}
    for path, region in regions.items():
        first = taken.setdefault((region.y0, region.x0), path)
        if first != path:
            raise InputError(
                f"{first} and {path.name} both lie at row {region.y0}, column {region.x0}; "
                "accepted is one tile at a place"
            )


def _tell_alone(files: Sequence[Path], layout: Layout) -> tuple[str, ...]:
    """Refuse tiles that overlap nowhere; a note on those that overlap no other."""
    alone = [k for k, others in enumerate(layout.neighbours) if not others]
    if len(files) > 1 and len(alone) == len(files):
        first, second = layout.regions[:2]
        raise InputError(
            f"{files[0]}: the tiles overlap nowhere (it has rows {first.y0} to {first.y1}, columns "
            f"{first.x0} to {first.x1}, and {files[1].name} rows {second.y0} to {second.y1}, "
            f"columns {second.x0} to {second.x1}); accepted are tiles that share two cell diameters"
        )
    if len(files) > 1 and alone:
        return (
            f"{len(alone)} of {len(files)} tiles overlap no other, the first is "
            f"{files[alone[0]].name}: cells that their borders cut stay cut",
        )
    return ()
