"""A score as one HTML page: tables, charts and pictures, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from densebatch.base.charts import draw_chart, draw_legend
from densebatch.scoring.compare import compare_predictions
from densebatch.scoring.report import tabulate_comparisons, tabulate_scores
from densebatch.scoring.results import IOU_BINS, ThresholdScore, summarize_images
from densebatch.scoring.settings import format_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.scoring.results import ImageScore

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
.scroll { overflow-x: auto } .note { color: #666; font-size: .9em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr.total td { font-weight: 600; border-top: 2px solid #999 }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .charts svg { width: 24rem; max-width: 100% }
svg text { font: 11px system-ui, sans-serif; fill: #444 } svg text.title { font-size: 13px;
  font-weight: 600 }
svg text.x { text-anchor: middle } svg text.y { text-anchor: end }
svg .grid { stroke: #e2e2e2 } svg .line { fill: none; stroke-width: 2 }
.key { margin-right: 1em } .key i { display: inline-block; width: .8em; height: .8em;
  margin-right: .35em }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
figure { margin: 0; max-width: 100% } figcaption { font-size: .9em; max-width: 32rem }
figure img { max-width: min(100%, 36rem); max-height: 56rem; image-rendering: pixelated }
"""
_COLOURS = (
    '<p><span class="key"><i style="background:#e62828"></i>truth</span>'
    '<span class="key"><i style="background:#ffe11e;outline:1px solid #bbb"></i>found (true '
    'positive)</span><span class="key"><i style="background:#28d246"></i>spurious (false '
    'positive)</span><span class="key"><i style="background:#787882"></i>ignored</span></p>'
)


@dataclass(frozen=True)
class Picture:
    """An overlay for the page.

    Attributes
    ----------
    prediction
        Which prediction it shows.
    caption
        What is to be seen.
    png
        The coded picture.
    """

    prediction: str
    caption: str
    png: bytes


def format_html(
    predictions: Mapping[str, Sequence[ImageScore]],
    pictures: Sequence[Picture] = (),
    note: str = "",
) -> str:
    """Write the page.

    Parameters
    ----------
    predictions
        Scores of the same images by each prediction.
    pictures
        Overlays.
    note
        How the images were paired.
    """
    settings = next(iter(predictions.values()))[0].settings
    focus = format_threshold(settings.focus)
    how = [f"matching: {settings.matching}", f"pictures and sizes at IoU ≥ {focus}"]
    if settings.min_size:
        how.append(f"cells below {settings.min_size} px removed on both sides")
    if settings.ignore_below:
        how.append(f"cells below {settings.ignore_below} px ignored")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>Segmentation score</title>",
        f"<style>{_STYLE}</style></head><body><h1>Segmentation score</h1>",
        f"<p class='note'>{escape('; '.join(how))}. {escape(note)}</p>",
    ]
    if len(predictions) > 1:
        headings, rows = tabulate_comparisons(compare_predictions(predictions))
        parts += ["<h2>Comparison</h2>", _table(headings, rows, total=False)]
        parts.append(
            "<p class='note'>Differences are paired by image, or by field where there is one "
            "image; p is of the two-sided Wilcoxon signed-rank test. Fields of one slide are not "
            "independent samples.</p>"
        )
    parts += ["<h2>Charts</h2>", _charts(predictions, focus)]
    for name, images in predictions.items():
        headings, rows = tabulate_scores(images)
        parts += [f"<h2>{escape(name)}</h2>", _table(headings, rows, total=len(images) > 1)]
        shown = [picture for picture in pictures if picture.prediction == name]
        if shown:
            parts += [_COLOURS, "<div class='pictures'>", *map(_figure, shown), "</div>"]
    return "".join([*parts, "</body></html>\n"])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    lines = []
    for k, row in enumerate(rows):
        kind = ' class="total"' if total and k == len(rows) - 1 else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(t)}</td>" for t in row) + "</tr>")
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _figure(picture: Picture) -> str:
    coded = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption)
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{coded}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _charts(predictions: Mapping[str, Sequence[ImageScore]], focus: str) -> str:
    settings = next(iter(predictions.values()))[0].settings
    ticks = [format_threshold(threshold) for threshold in settings.thresholds]
    sparse = [tick if k % max(1, len(ticks) // 8) == 0 else "" for k, tick in enumerate(ticks)]
    edges = settings.size_edges
    sizes = [f"{a}-{b}" for a, b in pairwise(edges)] + [f"{edges[-1]}+"]
    bins = [f"{k / IOU_BINS:.1f}" if k % 4 == 0 else "" for k in range(IOU_BINS)]
    by_threshold = {
        name: summarize_images(images).ap_by_threshold for name, images in predictions.items()
    }
    by_size = {name: _pool_sizes(images) for name, images in predictions.items()}
    histogram = {
        name: [
            float(sum(counts)) for counts in zip(*(i.iou_histogram for i in images), strict=True)
        ]
        for name, images in predictions.items()
    }
    charts = [
        draw_chart("AP over IoU threshold", "IoU threshold", sparse, by_threshold, y_max=1),
        draw_chart(
            f"AP over cell size, IoU ≥ {focus}", "area, px", sizes, by_size, bars=True, y_max=1
        ),
        draw_chart("Best IoU of the truth's cells", "IoU", bins, histogram, bars=True),
    ]
    legend = f"<p>{draw_legend(list(predictions))}</p>" if len(predictions) > 1 else ""
    return f"{legend}<div class='charts'>{''.join(charts)}</div>"


def _pool_sizes(images: Sequence[ImageScore]) -> list[float]:
    """AP of each size bin over the cells of all images; NaN for bins without any."""
    if not images:
        return [math.nan]
    return [
        sum((part.score for part in parts), ThresholdScore(0, 0, 0)).ap
        for parts in zip(*(image.by_size for image in images), strict=True)
    ]
