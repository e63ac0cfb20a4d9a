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
from densebatch.scoring.results import summarize_images
from densebatch.scoring.settings import format_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from rich.console import Console

    from densebatch.scoring.compare import Comparison
    from densebatch.scoring.results import BoundaryScore, ImageScore, Summary, ThresholdScore

_MATCH_COLUMNS = ("tp", "fp", "fn", "ap", "precision", "recall", "f1", "pq", "sq", "rq")
_IMAGE_COLUMNS = ("n_truth", "n_pred", "count_bias", "ari", "dice", "aji")
_ERROR_COLUMNS = ("splits", "merges", "missed", "spurious")


def build_document(predictions: Mapping[str, Sequence[ImageScore]]) -> dict[str, Any]:
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
    described = {name: _describe_images(images) for name, images in predictions.items()}
    name, images = next(iter(predictions.items()))
    settings = images[0].settings
    document: dict[str, Any] = {
        "prediction": name,
        "settings": {
            "matching": settings.matching,
            "min_size": settings.min_size,
            "ignore_below": settings.ignore_below,
            "thresholds": [format_threshold(threshold) for threshold in settings.thresholds],
            **_describe_masks(settings.label_components),
        },
        **described[name],
    }
    if len(predictions) > 1:
        document["predictions"] = [
            {"prediction": name, **scores} for name, scores in described.items()
        ]
        document["comparison"] = [asdict(c) for c in compare_predictions(predictions)]
    plain: dict[str, Any] = _replace_nan(document)
    return plain


def _describe_masks(label_components: bool | None) -> dict[str, bool]:
    """What was done with masks, where anything was asked for."""
    return {} if label_components is None else {"label_components": label_components}


def _replace_nan(value: Any) -> Any:  # noqa: ANN401
    """Plain data with None for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _describe_images(images: Sequence[ImageScore]) -> dict[str, Any]:
    return {
        "images": [_describe_image(image) for image in images],
        **_describe_summary(summarize_images(images)),
    }


def _describe_image(image: ImageScore) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": image.name,
        "n_px": image.n_px,
        "n_truth": image.n_truth,
        "n_pred": image.n_pred,
        "count_bias": image.count_bias,
        "ari": image.ari,
        "dice": image.dice,
        "aji": image.aji,
        "mean_ap": image.mean_ap,
        **asdict(image.errors),
        "iou": _describe_thresholds(image.settings.thresholds, image.by_threshold),
        "by_size": [
            {"low": part.low, "high": part.high, **_describe_matches(part.score)}
            for part in image.by_size
        ],
        "iou_histogram": image.iou_histogram,
    }
    if image.boundary is not None:
        described["boundary"] = _describe_boundary(image.boundary)
    if image.settings.label_components is not None:
        described["labelled"] = image.labelled
    return described


def _describe_summary(summary: Summary) -> dict[str, Any]:
    pooled: dict[str, Any] = {
        "n_images": summary.n_images,
        "n_truth": summary.n_truth,
        "n_pred": summary.n_pred,
        "mean_ap": summary.pooled_mean_ap,
        **asdict(summary.errors),
        "iou": _describe_thresholds(summary.thresholds, summary.pooled),
    }
    if summary.boundary is not None:
        pooled["boundary"] = _describe_boundary(summary.boundary)
    means = zip(summary.thresholds, summary.ap_by_threshold, strict=True)
    return {
        "mean": {format_threshold(threshold): {"ap": ap} for threshold, ap in means},
        "mean_ap": summary.mean_ap,
        "mean_ari": summary.ari,
        "mean_dice": summary.dice,
        "mean_aji": summary.aji,
        "pooled": pooled,
    }


def _describe_thresholds(
    thresholds: Sequence[Fraction], scores: Sequence[ThresholdScore]
) -> dict[str, dict[str, float]]:
    return {
        format_threshold(threshold): _describe_matches(score)
        for threshold, score in zip(thresholds, scores, strict=True)
    }


def _describe_matches(score: ThresholdScore) -> dict[str, float]:
    return {
        "tp": score.tp,
        "fp": score.fp,
        "fn": score.fn,
        "ap": score.ap,
        "precision": score.precision,
        "recall": score.recall,
        "f1": score.f1,
        "pq": score.pq,
        "sq": score.sq,
        "rq": score.f1,
    }


def _describe_boundary(score: BoundaryScore) -> dict[str, float]:
    ratios = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
    return asdict(score) | ratios


def format_json(predictions: Mapping[str, Sequence[ImageScore]]) -> str:
    """`build_document` as text."""
    return json.dumps(build_document(predictions), indent=2, allow_nan=False) + "\n"


def format_csv(predictions: Mapping[str, Sequence[ImageScore]]) -> str:
    """A row for each prediction, image and threshold; what is undefined is empty.

    The last column, `labelled`, is there where it was said what becomes of yes/no masks: the sides
    whose pieces became cells.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shared = (*_IMAGE_COLUMNS, *_ERROR_COLUMNS)
    told = any(
        image.settings.label_components is not None
        for images in predictions.values()
        for image in images
    )
    last = ["labelled"] if told else []
    writer.writerow(["prediction", "image", "iou", *_MATCH_COLUMNS, *shared, *last])
    for prediction, images in predictions.items():
        for image in images:
            described = _replace_nan(_describe_image(image))
            for threshold, matches in described["iou"].items():
                values = [matches[name] for name in _MATCH_COLUMNS]
                values += [described[name] for name in shared]
                values += [" ".join(image.labelled)] if told else []
                writer.writerow([prediction, image.name, threshold, *values])
    return text.getvalue()


def format_number(value: float | None, digits: int = 3) -> str:
    """A ratio for people; a dash where it is undefined."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_p_value(value: float) -> str:
    """A p-value for people.

    Examples
    --------
    >>> format_p_value(0.03125), format_p_value(1e-9)
    ('0.031', '<0.001')
    """
    return "<0.001" if value < 0.001 else format_number(value)


def tabulate_scores(
    images: Sequence[ImageScore], *, full: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of one prediction, the last row for all images together.

    Parameters
    ----------
    images
        Scores of the prediction.
    full
        All columns; else those that fit on a terminal.

    Returns
    -------
    headings
        Of the columns.
    rows
        Each as long as the headings.
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
    rows = []
    for image in images:
        matches = image.at(settings.focus)
        rows.append(_tabulate_score(image.name, image, matches, matches.ap))
    if len(images) > 1:
        summary = summarize_images(images)
        k = settings.thresholds.index(settings.focus)
        matches, ap = summary.pooled[k], summary.ap_by_threshold[k]
        rows.append(_tabulate_score("mean / pooled", summary, matches, ap))
    shown = [k for k, (_, wanted) in enumerate(columns) if wanted]
    return [columns[k][0] for k in shown], [[row[k] for k in shown] for row in rows]


def _tabulate_score(
    name: str, score: ImageScore | Summary, matches: ThresholdScore, ap: float
) -> list[str]:
    ratios = [ap, score.mean_ap, matches.precision, matches.recall, matches.f1, matches.pq]
    errors = score.errors
    return [
        name,
        str(score.n_truth),
        str(score.n_pred),
        *map(format_number, [*ratios, score.ari, score.dice, score.aji]),
        *map(str, (errors.splits, errors.merges, errors.missed, errors.spurious)),
        format_number(score.boundary.f1 if score.boundary else None),
    ]


def tabulate_comparisons(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table that compares predictions; as `tabulate_scores`."""
    headings = ["prediction", "against", "pairs", "AP", "its AP", "difference", "better", "worse"]
    rows = [
        [
            c.name,
            c.reference,
            f"{c.n} {c.unit}s",
            format_number(c.mean_ap),
            format_number(c.reference_ap),
            f"{c.difference:+.3f}" if c.n else "-",
            str(c.better),
            str(c.worse),
            format_p_value(c.p_value),
        ]
        for c in comparisons
    ]
    return [*headings, "p (Wilcoxon)"], rows


def tell_masks(predictions: Mapping[str, Sequence[ImageScore]]) -> str:
    """What became of yes/no masks, in a sentence; nothing where nothing was asked for."""
    images = [image for scores in predictions.values() for image in scores]
    asked = images[0].settings.label_components
    if asked is None:
        return ""
    if not asked:
        return "Each label was taken for one cell, in however many pieces."
    first = next(iter(predictions.values()))
    n_truth = sum("truth" in image.labelled for image in first)
    n_pred = sum("pred" in image.labelled for image in images)
    return (
        "Yes/no masks whose 8-connected pieces were taken for cells: "
        f"{n_truth} of {len(first)} of the truth, {n_pred} of {len(images)} predicted."
    )


def print_report(predictions: Mapping[str, Sequence[ImageScore]], console: Console) -> None:
    """Print a table for each prediction, one that compares them, and what became of masks."""
    for name, images in predictions.items():
        _print_table(console, name, *tabulate_scores(images, full=False))
    if len(predictions) > 1:
        rows = tabulate_comparisons(compare_predictions(predictions))
        _print_table(console, "Comparison", *rows)
    if any(len(images) > 1 for images in predictions.values()):
        console.print(
            "Last row: mean over images of AP, ARI, Dice and AJI; precision, recall, F1 and PQ "
            "from all cells together.",
            style="dim",
        )
    if told := tell_masks(predictions):
        console.print(told, style="dim")


def _print_table(console: Console, title: str, headings: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k else "left", overflow="fold")
    for k, row in enumerate(rows):
        table.add_row(*row, end_section=k == len(rows) - 2)
    console.print(table)
