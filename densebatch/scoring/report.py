"""Scores as a terminal table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from densebatch.scoring.compare import compare_predictions
from densebatch.scoring.matching import format_threshold
from densebatch.scoring.summary import Summary, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from densebatch.scoring.compare import Comparison
    from densebatch.scoring.results import BoundaryScore, ImageScore, ThresholdScore


def _number(value: float) -> float | None:
    """A float for JSON, which has no NaN."""
    return None if math.isnan(value) else value


def _threshold_record(score: ThresholdScore) -> dict[str, Any]:
    return {
        "tp": score.tp,
        "fp": score.fp,
        "fn": score.fn,
        "ap": _number(score.ap),
        "precision": _number(score.precision),
        "recall": _number(score.recall),
        "f1": _number(score.f1),
        "pq": _number(score.pq),
        "sq": _number(score.sq),
        "rq": _number(score.f1),
    }


def _boundary_record(score: BoundaryScore) -> dict[str, Any]:
    ratios = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
    return asdict(score) | {name: _number(value) for name, value in ratios.items()}


def image_record(image: ImageScore) -> dict[str, Any]:
    """One image's scores as plain data."""
    keys = [format_threshold(threshold) for threshold in image.settings.thresholds]
    record: dict[str, Any] = {
        "name": image.name,
        "n_px": image.n_px,
        "n_truth": image.n_truth,
        "n_pred": image.n_pred,
        "count_bias": _number(image.count_bias),
        "ari": _number(image.ari),
        "dice": _number(image.dice),
        "aji": _number(image.aji),
        "mean_ap": _number(image.mean_ap),
        **asdict(image.errors),
        "iou": {
            key: _threshold_record(score)
            for key, score in zip(keys, image.by_threshold, strict=True)
        },
        "by_size": [
            {"low": part.low, "high": part.high, **_threshold_record(part.score)}
            for part in image.by_size
        ],
        "iou_histogram": list(image.iou_histogram),
    }
    if image.boundary is not None:
        record["boundary"] = _boundary_record(image.boundary)
    return record


def summary_record(summary: Summary) -> dict[str, Any]:
    """The scores of all images together, as plain data."""
    keys = [format_threshold(threshold) for threshold in summary.thresholds]
    pooled: dict[str, Any] = {
        "n_images": summary.n_images,
        "n_truth": summary.n_truth,
        "n_pred": summary.n_pred,
        "mean_ap": _number(summary.pooled_ap_over_thresholds),
        **asdict(summary.errors),
        "iou": {
            key: _threshold_record(score) for key, score in zip(keys, summary.pooled, strict=True)
        },
    }
    if summary.boundary is not None:
        pooled["boundary"] = _boundary_record(summary.boundary)
    return {
        "mean": {key: {"ap": _number(ap)} for key, ap in zip(keys, summary.mean_ap, strict=True)},
        "mean_ap": _number(summary.mean_ap_over_thresholds),
        "mean_ari": _number(summary.ari),
        "mean_dice": _number(summary.dice),
        "mean_aji": _number(summary.aji),
        "pooled": pooled,
    }


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    record = asdict(comparison)
    return {k: _number(v) if isinstance(v, float) else v for k, v in record.items()}


def report_record(predictions: Mapping[str, Sequence[ImageScore]]) -> dict[str, Any]:
    """Everything as plain data: the first prediction on top, the others below `predictions`.

    Parameters
    ----------
    predictions
        Scores of the same images by each prediction.

    Returns
    -------
    dict
        At least `{"images": [{"name", "n_truth", "n_pred", "ari", "dice", "iou": {"0.50": {"tp",
        "fp", "fn", "ap", "precision", "recall", "f1"}}}], "mean": {"0.50": {"ap"}}}`. Undefined
        ratios are None.
    """
    name, images = next(iter(predictions.items()))
    settings = images[0].settings
    record: dict[str, Any] = {
        "prediction": name,
        "settings": {
            "matching": settings.matching,
            "min_size": settings.min_size,
            "ignore_below": settings.ignore_below,
            "thresholds": [format_threshold(threshold) for threshold in settings.thresholds],
        },
        "images": [image_record(image) for image in images],
        **summary_record(summarize(images)),
    }
    if len(predictions) > 1:
        record["predictions"] = [
            {
                "prediction": name,
                "images": [image_record(image) for image in images],
                **summary_record(summarize(images)),
            }
            for name, images in predictions.items()
        ]
        record["comparison"] = [comparison_record(c) for c in compare_predictions(predictions)]
    return record


def format_json(predictions: Mapping[str, Sequence[ImageScore]]) -> str:
    """`report_record` as text."""
    return json.dumps(report_record(predictions), indent=2, allow_nan=False) + "\n"


def format_csv(predictions: Mapping[str, Sequence[ImageScore]]) -> str:
    """A row for each prediction, image and threshold."""
    text = io.StringIO()
    names = ["tp", "fp", "fn", "ap", "precision", "recall", "f1", "pq", "sq", "rq"]
    shared = ["n_truth", "n_pred", "count_bias", "ari", "dice", "aji"]
    shared += ["splits", "merges", "missed", "spurious"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prediction", "image", "iou", *names, *shared])
    for prediction, images in predictions.items():
        for record in map(image_record, images):
            for key, at in record["iou"].items():
                row = [*(at[name] for name in names), *(record[name] for name in shared)]
                writer.writerow([prediction, record["name"], key, *row])
    return text.getvalue()


def show_number(value: float | None, digits: int = 3) -> str:
    """A ratio for people; a dash where it is undefined."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def show_p_value(value: float) -> str:
    """A p-value for people.

    Examples
    --------
    >>> show_p_value(0.03125), show_p_value(1e-9)
    ('0.031', '<0.001')
    """
    return "<0.001" if value < 0.001 else show_number(value)


def score_rows(
    images: Sequence[ImageScore], *, full: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of one prediction, the last row for all images together.

    Parameters
    ----------
    images
        Scores of the prediction.
    full
        All columns; else those that fit on a terminal.
    """
    settings = images[0].settings
    first, last = (format_threshold(settings.thresholds[k]) for k in (0, -1))
    bounded = any(image.boundary is not None for image in images)
    columns = [
        ("image", True),
        ("truth", True),
        ("found", True),
        (f"AP {format_threshold(settings.focus)}", True),
        (f"AP {first}:{last}", len(settings.thresholds) > 1),
        ("precision", True),
        ("recall", True),
        ("F1", True),
        ("PQ", full),
        ("ARI", True),
        ("Dice", True),
        ("AJI", full),
        ("splits", full),
        ("merges", full),
        ("missed", full),
        ("spurious", full),
        ("boundary F", bounded),
    ]
    rows = [_score_row(image.name, image, image.at(settings.focus)) for image in images]
    if len(images) > 1:
        total = summarize(images)
        k = settings.thresholds.index(settings.focus)
        rows.append(_score_row("mean / pooled", total, total.pooled[k], total.mean_ap[k]))
    shown = [k for k, (_, wanted) in enumerate(columns) if wanted]
    return [columns[k][0] for k in shown], [[row[k] for k in shown] for row in rows]


def _score_row(
    name: str, score: ImageScore | Summary, at: ThresholdScore, ap: float | None = None
) -> list[str]:
    mean_ap = score.mean_ap_over_thresholds if isinstance(score, Summary) else score.mean_ap
    ratios = [at.ap if ap is None else ap, mean_ap, at.precision, at.recall, at.f1, at.pq]
    errors = score.errors
    return [
        name,
        str(score.n_truth),
        str(score.n_pred),
        *map(show_number, [*ratios, score.ari, score.dice, score.aji]),
        *map(str, (errors.splits, errors.merges, errors.missed, errors.spurious)),
        show_number(score.boundary.f1 if score.boundary else None),
    ]


def comparison_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table that compares predictions."""
    headings = ["prediction", "against", "pairs", "AP", "its AP", "difference", "better", "worse"]
    rows = [
        [
            c.name,
            c.reference,
            f"{c.n} {c.unit}s",
            show_number(c.mean_ap),
            show_number(c.reference_ap),
            f"{c.difference:+.3f}" if c.n else "-",
            str(c.better),
            str(c.worse),
            show_p_value(c.p_value),
        ]
        for c in comparisons
    ]
    return [*headings, "p (Wilcoxon)"], rows


def print_report(predictions: Mapping[str, Sequence[ImageScore]], console: Console) -> None:
    """Print a table for each prediction, and one that compares them."""
    for name, images in predictions.items():
        _print_table(console, name, *score_rows(images, full=False))
    if len(predictions) > 1:
        rows = comparison_rows(compare_predictions(predictions))
        _print_table(console, "Comparison", *rows)
    if any(len(images) > 1 for images in predictions.values()):
        console.print(
            "Last row: mean over images of AP, ARI, Dice and AJI; precision, recall, F1 and PQ "
            "from all cells together.",
            style="dim",
        )


def _print_table(console: Console, title: str, headings: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k else "left", overflow="fold")
    for k, row in enumerate(rows):
        table.add_row(*row, end_section=k == len(rows) - 2 and row is not rows[-1])
    console.print(table)
