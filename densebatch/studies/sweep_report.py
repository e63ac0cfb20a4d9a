"""A sweep as CSV in long form, as a Markdown table and as a picture."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, NamedTuple

from densebatch.base.charts import compose_picture, draw_chart
from densebatch.scoring.report import format_number
from densebatch.scoring.results import summarize_images
from densebatch.scoring.settings import format_threshold
from densebatch.studies.sweep import Setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from densebatch.scoring.results import ImageScore, Summary, ThresholdScore

    Scores = Mapping[Setting, Sequence[ImageScore]]

_MAX_COLUMNS = 8  # images with a column of their own in the Markdown table
_NAMES = ("flow threshold", "cell probability", "minimum size (px)")
_SHORT = ("flow", "cell probability", "min size")


class Best(NamedTuple):
    """The combination with the highest mean AP at the first IoU, and that AP."""

    setting: Setting
    ap: float


def find_best(scores: Scores) -> Best:
    """The best combination; of equal ones the first."""
    means = _average_ap(scores)
    ranked = [setting for setting in means if not math.isnan(means[setting])] or list(means)
    best = max(ranked, key=lambda setting: means[setting])
    return Best(best, means[best])


def _average_ap(scores: Scores) -> dict[Setting, float]:
    """Mean over images of AP at the first IoU."""
    return {
        setting: summarize_images(images).ap_by_threshold[0] for setting, images in scores.items()
    }


def format_csv(scores: Scores) -> str:
    """One line per combination, image and IoU, and one with the mean over images.

    `tp`, `fp`, `fn`, `n_truth` and `n_pred` of a mean are sums.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*Setting._fields, "image", "iou", "ap", "ari", "tp", "fp", "fn", "n_truth", "n_pred"]
    )
    for setting, images in scores.items():
        summary = summarize_images(images)
        for k, threshold in enumerate(summary.thresholds):
            iou = format_threshold(threshold)
            for image in images:
                found = image.by_threshold[k]
                writer.writerow([*setting, image.name, iou, *_list_numbers(found.ap, found, image)])
            numbers = _list_numbers(summary.ap_by_threshold[k], summary.pooled[k], summary)
            writer.writerow([*setting, "mean", iou, *numbers])
    return text.getvalue()


def _list_numbers(
    ap: float, matches: ThresholdScore, score: ImageScore | Summary
) -> list[str | int]:
    """AP, ARI and counts of a line; what is undefined is empty."""
    ratios = ["" if math.isnan(value) else f"{value:.6f}" for value in (ap, score.ari)]
    return [*ratios, matches.tp, matches.fp, matches.fn, score.n_truth, score.n_pred]


def tell_labelled(names: Sequence[str]) -> str:
    """Which images' truth was a mask whose pieces became cells; nothing where none was."""
    if not names:
        return ""
    more = f" and {len(names) - _MAX_COLUMNS} more" if len(names) > _MAX_COLUMNS else ""
    shown = ", ".join(names[:_MAX_COLUMNS])
    what = "Truth that was a yes/no mask, whose 8-connected pieces were taken for cells"
    return f"{what}: {shown}{more}."


def format_markdown(scores: Scores, notes: Sequence[str] = (), labelled: Sequence[str] = ()) -> str:
    """A table with a row per combination; the best mean AP of each IoU is bold.

    Parameters
    ----------
    scores
        By combination, of each image.
    notes
        What a reader should know of how images and settings were taken.
    labelled
        Images whose truth was a mask; see `SweepResult`.
    """
    first = next(iter(scores.values()))
    thresholds = [format_threshold(t) for t in first[0].settings.thresholds]
    summaries = {setting: summarize_images(images) for setting, images in scores.items()}
    highest = [
        max((ap for ap in column if not math.isnan(ap)), default=0.0)
        for column in zip(*(s.ap_by_threshold for s in summaries.values()), strict=True)
    ]
    shown = [image.name for image in first] if 1 < len(first) <= _MAX_COLUMNS else []
    headings = [
        *_NAMES,
        *(f"mean AP at {t}" for t in thresholds),
        "mean ARI",
        *(f"AP at {thresholds[0]}, {name}" for name in shown),
    ]
    lines = [_format_row(headings), _format_row("---:" for _ in headings)]
    for setting, images in scores.items():
        summary = summaries[setting]
        means = [
            f"**{format_number(ap)}**" if ap == highest[k] else format_number(ap)
            for k, ap in enumerate(summary.ap_by_threshold)
        ]
        alone = [format_number(image.by_threshold[0].ap) for image in images if shown]
        values = [f"{value:g}" for value in setting]
        lines.append(_format_row([*values, *means, format_number(summary.ari), *alone]))
    explained = (
        f"{len(first)} image{'' if len(first) == 1 else 's'}. AP = TP / (TP + FP + FN) at the IoU "
        "given, ARI over all pixels; mean over images. The minimum size acts at scoring: smaller "
        "cells are removed from truth and prediction before matching."
    )
    if told := tell_labelled(labelled):
        explained = f"{explained} {told}"
    listed = ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*lines, "", explained, *listed, ""])


def _format_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def draw_sweep(scores: Scores) -> str:
    """Mean AP at the first IoU as an SVG file.

    Along the axis of each chart runs what took most values, its lines are what took fewer, and
    there is a chart for each value of the third.
    """
    values = [list(dict.fromkeys(setting[k] for setting in scores)) for k in range(3)]
    along, lines, charts = sorted(range(3), key=lambda k: -len(values[k]))
    means = {tuple(setting): ap for setting, ap in _average_ap(scores).items()}
    known = [ap for ap in means.values() if not math.isnan(ap)] or [0.0]
    low = math.floor(20 * min(known)) / 20
    # The axis has four divisions, each of a whole number of hundredths.
    high = low + 0.04 * max(1, math.ceil((max(known) - low) / 0.04))
    iou = format_threshold(next(iter(scores.values()))[0].settings.thresholds[0])
    pictures = []
    for chart in values[charts]:
        series = {}
        for k, line in enumerate(values[lines]):
            name = f"{line:g}" if k else f"{_SHORT[lines]} {line:g}"
            at = {lines: line, charts: chart}
            places = [{**at, along: x} for x in values[along]]
            series[name] = [means[tuple(place[k] for k in range(3))] for place in places]
        pictures.append(
            draw_chart(
                f"AP at {iou}, {_SHORT[charts]} {chart:g}",
                _NAMES[along],
                [f"{x:g}" for x in values[along]],
                series,
                y_min=low,
                y_max=high,
                legend=True,
            )
        )
    return compose_picture(pictures)
