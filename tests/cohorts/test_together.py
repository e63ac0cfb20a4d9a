"""`--normalise together`: the same bounds for all slides, by the pixels of all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densebatch.cohorts import together
from densebatch.cohorts.crew import Crew, size_crew
from densebatch.cohorts.drive import drive_cohort
from densebatch.cohorts.rows import Row
from densebatch.cohorts.together import survey_together
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import load_settings
from densebatch.run import prepare, start
from densebatch.run.segment import segment
from densebatch.slides.slide import open_slide
from densebatch.survey.channel import survey_channel
from densebatch.survey.percentiles import Pool
from tests.helpers.cohort_slides import OPTIONS, states, write_broken, write_slides
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    count_calls,
    output_bytes,
    read_report,
    simulate,
    write_tiff,
)

GIVEN = {"membrane": ("CD3",), "model": "dense-tiny", "workers": 0}
SETTINGS = load_settings(None, normalise="together", **GIVEN)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Three slides, each brighter than the one before, of which one is broken too."""
    folder = tmp_path_factory.mktemp("slides")
    whole = [
        write_tiff(folder / f"s{k}.ome.tif", simulate(96, 110, seed=k) * (k + 1), ["CD3", "DAPI"])
        for k in range(3)
    ]
    return [*whole, write_broken(folder, write_slides(folder / "more", 1)[0])]


def rows_of(slides):
    return [Row(path.name.split(".")[0], path, SETTINGS) for path in slides]


def bounds(out):
    plan = read_report(out)["plan"]
    return [(b["low"], b["high"]) for b in plan["membrane"]]


def test_all_slides_have_the_bounds_of_all(slides, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    progress = Watcher()
    result = drive_cohort(rows_of(slides), out, SETTINGS, progress=progress)
    assert [entry.state for entry in result.entries] == ["done", "done", "done", "failed"]
    told = json.loads((out / "cohort.json").read_text())["normalise"]
    assert (told["channels"], told["slides"]) == (["CD3"], 3)
    percentiles = (1.0, 99.0)
    pool = Pool(percentiles, np.dtype("uint16"))
    for path in slides[:3]:
        pool.add(survey_channel(open_slide(path), 0, percentiles, 16).tissue)
    assert told["limits"] == [list(pool.find_limits())]
    for k in range(3):
        assert bounds(out / f"s{k}") == [tuple(told["limits"][0])]
        report = read_report(out / f"s{k}")
        assert report["settings"]["normalise"] == "together"
        assert any("of all slides of the cohort together" in note for note in report["notes"])
    assert "survey together" in progress.stages
    # In another order, the same bytes.
    drive_cohort(rows_of(slides[::-1]), other, SETTINGS)
    for k in range(3):
        assert_same_output(other / f"s{k}", output_bytes(out / f"s{k}"))
    # Again: the bounds are known, and all is done.
    again = Watcher()
    drive_cohort(rows_of(slides), out, SETTINGS, progress=again)
    assert "survey together" not in again.stages
    assert sum("already complete" in note for note in again.notes) == 3


def test_by_itself_a_slide_has_its_own(slides, tmp_path):
    """Also in a cohort of one; a batch that has become another is refused row by row."""
    segment(slides[0], tmp_path / "single", **GIVEN)
    out = tmp_path / "out"
    drive_cohort(rows_of(slides[:1]), out, SETTINGS)
    assert bounds(out / "s0") == bounds(tmp_path / "single")
    assert_same_output(out / "s0", output_bytes(tmp_path / "single"))
    result = drive_cohort(rows_of(slides[:2]), out, SETTINGS)
    assert [entry.state for entry in result.entries] == ["failed", "done"]
    assert "holds another run: membrane[0]." in result.entries[0].reason


def test_wide_pixels_and_a_slide_that_is_constant(tmp_path):
    """Floats are counted in two passes; a slide without anything on it counts in neither."""
    pixels = [simulate(96, 110, seed=k).astype(np.float32) * (k + 0.3) for k in range(2)]
    flat = np.full_like(pixels[0], 500.25)
    slides = [
        write_tiff(tmp_path / f"{name}.ome.tif", each, ["CD3", "DAPI"])
        for name, each in zip("abf", [*pixels, flat], strict=True)
    ]
    for name, some in (("two", slides[:2]), ("three", slides)):
        drive_cohort(rows_of(some), tmp_path / name, SETTINGS)
    limits = [
        json.loads((tmp_path / name / "cohort.json").read_text())["normalise"]["limits"]
        for name in ("two", "three")
    ]
    assert limits[0] == limits[1]
    every = np.concatenate([each[0].ravel() for each in pixels])
    low, high = np.percentile(every, (1.0, 99.0))
    assert limits[0][0][0] == pytest.approx(low, rel=0.02)  # nearly all is tissue
    assert limits[0][0][1] == pytest.approx(high, rel=0.02)
    assert bounds(tmp_path / "three" / "f") == [(500.25, 500.25)]


@pytest.mark.slow
def test_workers_read_what_is_much(tmp_path, monkeypatch):
    """With the bounds of a survey by this process, also where it takes two passes."""
    slides = [
        write_tiff(
            tmp_path / f"{k}.ome.tif", simulate(2100, 200, seed=k).astype(np.float32),
            ["CD3", "DAPI"],
        )
        for k in range(2)
    ]  # fmt: skip
    drafts = [draft_plan(path, SETTINGS) for path in slides]
    assert sum(map(prepare.count_reads, drafts)) == 4
    rows = rows_of(slides)
    expected = survey_together(rows, tmp_path / "none", Watcher(), None)
    monkeypatch.setattr(together, "MANY_READS", 4)
    monkeypatch.setattr(start, "MAX_THREADS", 1)
    settings = SETTINGS.model_copy(update={"workers": 2})
    bands = count_calls(monkeypatch, together, "map_bands")
    with Crew(settings, size_crew(rows, settings), print) as crew:
        assert survey_together(rows, tmp_path / "none", Watcher(), None, crew) == expected
    assert len(bands) == 1


def test_slides_that_differ_are_refused(slides, tmp_path, capsys):
    wide = write_tiff(
        tmp_path / "wide.ome.tif", simulate(96, 110).astype(np.float32), ["CD3", "DAPI"]
    )
    out = tmp_path / "out"
    for command in ("segment", "plan"):
        code, printed, err = call_main(
            capsys, command, slides[0], wide, out, *OPTIONS, "--normalise", "together",
            "--workers", 0,
        )  # fmt: skip
        assert (code, printed) == (2, "")
        assert (
            "wide has the channels 'CD3' of float32 and s0 has the channels 'CD3' of uint16" in err
        )
        assert not out.exists()


def test_a_plan_tells_what_the_run_does(slides, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (*slides[:2], out, *OPTIONS, "--normalise", "together", "--workers", 0)
    samples = json.loads(call_main(capsys, "plan", *arguments, "--json")[1])["samples"]
    assert call_main(capsys, "segment", *arguments)[0] == 0
    assert states(out) == {"s0": "done", "s1": "done"}
    found = [read_report(out / name)["fingerprint"] for name in ("s0", "s1")]
    assert [row["fingerprint"] for row in samples] == found
    assert call_main(capsys, "plan", *arguments)[0] == 0


def test_areas_of_a_slide_are_what_counts_of_it(slides, tmp_path):
    """So that the limits of a cohort that is asked for with others are found anew."""
    ring = [[0, 0], [60, 0], [60, 96], [0, 96]]
    (tmp_path / "r.json").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    found = []
    for roi in (None, tmp_path / "r.json"):
        settings = load_settings(None, normalise="together", roi=roi, **GIVEN)
        rows = [Row("s0", slides[0], settings)]
        drive_cohort(rows, tmp_path / f"{roi is None}", settings)
        record = json.loads((tmp_path / f"{roi is None}" / "cohort.json").read_text())
        found.append((record["normalise"]["digest"], record["normalise"]["limits"]))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]
