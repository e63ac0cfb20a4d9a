"""How long a run will take is told from one before it, and from nothing that says little of it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from densebatch.planning import pace
from densebatch.planning.pace import measure_pace, recall_pace, remember_pace
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import prepare
from densebatch.run.report import Progress
from densebatch.run.segment import run_slide
from densebatch.run.start import ExecutorStart
from tests.helpers.run_files import Watcher, call_main, simulate, write_tiff

OPTIONS = ("--membrane", "CD3", "--model", "dense-tiny", "--workers", 0)
SETTINGS = SegmentSettings(membrane=("CD3",), model="dense-tiny", workers=0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(220, 300, seed=1), ["CD3", "DAPI"])


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache folder in which nothing was found yet, and slides that count however small."""
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pace, "LEAST_PX", 10_000)


def report(slide_px=10**6, total=20.0, **changes):
    return {
        "slide_px": slide_px,
        "tasks_kept": 0,
        "workers": 2,
        "seconds": {"plan": 3.0, "predict_and_trace": 12.0, "number": 2.0, "total": total},
        "task_seconds": {"predict": 16.0, "trace": 6.0, "number": 3.0},
        "stages": {
            "predict": {"tasks": 40, "parts": {"read": 1.0, "network": 11.0}},
            "trace": {"tasks": 8, "parts": {}},
            "number": {"tasks": 2, "parts": {}},
        },
        "slide_channels": [0, 1],
        **changes,
    }


def test_a_run_of_the_same_kind_takes_as_long_as_the_one_before(slide):
    plan = build_plan(slide, SETTINGS)
    told = report(plan.shape[0] * plan.shape[1])
    assert recall_pace(plan, SETTINGS, 2) is None
    remember_pace(plan, SETTINGS, 2, told)
    found = recall_pace(plan, SETTINGS, 2)
    # Two workers wait for two tasks each, of 25 s / 50; the network's 4 s of loading do not grow.
    assert found.busy == pytest.approx(25 / (2 * 14 - 2 * 2 * 0.5))
    assert found.patch_s == pytest.approx(12 / plan.network_patches)
    assert found.other_s == pytest.approx(20 - 2 - (12 + 6 + 3) / 2 / found.busy)
    assert found.estimate(plan, SETTINGS) == pytest.approx(20.0)
    # Measuring one channel of two takes less, and so does what is not copied.
    narrow = SegmentSettings(membrane=("CD3",), model="dense-tiny", channels=("CD3",), image="none")
    assert found.estimate(build_plan(slide, narrow), narrow) == pytest.approx(
        20 - 3 / 3 / (2 * found.busy)
    )
    for settings, workers in (
        (SETTINGS, 1),
        (SETTINGS.model_copy(update={"tile": 512}), 2),
        (SETTINGS.model_copy(update={"scheduler_address": "tcp://127.0.0.1:1"}), 0),
    ):
        assert recall_pace(plan, settings, workers) is None
    # A cluster may have more or fewer the next time.
    assert found.tell_origin(settings).endswith("Mpx by 2 workers")


def test_what_says_little_is_not_kept(slide):
    plan = build_plan(slide, SETTINGS)
    remember_pace(plan, SETTINGS, 2, report(9_999))
    remember_pace(plan, SETTINGS, 2, report(tasks_kept=1))
    assert recall_pace(plan, SETTINGS, 2) is None
    remember_pace(plan, SETTINGS, 2, report(10**8))
    remember_pace(plan, SETTINGS, 2, report(10**7))
    assert recall_pace(plan, SETTINGS, 2).slide_px == 10**8
    remember_pace(plan, SETTINGS, 2, report(6 * 10**7))
    assert recall_pace(plan, SETTINGS, 2).slide_px == 6 * 10**7


def test_what_is_skipped_is_not_traced(tmp_path):
    """So that a run of some tissue tells how long one of all takes, and the other way round."""
    wide = write_tiff(tmp_path / "w.ome.tif", simulate(200, 700, seed=1), ["CD3", "DAPI"])
    whole = build_plan(wide, SETTINGS)
    assert whole.network_patches == whole.active_cores.size > 1
    part = replace(whole, active=base64.b64encode(bytes([1 << 7])).decode())
    assert part.network_patches == 1
    share = part.covered_px / whole.covered_px
    told = report(whole.shape[0] * whole.shape[1])
    remember_pace(part, SETTINGS, 2, told)
    found = recall_pace(part, SETTINGS, 2)
    assert found.estimate(part, SETTINGS) == pytest.approx(20.0)
    assert found.slide_px == round(told["slide_px"] * share)
    patches = whole.network_patches - 1
    more = patches * found.patch_s + (1 / share - 1) * told["task_seconds"]["trace"]
    assert found.estimate(whole, SETTINGS) == pytest.approx(20.0 + more / (2 * found.busy))


def test_a_run_that_shares_its_workers_says_nothing_of_one_by_itself(slide, tmp_path):
    class Shared(ExecutorStart):
        is_shared = True

    for kind, is_kept in ((Shared, False), (ExecutorStart, True)):
        out = OutputFolder(tmp_path / kind.__name__)
        with Driver(Progress()) as driver, kind(SETTINGS) as starting:
            run_slide(slide, out, SETTINGS, driver, starting, Progress())
        [prepared] = prepare([(slide, out)], SETTINGS)
        assert (recall_pace(prepared.plan, SETTINGS, 0) is not None) == is_kept
    # Nor is it told how long it takes by itself.
    for kind, is_told in ((Shared, False), (ExecutorStart, True)):
        progress, out = Watcher(), OutputFolder(tmp_path / f"{kind.__name__} again")
        with Driver(progress) as driver, kind(SETTINGS) as starting:
            run_slide(slide, out, SETTINGS, driver, starting, progress)
        assert any("expected: about" in note for note in progress.notes) == is_told


def test_commands_tell_it(slide, tmp_path, capsys):
    _, told, _ = call_main(capsys, "plan", slide, tmp_path / "out", *OPTIONS)
    assert "expected" not in told
    code, _, err = call_main(capsys, "segment", slide, tmp_path / "out", *OPTIONS)
    assert code == 0
    assert "expected" not in err
    total = json.loads((tmp_path / "out" / "run.json").read_text())["seconds"]["total"]
    code, told, _ = call_main(capsys, "plan", slide, tmp_path / "other", *OPTIONS, "--json")
    assert code == 0
    facts = json.loads(told)
    assert facts["expected_seconds"] == pytest.approx(total, abs=0.2)
    assert facts["expected_from"] == "at the pace of a run of 0.066 Mpx"
    _, told, _ = call_main(capsys, "plan", slide, tmp_path / "other", *OPTIONS)
    assert "expected   about " in told
    _, _, err = call_main(capsys, "segment", slide, tmp_path / "other", *OPTIONS)
    assert "expected: about " in err


@pytest.mark.parametrize(("more", "told"), [
    (("--segmenter", "threshold"), "--segmenter has none"),
    (("--scheduler-address", "tcp://127.0.0.1:1"), "a scheduler's workers do the run"),
    ((), "--measure is of one slide"),
])  # fmt: skip
def test_a_trial_that_says_nothing_is_refused(slide, tmp_path, capsys, more, told):
    slides = [slide] if more else [slide, tmp_path / "b.ome.tif"]
    code, _, err = call_main(
        capsys, "plan", *slides, tmp_path / "o", "--membrane", "CD3", "--measure", *more
    )
    assert (code, told in err) == (2, True), err


def test_a_trial_evaluates_patches(slide, tmp_path, capsys):
    code, told, _ = call_main(capsys, "plan", slide, tmp_path / "out", *OPTIONS, "--measure")
    assert code == 0
    assert "by a trial of some patches" in told
    plan = build_plan(slide, SETTINGS)
    found = measure_pace(plan, SETTINGS, 0, None)
    assert found.patch_s > 0
    assert found.slide_px == 0
    more = replace(found, patch_s=2 * found.patch_s)
    assert more.estimate(plan, SETTINGS) - found.estimate(plan, SETTINGS) == pytest.approx(
        plan.network_patches * found.patch_s
    )
