"""How the commands take channels, and where they tell what was assumed."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers.run_files import call_main, read_report, simulate, write_tiff


def plan_channels(capsys, slide, *options):
    """Names of the membrane channels of a plan, by the command line."""
    code, out, err = call_main(capsys, "plan", slide, slide.parent / "out", "--json", *options)
    assert code == 0, err
    return [bounds["name"] for bounds in json.loads(out)["plan"]["membrane"]]


@pytest.fixture
def slide(tmp_path):
    names = ["CD8, clone 4B", "CD3", "Alexa 488, EGFP", "DAPI"]
    return write_tiff(tmp_path / "a.ome.tif", np.repeat(simulate(90, 120), 2, 0), names)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        (("--membrane", "CD8, clone 4B"), ["CD8, clone 4B"]),
        (("--membrane", " cd8, CLONE 4B "), ["CD8, clone 4B"]),
        (("--membrane", "CD8, clone 4B,CD3"), ["CD8, clone 4B", "CD3"]),
        (("--membrane", "3, Alexa 488, EGFP ,CD3,"), ["DAPI", "Alexa 488, EGFP", "CD3"]),
        (("--membrane", "CD8, clone 4B", "--membrane", "CD3"), ["CD8, clone 4B", "CD3"]),
        (("--membrane=CD3,#3", "--membrane=CD8, clone 4B"), ["CD3", "DAPI", "CD8, clone 4B"]),
        (("--membrane", "CD3", "--nuclei", "Alexa 488, EGFP"), ["CD3"]),
    ],
)
def test_commas_in_names_and_between_them(capsys, slide, options, channels):
    assert plan_channels(capsys, slide, *options) == channels


def test_a_settings_file_names_channels_exactly(capsys, slide, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text('membrane: ["CD8, clone 4B", CD3]')
    assert plan_channels(capsys, slide, "--config", config) == ["CD8, clone 4B", "CD3"]
    config.write_text('membrane: "CD8, clone 4B"')
    assert plan_channels(capsys, slide, "--config", config) == ["CD8, clone 4B"]
    config.write_text("membrane: [CD3, DAPI]")
    options = ("--config", config, "--membrane", "CD8, clone 4B,DAPI")
    assert plan_channels(capsys, slide, *options) == ["CD8, clone 4B", "DAPI"]


def test_a_text_of_two_meanings_is_refused(capsys, tmp_path):
    pixels = np.repeat(simulate(90, 120), 2, 0)
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD8,4B", "CD8", "4B", "CD3"])
    code, out, err = call_main(capsys, "segment", slide, tmp_path / "out", "--membrane", "CD8,4B,3")
    assert (code, out) == (2, "")
    assert "'CD8,4B,3' may be the channels 'CD8', '4B', '3', or 'CD8,4B', '3'; name them" in err
    assert not (tmp_path / "out").exists()
    assert plan_channels(capsys, slide, "--membrane", "CD8,4B", "--membrane", "3") == [
        "CD8,4B",
        "CD3",
    ]


def test_channels_and_quantiles_that_are_measured(capsys, slide, tmp_path):
    options = ("--membrane", "CD3", "--nuclei", "DAPI", "--workers", "0")
    out = tmp_path / "out"
    for wrong, sentence in [
        (("--channels", "CD3,CD9"), "has no channel 'CD9'"),
        (("--quantiles", "0.5,2"), "setting 'quantiles.1' = '2': input should be less than"),
        (
            ("--neighbour-radius", "-1"),
            "setting 'neighbour_radius' = -1.0: input should be greater",
        ),
    ]:
        code, _, err = call_main(capsys, "segment", slide, out, *options, *wrong)
        assert code == 2
        assert sentence in err
        assert not out.exists()
    measured = ("--channels", "CD8, clone 4B,DAPI", "--quantiles", "0.9,0.025")
    code, _, err = call_main(capsys, "segment", slide, out, *options, *measured)
    assert code == 0, err
    statistics = ("mean", "total", "std", "median", "q90", "q2.5")
    names = [f"{each}_{name}" for name in ("CD8, clone 4B", "DAPI") for each in statistics]
    assert pq.read_table(out / "cells.parquet").column_names[-12:] == names
    assert read_report(out)["measured"]["channels"] == ["CD8, clone 4B", "DAPI"]


def test_what_was_assumed_is_told_and_kept(capsys, tmp_path):
    """By `plan` and `segment`, and by run.json; and again where a run is complete already."""
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(90, 120), ["1", "0"], um_per_px=None)
    out = tmp_path / "out"
    options = ("--membrane", "0", "--workers", 0, "--model", "dense-tiny")
    notes = [
        "--membrane 0 is the channel labelled '0', at index 1; the one at index 0 is '#0'",
        "pixel size unknown: taken as 0.5 um/px, that of the model's images; if it is another, "
        "cells are missed or merged: state it with --pixel-size, or the cells' with --diameter",
    ]
    code, text, _ = call_main(capsys, "plan", slide, out, *options)
    assert code == 0
    assert [line for line in text.splitlines() if line.startswith("note")] == [
        f"note       {note}" for note in notes
    ]
    for _ in range(2):
        code, _, err = call_main(capsys, "segment", slide, out, *options)
        assert code == 0
        assert err.splitlines()[:2] == notes
    assert read_report(out)["notes"] == notes


def test_a_slide_that_tells_all_gives_no_note(capsys, tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(90, 120), ["CD3", "DAPI"])
    out = tmp_path / "out"
    options = ("--membrane", "CD3", "--workers", 0, "--model", "dense-tiny")
    assert call_main(capsys, "segment", slide, out, *options)[0] == 0
    assert read_report(out)["notes"] == []
