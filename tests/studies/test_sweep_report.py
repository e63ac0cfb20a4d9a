"""A sweep as CSV, Markdown and SVG."""

import csv
import io
import math
from fractions import Fraction
from xml.etree import ElementTree

import numpy as np
from sklearn.metrics import adjusted_rand_score

from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from densebatch.studies.sweep import Setting
from densebatch.studies.sweep_report import draw_sweep, find_best, format_csv, format_markdown


def test_images_without_cells_have_no_score():
    nothing = np.zeros((9, 9), np.uint32)
    image = score_labels(nothing, nothing, ScoreSettings(thresholds=(Fraction(1, 2),)), name="x|y")
    scores = {Setting(0.4, c, 0): (image, image) for c in (0.0, 1.0)}
    assert find_best(scores)[0] == Setting(0.4, 0.0, 0)
    assert math.isnan(find_best(scores).ap)
    assert "0.4,0.0,0,mean,0.50,,1.000000,0,0,0,0,0\n" in format_csv(scores)
    rows = [line for line in format_markdown(scores).splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [rows[0].count("|")] * 4
    root = ElementTree.fromstring(draw_sweep(scores))
    assert not list(root.iter("{http://www.w3.org/2000/svg}circle"))


def sweep_scores():
    """Two images; a lower cell probability finds a further cell, which the first image has not."""
    truth = np.array([[1, 1, 2, 2, 0, 0, 3, 3]])
    settings = ScoreSettings(("0.5", "0.75"))
    found = {-1.0: truth, 0.0: np.where(truth == 3, 0, truth)}
    return {
        Setting(flow, cellprob, 0): (
            score_labels(np.where(truth == 3, 0, truth), pred, settings, name="a"),
            score_labels(truth, pred, settings, name="b"),
        )
        for flow in (0.3, 0.4, 0.5)
        for cellprob, pred in found.items()
    }


def test_best_is_the_first_of_the_highest_mean_ap():
    assert find_best(sweep_scores()) == (Setting(0.3, -1.0, 0), (2 / 3 + 1) / 2)


def test_lines_of_csv_are_images_and_their_mean():
    rows = list(csv.DictReader(io.StringIO(format_csv(sweep_scores()))))
    assert len(rows) == 6 * 2 * 3
    ari = adjusted_rand_score([1, 1, 2, 2, 0, 0, 0, 0], [1, 1, 2, 2, 0, 0, 3, 3])
    mine = [row for row in rows if (row["flow_threshold"], row["iou"]) == ("0.4", "0.75")]
    assert [[*row.values()][3:] for row in mine[:3]] == [
        ["a", "0.75", "0.666667", f"{ari:.6f}", "2", "1", "0", "2", "3"],
        ["b", "0.75", "1.000000", "1.000000", "3", "0", "0", "3", "3"],
        ["mean", "0.75", "0.833333", f"{(1 + ari) / 2:.6f}", "5", "1", "0", "5", "6"],
    ]
    assert [row["cellprob_threshold"] for row in mine] == ["-1.0"] * 3 + ["0.0"] * 3


def test_markdown_marks_the_best_of_each_threshold():
    scores = sweep_scores()
    lines = format_markdown(scores).splitlines()
    assert lines[0] == (
        "| flow threshold | cell probability | minimum size (px) | mean AP at 0.50 "
        "| mean AP at 0.75 | mean ARI | AP at 0.50, a | AP at 0.50, b |"
    )
    assert lines[2] == "| 0.3 | -1 | 0 | **0.833** | **0.833** | 0.794 | 0.667 | 1.000 |"
    assert lines[-1].startswith("2 images. AP = TP / (TP + FP + FN)")
    one = {setting: images[:1] for setting, images in scores.items()}
    assert format_markdown(one).splitlines()[-1].startswith("1 image. ")
    assert "AP at 0.50, a" not in format_markdown(one)


def test_what_took_most_values_runs_along_the_axis():
    root = ElementTree.fromstring(draw_sweep(sweep_scores()))
    space = "{http://www.w3.org/2000/svg}"
    (chart,) = root.findall(f"{space}svg")
    told = [text.text for text in chart.findall(f"{space}text")]
    assert told[0] == "AP at 0.50, min size 0"
    assert {"cell probability -1", "0", "flow threshold", "0.3", "0.4", "0.5"} < {*told}
    circles = chart.findall(f"{space}circle")
    heights = [float(circle.get("cy")) for circle in circles]
    assert len({*heights}) == 1
    assert len(circles) == 6
