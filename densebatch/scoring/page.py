"""A score as one HTML page: tables, charts and pictures, with nothing to load from elsewhere."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from densebatch.base.charts import STYLE, draw_chart, format_svg, pick_colour
from densebatch.base.page import render_page
from densebatch.scoring.compare import compare_predictions
from densebatch.scoring.overlay import GREEN, GREY, RED, YELLOW
from densebatch.scoring.report import tabulate_comparisons, tabulate_scores, tell_masks
from densebatch.scoring.results import IOU_BINS, ThresholdScore, summarize_images
from densebatch.scoring.settings import format_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from xml.etree.ElementTree import Element

    from densebatch.base.page import Picture
    from densebatch.scoring.results import ImageScore
    from densebatch.scoring.settings import ScoreSettings

_OUTLINES = (
    (RED, "truth"),
    (YELLOW, "found (true positive)"),
    (GREEN, "spurious (false positive)"),
    (GREY, "ignored"),
)
_MAX_TICKS = 8  # of the axis of thresholds


def format_html(
    predictions: Mapping[str, Sequence[ImageScore]],
    pictures: Mapping[str, Sequence[Picture]] | None = None,
    note: str = "",
) -> str:
    """Write the page.

    Parameters
    ----------
    predictions
        Scores of the same images by each prediction.
    pictures
        Overlays by prediction.
    note
        How the images were paired.

    Returns
    -------
    str
        HTML.
    """
    compared = compare_predictions(predictions) if len(predictions) > 1 else ()
    settings = next(iter(predictions.values()))[0].settings
    sections = []
    for name, images in predictions.items():
        headings, rows = tabulate_scores(images)
        sections.append(
            {
                "name": name,
                "headings": headings,
                "rows": rows,
                "has_total": len(images) > 1,
                "pictures": (pictures or {}).get(name, ()),
            }
        )
    return render_page(
        "score.html",
        title="Segmentation score",
        counted=_tell_settings(settings),
        note=" ".join(filter(None, (note, tell_masks(predictions)))),
        comparison=tabulate_comparisons(compared) if compared else None,
        chart_style=STYLE,
        charts=[format_svg(chart) for chart in _draw_charts(predictions, settings)],
        series=[(pick_colour(k), name) for k, name in enumerate(predictions)],
        outlines=[("#{:02x}{:02x}{:02x}".format(*colour), name) for colour, name in _OUTLINES],
        predictions=sections,
    )


def _tell_settings(settings: ScoreSettings) -> list[str]:
    """What was counted, in words."""
    focus = format_threshold(settings.focus)
    told = [f"matching: {settings.matching}", f"pictures and sizes at IoU ≥ {focus}"]
    if settings.min_size:
        told.append(f"cells below {settings.min_size} px removed on both sides")
    if settings.ignore_below:
        told.append(f"cells below {settings.ignore_below} px ignored")
    return told


def _draw_charts(
    predictions: Mapping[str, Sequence[ImageScore]], settings: ScoreSettings
) -> list[Element]:
    """AP over the threshold and over cell size, and the histogram of IoU."""
    ticks = [format_threshold(threshold) for threshold in settings.thresholds]
    every = max(1, len(ticks) // _MAX_TICKS)
    thresholds = [tick if k % every == 0 else "" for k, tick in enumerate(ticks)]
    edges = settings.size_edges
    sizes = [f"{low}-{high}" for low, high in pairwise(edges)] + [f"{edges[-1]}+"]
    bins = [f"{k / IOU_BINS:.1f}" if k % 4 == 0 else "" for k in range(IOU_BINS)]
    by_threshold = {
        name: summarize_images(images).ap_by_threshold for name, images in predictions.items()
    }
    by_size = {name: _pool_sizes(images) for name, images in predictions.items()}
    histogram = {name: _pool_histograms(images) for name, images in predictions.items()}
    focus = format_threshold(settings.focus)
    return [
        draw_chart("AP over IoU threshold", "IoU threshold", thresholds, by_threshold, y_max=1),
        draw_chart(
            f"AP over cell size, IoU ≥ {focus}", "area, px", sizes, by_size, bars=True, y_max=1
        ),
        draw_chart("Best IoU of the truth's cells", "IoU", bins, histogram, bars=True),
    ]


def _pool_sizes(images: Sequence[ImageScore]) -> list[float]:
    """AP of each size bin over the cells of all images; NaN for bins without any."""
    return [
        sum((part.score for part in parts), ThresholdScore(0, 0, 0)).ap
        for parts in zip(*(image.by_size for image in images), strict=True)
    ]


def _pool_histograms(images: Sequence[ImageScore]) -> list[float]:
    """Truth cells of all images by their best IoU."""
    return [float(sum(counts)) for counts in zip(*(i.iou_histogram for i in images), strict=True)]
