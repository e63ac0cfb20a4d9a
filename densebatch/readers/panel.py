"""Panels of imaging mass cytometry: a CSV file that names channels, as steinbock has it.

Columns: `channel` (the metal and its mass, such as Ir191), `name`, `keep` (1, or 0 for a channel
that is left out) and `deepcell` (1 nuclei, 2 membrane or cytoplasm). `name`, `keep` and `deepcell`
may be missing or empty; other columns do not count.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.names import quote_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_BYTES = 2**22
_NUCLEI, _MEMBRANE = 1, 2
_KEEP = {"": True, "1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_GROUPS = {"": 0, "0": 0, "1": _NUCLEI, "1.0": _NUCLEI, "2": _MEMBRANE, "2.0": _MEMBRANE}


@dataclass(frozen=True)
class Chosen:
    """The channels of a file that are read.

    Attributes
    ----------
    indices : in the file
    names : of each
    nuclei, membrane : places in `indices`
    notes : a sentence for each thing that a user should know
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    nuclei: tuple[int, ...] = ()
    membrane: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def choose_all(metals: Sequence[str], labels: Sequence[str]) -> Chosen:
    """All channels, by their labels; by their metals where labels are missing or not unique.

    Examples
    --------
    >>> choose_all(["Ir191", "Gd158"], ["DNA1", ""]).names
    ('DNA1', 'Gd158')
    """
    texts = [label.strip() for label in labels]
    names = [
        text if text and texts.count(text) == 1 else metal
        for text, metal in zip(texts, metals, strict=True)
    ]
    return Chosen(tuple(range(len(names))), tuple(names))


def choose_by_panel(path: Path, panel: Path, metals: Sequence[str]) -> Chosen:
    """The channels that a panel keeps, in its order and by its names.

    Parameters
    ----------
    path
        The file, named in errors.
    panel
        The panel's file.
    metals
        Of the file's channels, each with its mass.

    Raises
    ------
    InputError
        If the panel cannot be read, keeps no channel, or one that is not in the file.
    """
    indices: list[int] = []
    names, nuclei, membrane = [], [], []
    for line, row in _read_rows(panel):
        where = f"{panel}, line {line}"
        channel = (row.get("channel") or "").strip()
        keep = _KEEP.get((row.get("keep") or "").strip().lower())
        group = _GROUPS.get((row.get("deepcell") or "").strip())
        if not channel:
            raise InputError(f"{where}: names no channel; accepted is the metal, such as Ir191")
        if keep is None:
            raise InputError(f"{where}: keep is {row['keep']!r}; accepted are 1, 0 and nothing")
        if group is None:
            raise InputError(
                f"{where}: deepcell is {row['deepcell']!r}; accepted are 1 (nuclei), 2 (membrane) "
                "and nothing"
            )
        if not keep:
            continue
        found = [k for k, metal in enumerate(metals) if metal == channel]
        if len(found) != 1 or found[0] in indices:
            what = f"{len(found)} channels" if len(found) != 1 else "another line for the channel"
            what = "no channel" if not found else what
            raise InputError(
                f"{where}: {path} has {what} {channel!r}; its channels are {quote_names(metals)}"
            )
        if group == _NUCLEI:
            nuclei.append(len(indices))
        elif group == _MEMBRANE:
            membrane.append(len(indices))
        indices += found
        names.append((row.get("name") or "").strip() or channel)
    if not indices:
        raise InputError(f"{panel} keeps no channel; accepted are panels with keep 1 for some")
    left_out = [metal for k, metal in enumerate(metals) if k not in indices]
    note = f"channels that the panel does not keep are left out: {quote_names(left_out)}"
    return Chosen(
        tuple(indices), tuple(names), tuple(nuclei), tuple(membrane), (note,) if left_out else ()
    )


def _read_rows(panel: Path) -> list[tuple[int, dict[str, str]]]:
    accepted = "accepted are CSV files with the columns channel, name, keep and deepcell"
    try:
        with panel.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{panel} cannot be read: {error.strerror}; {accepted}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{panel} is no text; {accepted}") from error
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{panel} has more than {_MAX_BYTES} bytes; {accepted}")
    try:
        reader = csv.DictReader(text.splitlines())
        names = [(name or "").strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = names
        rows = [(reader.line_num, row) for row in reader if any(filter(None, row.values()))]
    except csv.Error as error:
        raise InputError(f"{panel} is no CSV ({error}); {accepted}") from error
    if "channel" not in names:
        raise InputError(f"{panel} has the columns {quote_names(names)}; {accepted}")
    return rows
