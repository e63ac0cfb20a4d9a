"""`cohort.json`: what became of each slide, written anew whenever that changes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.cohorts.rows import RECORD, fold_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from densebatch.cohorts.rows import Row
    from densebatch.run.segment import SegmentResult

State = Literal["done", "partial", "failed", "waiting"]


@dataclass(frozen=True)
class Entry:
    """What became of a slide.

    Attributes
    ----------
    sample, slide : as of `Row`
    state : `done`; `partial`, if something of it is missing; `failed`, for the reason; `waiting`,
        if it is not finished yet
    cells : how many there are, if it is done or partial
    seconds : from its beginning to its end; other slides may have been worked on meanwhile
    failed_tiles : how many there are, if it is done or partial
    reason : why it failed or what is missing, one sentence
    """

    sample: str
    slide: str
    state: State = "waiting"
    cells: int | None = None
    seconds: float | None = None
    failed_tiles: int | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a reason is there only if there is one."""
        document = asdict(self)
        if self.reason is None:
            del document["reason"]
        return document


_ADAPTER = TypeAdapter(list[Entry], config=ConfigDict(extra="ignore"))


def read_record(out: Path) -> list[Entry] | None:
    """The entries of an output folder's record; None if there is none.

    Parameters
    ----------
    out
        Output folder of a cohort.

    Raises
    ------
    InputError
        If the record cannot be read.
    """
    document = _read_document(out)
    return None if document is None else document[0]


def _read_document(out: Path) -> tuple[list[Entry], dict[str, Any] | None] | None:
    """The entries of a record, and what it tells of a normalisation of all slides together."""
    file = out / RECORD
    try:
        document = json.loads(file.read_bytes())
        return _ADAPTER.validate_python(document["samples"]), document.get("normalise")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValidationError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{file}: is damaged; removed, it is written anew by the cohort's own command"
        ) from error


class Record:
    """The record of a cohort under way.

    Parameters
    ----------
    out
        Output folder.
    rows
        Of the cohort, in the order that they are told in.
    restart
        What an earlier command has found of them does not count; else it stands until it is found
        anew.

    Attributes
    ----------
    others : samples of earlier commands that are in no row; they stay in the record, at its end
    normalise : bounds of all slides together, as `Together.to_dict` has them; None without

    Raises
    ------
    InputError
        If there is a record that cannot be read.
    """

    def __init__(self, out: Path, rows: Sequence[Row], *, restart: bool = False) -> None:
        self._file = out / RECORD
        found, self.normalise = _read_document(out) or ([], None)
        earlier = {fold_name(entry.sample): entry for entry in found}
        self._entries: dict[str, Entry] = {}
        for row in rows:
            entry = Entry(row.sample, str(row.slide.absolute()))
            known = earlier.pop(fold_name(row.sample), None)
            is_known = known is not None and known.slide == entry.slide and not restart
            self._entries[row.sample] = known if known is not None and is_known else entry
        self.others = tuple(entry.sample for entry in earlier.values())
        self._others = list(earlier.values())

    @property
    def entries(self) -> list[Entry]:
        """Of the rows, in their order."""
        return list(self._entries.values())

    def begin(self, sample: str) -> None:
        """Note that a sample that is not done is worked on.

        Raises
        ------
        OSError
            If the record cannot be written.
        """
        entry = self._entries[sample]
        if entry.state not in ("done", "waiting"):
            self._entries[sample] = Entry(sample, entry.slide)
            self.write()

    def take(self, sample: str, **found: Any) -> Entry:  # noqa: ANN401
        """Note what became of a sample, and write the record.

        Parameters
        ----------
        sample
            Of a row.
        **found
            Attributes of its `Entry`.

        Raises
        ------
        OSError
            If the record cannot be written.
        """
        entry = self._entries[sample] = Entry(sample, self._entries[sample].slide, **found)
        self.write()
        return entry

    def write(self) -> None:
        """Write the record as it stands.

        Raises
        ------
        OSError
            If that cannot be done.
        """
        entries = [entry.to_dict() for entry in (*self._entries.values(), *self._others)]
        told = {} if self.normalise is None else {"normalise": self.normalise}
        document = json.dumps({"samples": entries, **told}, indent=1)
        write_atomic(self._file, f"{document}\n".encode())


def describe_result(result: SegmentResult) -> dict[str, Any]:
    """What an `Entry` tells of a run that came to its end.

    Parameters
    ----------
    result
        Of the run.
    """
    return {
        "state": "partial" if result.is_partial else "done",
        "cells": result.cells,
        "seconds": result.report["seconds"]["total"],
        "failed_tiles": len(result.failed_tiles),
        "reason": result.tell_missing() if result.is_partial else None,
    }
