"""Which cells are positive: columns that are made of the other columns of the table.

So what decides them is what anybody can read there, and they can be checked and made again without
a pixel. Only where all rows are there a cut can be found, which is why they are added last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from densebatch.measuring.cuts import draw_histogram, find_cut
from densebatch.measuring.schema import name_channels, name_column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.measuring.cuts import Mixture
    from densebatch.measuring.schema import Marker, Measures

    # A column of floats of the table, by name.
    ReadColumn = Callable[[str], NDArray[np.float64]]


def decide(
    read: ReadColumn,
    channels: Sequence[str],
    measures: Measures,
    known: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, pa.Array]]:
    """Decide which cells are positive, and which are of which phenotype.

    Parameters
    ----------
    read
        Reads a column of the table.
    channels
        Names of all channels of the image.
    measures
        What was measured, and the markers and phenotypes.
    known
        What an earlier call told of the same table: its cuts are taken and not found again, so that
        another processor's logarithms change no cell.

    Returns
    -------
    told : dict
        As `run.json` has it under `positivity`.
    columns : dict
        By name, booleans with nulls where a value is unknown.
    """
    names = name_channels(channels)
    told: list[dict[str, Any]] = []
    columns: dict[str, pa.Array] = {}
    signs: dict[int, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for place, marker in enumerate(measures.markers):
        name = names[marker.channel]
        column = name_column(marker.statistic, name)
        values = read(column)
        is_known = np.isfinite(values)
        before = None if known is None else known["markers"][place]
        found = before or {"marker": name, "column": column, **_cut(values[is_known], marker)}
        cut = found["cut"]
        if cut is None:
            is_known = np.zeros(values.size, np.bool_)
        positive = np.zeros(values.size, np.bool_)
        positive[is_known] = values[is_known] >= cut if cut is not None else False
        signs[marker.channel] = positive, is_known
        columns[f"positive_{name}"] = _pack(positive, is_known)
        told.append({**found, **_count(positive, is_known)})
    phenotypes = []
    for phenotype in measures.phenotypes:
        # One marker that is not as it should be is enough, whatever is unknown.
        parts = [(signs[channel], sign) for channel, sign in phenotype.signs]
        fits = np.all([(positive == sign) | ~sure for (positive, sure), sign in parts], axis=0)
        sure = np.all([sure for (_, sure), _ in parts], axis=0)
        columns[f"phenotype_{phenotype.name}"] = _pack(fits & sure, sure | ~fits)
        text = " ".join(f"{names[k]}{'+' if sign else '-'}" for k, sign in phenotype.signs)
        counted = _count(fits & sure, sure | ~fits)
        phenotypes.append({"phenotype": phenotype.name, "markers": text, **counted})
    return {"markers": told, "phenotypes": phenotypes}, columns


def _count(positive: NDArray[np.bool_], is_known: NDArray[np.bool_]) -> dict[str, int]:
    return {
        "cells": positive.size,
        "positive": int(positive.sum()),
        "unknown": positive.size - int(is_known.sum()),
    }


def _cut(values: NDArray[np.float64], marker: Marker) -> dict[str, Any]:
    """The cut of a marker, and what speaks for or against it."""
    drawn = draw_histogram(values, is_share=marker.statistic.startswith("fraction"))
    if not isinstance(marker.cut, str):
        return {"how": "given", "cut": marker.cut, "note": "", "mixture": None, "histogram": drawn}
    found = find_cut(values, marker.cut)
    return {
        "how": marker.cut,
        "cut": found.value,
        "note": found.note,
        "mixture": None if found.mixture is None else _describe(found.mixture),
        "histogram": drawn,
    }


def _describe(mixture: Mixture) -> dict[str, Any]:
    return {
        "weights": mixture.weights.tolist(),
        "log_means": mixture.means.tolist(),
        "log_deviations": mixture.deviations.tolist(),
        "apart": mixture.apart,
        "gain": mixture.gain,
    }


def _pack(values: NDArray[np.bool_], is_known: NDArray[np.bool_]) -> pa.Array:
    """Booleans, null where unknown; `pa.array` would import pandas."""
    packed = [
        pa.py_buffer(np.packbits(each.view(np.uint8), bitorder="little"))
        for each in (is_known, values)
    ]
    return pa.Array.from_buffers(pa.bool_(), values.size, packed)


def tell_positivity(told: Mapping[str, Any]) -> list[str]:
    """A line for each marker and phenotype, for the user.

    Parameters
    ----------
    told
        As `run.json` has it under `positivity`.
    """
    lines = []
    for each in told["markers"]:
        cut = "no cut" if each["cut"] is None else f"{each['column']} from {each['cut']:.6g} on"
        how = "" if each["how"] == "given" else f", {each['how']}"
        lines.append(f"{each['marker']}+  {_tell_count(each)} ({cut}{how})")
        if each["note"]:
            lines.append(f"note: {each['marker']}: {each['note']}")
    for each in told["phenotypes"]:
        what = "" if each["markers"] == each["phenotype"] else f" ({each['markers']})"
        lines.append(f"{each['phenotype']}  {_tell_count(each)}{what}")
    return lines


def _tell_count(each: Mapping[str, Any]) -> str:
    unknown = f", {each['unknown']} unknown" if each["unknown"] else ""
    return f"{each['positive']} of {each['cells']} cells{unknown}"
