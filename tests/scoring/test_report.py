import csv
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from densebatch.scoring.compare import Comparison
from densebatch.scoring.report import (
    build_document,
    format_csv,
    format_json,
    format_number,
    print_report,
    tabulate_comparisons,
    tabulate_scores,
)
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings

SETTINGS = ScoreSettings(("0.5", "0.9"))


@pytest.fixture
def predictions():
    """Two predictions of two images; the second image has no cell at all."""
    truth, pred = np.array([[1, 1, 1, 1, 2, 2, 0, 0]]), np.array([[1, 1, 1, 0, 0, 0, 0, 9]])
    nothing = np.zeros((1, 8), int)

    def score(labels):
        return [
            score_labels(truth, labels, SETTINGS, name="a", boundary_px=0),
            score_labels(nothing, nothing, SETTINGS, name="b", boundary_px=0),
        ]

    return {"first": score(pred), "second": score(truth)}


def test_document_of_one_prediction(predictions):
    document = build_document({"first": predictions["first"]})
    assert [*document] == [
        *("prediction", "settings", "images", "mean", "mean_ap", "mean_ari", "mean_dice"),
        *("mean_aji", "pooled"),
    ]
    assert document["settings"] == {
        "matching": "any",
        "min_size": 0,
        "ignore_below": 0,
        "thresholds": ["0.50", "0.90"],
    }
    image = document["images"][0]
    assert {k: image[k] for k in ("name", "n_px", "n_truth", "n_pred", "count_bias")} == {
        "name": "a",
        "n_px": 8,
        "n_truth": 2,
        "n_pred": 2,
        "count_bias": 0.0,
    }
    assert image["iou"]["0.50"] == {
        "tp": 1,
        "fp": 1,
        "fn": 1,
        "ap": 1 / 3,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "pq": 0.375,
        "sq": 0.75,
        "rq": 0.5,
    }
    assert {k: image[k] for k in ("splits", "merges", "missed", "spurious")} == {
        **{"splits": 0, "merges": 0},
        **{"missed": 1, "spurious": 1},
    }
    assert [(part["low"], part["high"]) for part in image["by_size"]][-1] == (800, None)
    assert image["by_size"][0]["tp"] == 1
    assert (image["dice"], image["mean_ap"]) == ((6 / 7) / 2, (1 / 3) / 2)
    assert sum(image["iou_histogram"]) == 2
    assert image["boundary"]["tolerance_px"] == 0
    assert document["mean"] == {"0.50": {"ap": 1 / 3}, "0.90": {"ap": 0.0}}
    pooled = document["pooled"]
    assert (pooled["n_images"], pooled["n_truth"], pooled["iou"]["0.50"]["fn"]) == (2, 2, 1)
    assert pooled["boundary"]["truth_px"] == image["boundary"]["truth_px"]


def test_what_is_undefined_is_null_in_strict_json(predictions):
    text = format_json(predictions)
    assert "NaN" not in text
    nothing = json.loads(text)["images"][1]
    assert nothing["iou"]["0.50"]["ap"] is None
    assert nothing["boundary"]["precision"] is None
    assert nothing["dice"] is nothing["mean_ap"] is nothing["count_bias"] is None
    assert nothing["ari"] == 1


def test_document_of_several_predictions(predictions):
    document = build_document(predictions)
    both = document["predictions"]
    assert [scores["prediction"] for scores in both] == ["first", "second"]
    assert both[0] == {k: v for k, v in document.items() if k in both[0]}
    assert document["comparison"] == [
        {
            "name": "second",
            "reference": "first",
            "unit": "image",
            "n": 1,
            "mean_ap": 1.0,
            "reference_ap": 1 / 3,
            "difference": 1 - 1 / 3,
            "better": 1,
            "worse": 0,
            "p_value": 1.0,
        }
    ]


def test_csv_has_a_row_for_each_prediction_image_and_threshold(predictions):
    rows = list(csv.DictReader(io.StringIO(format_csv(predictions))))
    assert [(r["prediction"], r["image"], r["iou"]) for r in rows] == [
        (name, image, iou) for name in predictions for image in "ab" for iou in ("0.50", "0.90")
    ]
    document = build_document(predictions)
    for row, scores in zip(rows[::4], document["predictions"], strict=True):
        image = scores["images"][0]
        for key in ("tp", "fp", "fn", "ap", "precision", "recall", "f1", "pq", "sq", "rq"):
            assert float(row[key]) == image["iou"]["0.50"][key]
        for key in ("n_truth", "n_pred", "ari", "dice", "aji", "splits", "missed", "spurious"):
            assert float(row[key]) == image[key]
    assert rows[2]["ap"] == rows[2]["dice"] == ""


def test_tables_round_and_end_with_all_images(predictions):
    headings, rows = tabulate_scores(predictions["first"])
    assert headings == [
        *("image", "truth", "found", "AP 0.50", "AP 0.50:0.90", "precision", "recall", "F1", "PQ"),
        *("ARI", "Dice", "AJI", "splits", "merges", "missed", "spurious", "boundary F"),
    ]
    table = [dict(zip(headings, row, strict=True)) for row in rows]
    assert [row["image"] for row in table] == ["a", "b", "mean / pooled"]
    assert [row["AP 0.50"] for row in table] == ["0.333", "-", "0.333"]
    assert [row["AP 0.50:0.90"] for row in table] == ["0.167", "-", "0.167"]
    assert [row["PQ"] for row in table] == ["0.375", "-", "0.375"]
    assert [row["ARI"] for row in table][1] == "1.000"
    assert [row["missed"] for row in table] == ["1", "0", "1"]


def test_tables_leave_out_what_was_not_asked_for():
    labels = np.array([[1, 2]])
    headings, rows = tabulate_scores([score_labels(labels, labels, ScoreSettings(("0.7",)))])
    assert len(rows) == 1
    assert "AP 0.70" in headings
    assert not {"boundary F", "AP 0.70:0.70"} & {*headings}
    short, _ = tabulate_scores([score_labels(labels, labels)], full=False)
    assert not {"PQ", "AJI", "splits", "merges", "missed", "spurious"} & {*short}


def test_comparisons_are_written_for_people():
    some = Comparison("new", "old", "field", 12, 0.5, 0.25, 0.25, 9, 3, 1e-5)
    none = Comparison("new", "old", "image", 0, *[math.nan] * 3, 0, 0, math.nan)
    assert tabulate_comparisons([some, none])[1] == [
        ["new", "old", "12 fields", "0.500", "0.250", "+0.250", "9", "3", "<0.001"],
        ["new", "old", "0 images", "-", "-", "-", "0", "0", "-"],
    ]


def test_numbers_for_people():
    assert [format_number(v) for v in (0.12345, None, math.nan)] == ["0.123", "-", "-"]
    assert format_number(0.12345, 1) == "0.1"


def test_printed_report_has_a_table_for_each_prediction(predictions):
    text = io.StringIO()
    print_report(predictions, Console(file=text, width=150))
    told = text.getvalue()
    assert told.index("first") < told.index("second") < told.index("Comparison")
    assert told.count("mean / pooled") == 2
    assert "Last row: mean over images of AP" in told
    alone = io.StringIO()
    print_report({"one": predictions["first"][:1]}, Console(file=alone, width=150))
    for text in ("Comparison", "Last row", "mean"):
        assert text not in alone.getvalue()
