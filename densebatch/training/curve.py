"""The training curve: its points, its file, and its picture."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.charts import compose_picture, draw_chart

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


_BINS = 40
_TICKS = 5


def draw_curve(curve: Sequence[CurvePoint], path: Path) -> None:
    """Write the loss (means of up to 40 equal parts) and the validation scores as SVG.

    Parameters
    ----------
    curve
        Not empty.
    path
        Of the SVG file.
    """
    parts = np.array_split(np.arange(len(curve)), min(_BINS, len(curve)))
    ends = [curve[part[-1]].step for part in parts]
    losses = [float(np.mean([curve[k].loss for k in part])) for part in parts]
    every = math.ceil(len(ends) / _TICKS)
    # Ticks are counted from the last part, so that it is always named.
    ticks = [str(n) if (len(ends) - 1 - k) % every == 0 else "" for k, n in enumerate(ends)]
    charts = [draw_chart("Loss", "step", ticks, {"loss": losses})]
    validated = [point for point in curve if point.scores]
    if validated:
        names = {"map": "all cells", "map_100": "from 100 px"}
        series = {
            text: [point.scores.get(name, math.nan) for point in validated]
            for name, text in names.items()
        }
        steps = [str(point.step) for point in validated]
        title = "Mean AP, held out"
        charts.append(draw_chart(title, "step", steps, series, y_max=1.0, legend=True))
    path.write_text(compose_picture(charts), encoding="utf-8")


@dataclass
class CurvePoint:
    """One step of the training curve; `scores` only where the network was validated."""

    step: int
    loss: float
    scores: dict[str, float]


def write_curve(points: Sequence[CurvePoint], path: Path) -> None:
    """Write the training curve as CSV: step, loss, and the scores where there are some."""
    names = sorted({name for point in points for name in point.scores})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", *names])
        for point in points:
            scores = [f"{point.scores[n]:.4f}" if n in point.scores else "" for n in names]
            writer.writerow([point.step, f"{point.loss:.6f}", *scores])
