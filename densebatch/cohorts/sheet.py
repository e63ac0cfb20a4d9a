"""The rows of a cohort, and of a sample sheet: a CSV file with a row for each slide.

The form is checked as a whole before anything starts, and all faults are told with their lines.
What is wrong with a slide itself is found out when its turn comes, and fails its row alone.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from densebatch.base.errors import InputError
from densebatch.base.files import refuse_address
from densebatch.base.names import count_of, quote_names
from densebatch.base.settings import read_settings
from densebatch.cohorts.rows import Row, find_fault, fold_name, list_slides
from densebatch.models.model import find_model
from densebatch.planning.settings import SegmentSettings
from densebatch.remote.address import is_address
from densebatch.remote.tree import Place, RemotePath

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Column(NamedTuple):
    """What a column of a sheet sets.

    Attributes
    ----------
    setting : name of the setting; a column whose setting there is not yet is refused
    instead_of : setting of the command that a cell takes the place of, too
    may_be_path : whether the text may be a path, which then is relative to the sheet
    lists_channels : whether commas stand between names of channels
    """

    setting: str
    instead_of: tuple[str, ...] = ()
    may_be_path: bool = False
    lists_channels: bool = False


COLUMNS = {
    "membrane": Column("membrane", lists_channels=True),
    "nuclei": Column("nuclei"),
    "pixel_size": Column("pixel_size"),
    "diameter": Column("diameter", instead_of=("diameter_um",)),
    "model": Column("model", may_be_path=True),
    "scene": Column("scene"),
    "roi": Column("roi", may_be_path=True),
    "exclude": Column("exclude", may_be_path=True),
    "tissue": Column("tissue"),
    "z": Column("z"),
    "t": Column("t"),
    "panel": Column("panel", may_be_path=True),
}
_NEEDED = ("sample", "slide")
_SHOWN = 50


def list_rows(
    slides: Path | Sequence[Place], settings: SegmentSettings, listed: frozenset[str] = frozenset()
) -> list[Row]:
    """The rows of a cohort.

    Parameters
    ----------
    slides
        A sample sheet, or the slides themselves.
    settings, listed
        As of `read_sheet`.

    Raises
    ------
    InputError
        As `read_sheet` and `list_slides`; if there is no slide.
    """
    if isinstance(slides, Path):
        return read_sheet(slides, settings, listed)
    if not slides:
        raise InputError("no slide is named; accepted are one and more, or a sample sheet")
    return list_slides(slides, settings, listed)


def read_sheet(
    path: Path, settings: SegmentSettings, listed: frozenset[str] = frozenset()
) -> list[Row]:
    """The rows of a sample sheet.

    Parameters
    ----------
    path
        CSV file in UTF-8, with a line of column names: `sample`, `slide` and any of `COLUMNS`.
        Relative paths in it are relative to its folder.
    settings
        Of the command; what a cell does not say is taken from them.
    listed
        As of `Row`, of the settings of the command.

    Raises
    ------
    InputError
        If the file cannot be read; or with all faults of its form, each with its line.
    """
    lines = list(_read_lines(path))
    if not lines:
        raise InputError(f"{path}: is empty; accepted is a CSV file with the columns sample, slide")
    (_, header), *rest = lines
    names = [name.strip() for name in header]
    faults = _check_header(names)
    if faults:
        raise _refuse(path, [(lines[0][0], fault) for fault in faults])
    if not rest:
        raise InputError(f"{path}: has column names and no row; accepted is a row for each slide")
    reader = _Reader(path, settings, listed)
    rows = [row for line, cells in rest if (row := reader.read(line, names, cells)) is not None]
    if reader.faults:
        raise _refuse(path, reader.faults)
    return rows


def _read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable CSV file in UTF-8 ({reason})") from error


def _refuse(path: Path, faults: list[tuple[int, str]]) -> InputError:
    told = [f"line {line}: {fault}" for line, fault in faults[:_SHOWN]]
    more = len(faults) - _SHOWN
    told += [f"and {more} more"] if more > 0 else []
    return InputError(f"{path}: {count_of(len(faults), 'fault')}\n" + "\n".join(told))


def _check_header(names: list[str]) -> list[str]:
    """What is wrong with the names of columns."""
    known = [name for name, column in COLUMNS.items() if column.setting in _list_settings()]
    accepted = f"accepted are {', '.join((*_NEEDED, *known))}"
    faults = []
    for name in dict.fromkeys(names):
        if name in COLUMNS and name not in known:
            faults.append(f"column {name!r}: there is no such setting yet; {accepted}")
        elif name not in COLUMNS and name not in _NEEDED:
            faults.append(f"column {name!r} is unknown; {accepted}, with commas between")
        if names.count(name) > 1:
            faults.append(f"column {name!r} stands there {names.count(name)} times")
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        faults.append(f"without the column {quote_names(missing)}; {accepted}")
    return faults


def _list_settings() -> set[str]:
    return set(SegmentSettings.model_fields)


class _Reader:
    """Reads rows one by one, and keeps what is wrong with them."""

    def __init__(self, path: Path, settings: SegmentSettings, listed: frozenset[str]) -> None:
        self.faults: list[tuple[int, str]] = []
        self._folder = path.absolute().parent
        self._given = settings.model_dump(exclude_unset=True)
        self._listed = listed
        self._samples: dict[str, tuple[int, str]] = {}
        self._models: dict[str, str | None] = {}  # why each cannot be used

    def read(self, line: int, names: list[str], cells: list[str]) -> Row | None:
        """The row of a line; None if it has none, or a fault that leaves none."""
        n_before = len(self.faults)
        if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
            self._add(line, f"has {len(cells)} cells in {count_of(len(names), 'column')}")
        told = {name: cell.strip() for name, cell in zip(names, cells, strict=False)}
        sample, slide = (told.pop(name, "") for name in _NEEDED)
        self._check_sample(line, sample)
        place = self._find_slide(line, slide)
        settings = self._read_settings(line, {name: cell for name, cell in told.items() if cell})
        if len(self.faults) > n_before or settings is None:
            return None
        lists = {
            COLUMNS[n].setting for n, cell in told.items() if cell and COLUMNS[n].lists_channels
        }
        return Row(sample, place, settings, self._listed | lists)

    def _add(self, line: int, fault: str) -> None:
        self.faults.append((line, fault))

    def _check_sample(self, line: int, sample: str) -> None:
        fault = find_fault(sample)
        if fault is not None:
            self._add(line, f"sample {sample!r} {fault}; accepted is the name of a folder")
            return
        first, other = self._samples.setdefault(fold_name(sample), (line, sample))
        if first != line:
            same = "" if other == sample else f" (as {other!r}, which some systems take for it)"
            self._add(line, f"sample {sample!r} stands in line {first} already{same}")

    def _find_slide(self, line: int, text: str) -> Place:
        if not text:
            self._add(line, "names no slide")
            return Path()
        try:
            if is_address(text):
                return RemotePath(text)
            refuse_address(Path(text))
            place = self._folder / Path(text).expanduser()
            if not place.exists():
                self._add(line, f"slide {place} does not exist")
        except (InputError, OSError, RuntimeError, ValueError) as error:
            self._add(line, str(error))
            return Path()
        return place

    def _read_settings(self, line: int, told: dict[str, str]) -> SegmentSettings | None:
        given = dict(self._given)
        cells: dict[str, object] = {}
        for name, text in told.items():
            column = COLUMNS[name]
            for other in column.instead_of:
                given.pop(other, None)
            cells[column.setting] = self._find_file(text) if column.may_be_path else text
        try:
            settings = read_settings(SegmentSettings, None, {**given, **cells})
        except InputError as error:
            self._add(line, str(error))
            return None
        fault = self._find_model_fault(settings)
        if fault is not None:
            self._add(line, fault)
        return settings

    def _find_file(self, text: str) -> str:
        """The path of a file beside the sheet, if the text looks like one's; else the text."""
        looks_so = "/" in text or Path(text).suffix
        return str(self._folder / text) if looks_so and (self._folder / text).exists() else text

    def _find_model_fault(self, settings: SegmentSettings) -> str | None:
        """Why a model cannot be used; each is looked at once."""
        if settings.segmenter is not None:
            return None
        if settings.model not in self._models:
            try:
                find_model(settings.model)
            except InputError as error:
                self._models[settings.model] = str(error)
            else:
                self._models[settings.model] = None
        return self._models[settings.model]
