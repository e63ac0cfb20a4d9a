"""The GPU benchmark's logic, on a CPU: budget, failures, the record, and that bits are compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zarr

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import CHANNELS
from densebatch.slides.slide import open_slide
from densebatch.tracing.tile import TracedTile

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))  # it is no package; its scripts find each other like this

import gpu  # noqa: E402
from gpu_steps import runner, slides, tracing, whole_run  # noqa: E402
from gpu_steps.__main__ import STEPS  # noqa: E402


def shell(name, script, estimate_s=0.0, **how):
    return runner.Step(name, ("sh", "-c", script), estimate_s, **how)


def run(tmp_path, *some, seconds=1000.0):
    return runner.run_steps(some, tmp_path / "record.json", {"kind": "gpu"}, seconds, tmp_path)


def states(outcomes):
    return [outcome["state"] for outcome in outcomes.values()]


# what fits


def test_what_does_not_fit_is_skipped_and_what_is_smaller_still_runs(tmp_path):
    outcomes = run(
        tmp_path,
        shell("a", f"touch {tmp_path / 'a'}"),
        shell("b", f"touch {tmp_path / 'b'}", 2000.0),
        shell("c", f"touch {tmp_path / 'c'}"),
    )
    assert states(outcomes) == ["done", "skipped", "done"]
    assert [(tmp_path / name).exists() for name in "abc"] == [True, False, True]
    begin, end = "takes about 2000 s and ", " s are left"
    reason = outcomes["b"]["reason"]
    assert reason.startswith(begin)
    assert reason.endswith(end)
    assert 0 < int(reason[len(begin) : -len(end)]) < 1000


def test_nothing_begins_when_no_time_is_left(tmp_path):
    outcomes = run(tmp_path, shell("a", "true", 1.0), shell("b", "true", 1.0), seconds=0.0)
    assert states(outcomes) == ["skipped", "skipped"]
    assert outcomes["a"]["reason"] == "takes about 1 s and 0 s are left"


def test_estimates_follow_what_was_measured(tmp_path):
    outcomes = run(
        tmp_path,
        shell("broken", "exit 1"),
        shell("works", "sleep 0.05"),
        shell("four times a failure", "true", 1.0, like=("broken", 1e9)),
        shell("a billion times", "true", 1.0, like=("works", 1e9)),
        shell("as long", "true", 1e9, like=("works", 1.0)),
    )
    assert states(outcomes) == ["failed", "done", "done", "skipped", "done"]


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_what_the_machine_has_too_little_of(tmp_path, what):
    outcomes = run(tmp_path, shell("a", "true", **{f"{what}_mb": 1e12}), shell("b", "true"))
    assert states(outcomes) == ["skipped", "done"]
    assert f"takes about 1000000000000 MB of {what} and " in outcomes["a"]["reason"]


def test_a_step_is_skipped_with_what_it_needs(tmp_path):
    outcomes = run(
        tmp_path,
        shell("check", "exit 1"),
        shell("a", "true", needs=("check",)),
        shell("b", "true", needs=("a",)),
        shell("c", "true"),
    )
    assert states(outcomes) == ["failed", "skipped", "skipped", "done"]
    assert outcomes["a"]["reason"] == "needs check, which is failed"
    assert outcomes["b"]["reason"] == "needs a, which is skipped"


# what goes wrong


def test_a_failing_step_keeps_what_it_told_and_stops_nobody(tmp_path):
    script = """echo '{"a": 1}'; echo 'no JSON'; echo '[2]'; echo 'why' >&2; exit 3"""
    outcomes = run(tmp_path, shell("bad", script), shell("good", """echo '{"b": 2}'"""))
    bad, good = outcomes.values()
    assert (bad["state"], bad["reason"], bad["values"]) == ("failed", "ended with 3", {"a": 1})
    assert bad["last_lines"][-1] == "why"
    assert (good["state"], good["values"]) == ("done", {"b": 2})
    crash = runner.run_step(shell("crash", "kill -SEGV $$"), 100.0)
    assert crash["reason"] == f"ended with -{int(signal.SIGSEGV)}"


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition):
    while not condition():
        time.sleep(0.02)


def test_a_step_that_hangs_is_ended_with_all_that_it_started():
    step = shell("hangs", """sleep 1000 & echo '{"pid": '$!'}'; wait""")
    for limit_s in (0.5, 5.0, 50.0):  # a busy machine may need longer to begin
        outcome = runner.run_step(step, limit_s)
        assert outcome["state"] == "failed"
        assert outcome["reason"] == f"was ended after {limit_s:.0f} s"
        if outcome["values"]:
            break
    wait_until(lambda: not is_alive(outcome["values"]["pid"]))


def test_what_a_crashed_step_started_is_ended():
    outcome = runner.run_step(shell("crash", """sleep 1000 & echo '{"pid": '$!'}'; exit 3"""), 100)
    assert outcome["reason"] == "ended with 3"
    wait_until(lambda: not is_alive(outcome["values"]["pid"]))


# the record


def test_the_record_is_whole_while_steps_run_and_after_each(tmp_path):
    """Each step reads it, and tells the states that it finds there."""
    read = "import json; d = json.load(open('{}')); "
    read += "print(json.dumps({{'seen': [s['state'] for s in d['steps'].values()]}}))"
    command = (sys.executable, "-c", read.format(tmp_path / "record.json"))
    some = [runner.Step(name, command, 0.0) for name in "abc"]
    some[1] = replace(some[1], estimate_s=1e9)
    outcomes = run(tmp_path, *some)
    assert outcomes["a"]["values"]["seen"] == ["running", "waiting", "waiting"]
    assert outcomes["c"]["values"]["seen"] == ["done", "skipped", "running"]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["steps"] == outcomes
    assert record["kind"] == "gpu"
    assert record["budget_s"] == 1000.0
    assert record["spent_s"] >= sum(o.get("seconds", 0) for o in outcomes.values()) - 0.1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_it_leaves_what_was_measured(tmp_path, how):
    record, pid = tmp_path / "record.json", tmp_path / "pid"
    # ends by itself with the one that started it
    hold = f"echo $$ > {pid}.new; mv {pid}.new {pid}; while kill -0 $PPID; do sleep 0.1; done"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import gpu; from gpu_steps import runner\n"
        "gpu.exit_on_sigterm()\n"
        "some = [runner.Step(n, ('sh', '-c', c), 0.0) for n, c in zip('abc', sys.argv[3:])]\n"
        "runner.run_steps(some, Path(sys.argv[2]), {}, 1000.0, Path(sys.argv[2]).parent)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(FOLDER), str(record), """echo '{"x": 1}'""", hold, "true"]
    )
    wait_until(lambda: pid.exists() or process.poll() is not None)
    process.send_signal(how)
    assert process.wait() == (128 + how if how == signal.SIGTERM else -how)
    outcomes = json.loads(record.read_text())["steps"]
    assert states(outcomes) == ["done", "running", "waiting"]
    assert outcomes["a"]["values"] == {"x": 1}
    wait_until(lambda: not is_alive(int(pid.read_text())))


# which steps there are


def build(tmp_path, *arguments):
    how = ("--device", "cpu", "--out", str(tmp_path / "record.json"), "--work", str(tmp_path))
    options = gpu.read_options([*how, *arguments])
    return options, gpu.build_steps(options)


def test_steps_of_a_gpu(tmp_path):
    options, _ = build(tmp_path, "--backends", "torch", "torch-bf16", "compile-bf16")
    options.device = "cuda"
    some = gpu.build_steps(options)
    names = [step.name for step in some]
    assert names == [
        "check",
        "bits",
        "slide 16384",
        "gate dense-small torch",
        "segment dense-small torch 16384",
        "trace",
        "gate dense-small torch-bf16",
        "segment dense-small torch-bf16 16384",
        "gate dense torch",
        "segment dense torch 16384",
        "gate dense torch-bf16",
        "segment dense torch-bf16 16384",
        "gate dense compile-bf16",
        "segment dense compile-bf16 16384",
        "tests",
        "slide 32768",
        "segment dense-small torch 32768",
        "gate dense-small compile-bf16",
        "segment dense-small compile-bf16 16384",
        "segment dense-small torch-bf16 32768",
        "segment dense-small compile-bf16 32768",
        "segment dense torch 32768",
        "segment dense torch-bf16 32768",
        "segment dense compile-bf16 32768",
    ]
    for place, step in enumerate(some):
        assert {*step.needs, *([step.like[0]] if step.like else [])} <= set(names[:place])
        assert step.command[3] in STEPS
    # one run's flows are kept, for tracing
    assert [step.name for step in some if "--keep" in step.command] == [names[4]]
    # what is worth most fits twice
    assert sum(step.estimate_s for step in some[:7]) < 240


def test_a_cpus_reference_passes_no_gate(tmp_path):
    _, some = build(tmp_path, "--models", "dense-tiny", "--backends", "torch", "torch-bf16")
    gates = [step.name for step in some if step.name.startswith("gate")]
    assert gates == ["gate dense-tiny torch-bf16"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--device", "cpu"), "name a record with --out"),
        (("--device", "cpu", "--out", "x", "--side", "1000"), "accepted are multiples of 512"),
        pytest.param(
            (), "has no NVIDIA GPU",
            marks=pytest.mark.skipif(
                torch.cuda.is_available() or Path("/dev/nvidiactl").exists(), reason="there is one"
            ),
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_work(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.read_options(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


# what the steps measure


def make_tile():
    labels = np.zeros((6, 7), np.uint32)
    labels[1:3, 1:4], labels[4:, 2:] = 1, 2
    return TracedTile(labels, np.array([8, 30]), 3.5, 2, 1)


@pytest.mark.parametrize("part", ["labels", "keys", "max_travel_px", "dropped_px", "n_rejected"])
def test_a_difference_in_one_number_is_seen(part, capsys):
    tile, value = make_tile(), getattr(make_tile(), part)
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flat[-1] += 1
    else:
        value += 1
    other = replace(tile, **{part: value})
    assert tracing.compare_traces(tile, other) == {**tracing.compare_traces(tile, tile), part: 1}
    with pytest.raises(SystemExit, match="differ"):
        tracing.require_same_bits([(tile, tile), (tile, other)])
    told = json.loads(capsys.readouterr().out)
    assert told["same_bits"] is False
    assert told["differing"][1][part] == 1


def test_other_shapes_and_nothing_found_do_not_pass(capsys):
    tile = make_tile()
    for labels, keys in ((tile.labels[1:], tile.keys), (tile.labels, tile.keys[:1])):
        with pytest.raises(SystemExit):
            tracing.require_same_bits([(tile, replace(tile, labels=labels, keys=keys))])
    empty = TracedTile(np.zeros((2, 2), np.uint32), np.zeros(0, np.int64), 0.0, 0, 0)
    with pytest.raises(SystemExit, match="found nothing"):
        tracing.require_same_bits([(empty, empty)])
    capsys.readouterr()
    tracing.require_same_bits([(tile, make_tile())])
    told = json.loads(capsys.readouterr().out)
    assert (told["same_bits"], told["cells_compared"]) == (True, 2)


def test_a_mosaic_is_its_piece_side_by_side(tmp_path):
    path = slides.write_mosaic(1536, tmp_path, drawn_px=512)
    slide, piece = open_slide(path), open_slide(slides.write_mosaic(512, tmp_path))
    whole, one = Region(0, 0, 1536, 1536), Region(0, 0, 512, 512)
    assert slide.info.channels == piece.info.channels == CHANNELS
    for channel in (0, 1):
        pixels = piece.read(channel, one)
        assert pixels.max() > pixels.min()
        assert np.array_equal(slide.read(channel, whole), np.tile(pixels, (3, 3)))
    with pytest.raises(SystemExit, match="multiples"):
        slides.write_mosaic(1000, tmp_path, drawn_px=512)
    assert {p.name for p in tmp_path.iterdir()} == {f"slide-{n}.ome.zarr" for n in (512, 1536)}


def refuse(*_):
    raise OSError("this file system has no links")


@pytest.mark.parametrize("link", [os.link, refuse])
def test_a_mosaic_has_the_levels_of_its_piece(tmp_path, monkeypatch, link):
    monkeypatch.setattr(os, "link", link)
    slides.write_mosaic(1024, tmp_path)
    mosaic = slides.write_mosaic(2048, tmp_path, drawn_px=1024)
    levels = [zarr.open_array(mosaic / str(level), mode="r") for level in range(2)]
    assert [level.shape for level in levels] == [(2, 2048, 2048), (2, 1024, 1024)]
    assert np.array_equal(levels[1][0, :512, :512], levels[1][0, 512:, 512:])
    assert levels[1][1, 512:, :512].max() > 0
    assert not (mosaic / "2").exists()


def test_tiles_lie_in_the_middle():
    assert tracing.choose_tiles((16384, 16384), 2048, 4) == [
        Region(6144, 6144, 8192, 8192), Region(6144, 8192, 8192, 10240),
        Region(8192, 6144, 10240, 8192), Region(8192, 8192, 10240, 10240),
    ]  # fmt: skip
    assert tracing.choose_tiles((300, 1000), 512, 4) == [Region(0, 0, 300, 512)]


def test_shares_and_tiles_are_of_their_time():
    samples = [(0.0, 1.0, 900.0), (1.0, 0.5, 100.0), (2.0, 0.0, 300.0), (3.0, 1.0, 900.0)]
    assert whole_run.describe_gpu(samples, 0.5, 2.5) == {
        "busy_share": 0.25, "idle_share": 0.75, "peak_mb": 300,
    }  # fmt: skip
    assert whole_run.describe_gpu(samples, 4.0, 5.0) is None
    tasks = [
        whole_run.Task("trace", 0.0, 1.0, {"trace_on_device": 0.5}),
        whole_run.Task("trace", 0.0, 1.0, {"trace_on_device": 1.0, "read": 9.0}),
        whole_run.Task("trace", 0.0, 1.0, {"trace": 3.0}),
        whole_run.Task("predict", 0.0, 1.0, {"trace": 7.0}),
    ]
    assert whole_run.describe_tiles(tasks) == {
        "device": {"tiles": 2, "mean_s": 0.75}, "cpu": {"tiles": 1, "mean_s": 3.0},
    }  # fmt: skip


# all of it


@pytest.mark.slow
def test_all_steps_on_a_cpu(tmp_path):
    record, work = tmp_path / "record.json", tmp_path / "work"
    # a budget that a busy machine cannot spend
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--side", "512",
               "--models", "dense-tiny", "--backends", "torch", "--seconds", "100000",
               "--work", str(work), "--out", str(record)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(record.read_text())
    values = {name: step["values"] for name, step in document["steps"].items()}
    assert list(values) == [
        "check", "bits", "slide 512", "segment dense-tiny torch 512", "trace", "tests",
        "slide 1024", "segment dense-tiny torch 1024",
    ]  # fmt: skip
    assert set(states(document["steps"])) == {"done"}
    assert values["check"]["machine"]["cores"] >= 1
    assert values["check"]["versions"]["torch"]
    for name in ("bits", "trace"):
        assert values[name]["same_bits"] is True
        assert values[name]["cells_compared"] > 100
    assert values["trace"]["device_profile_s"]["device.follow"] > 0
    for side, cells in ((512, 300), (1024, 1200)):
        whole = values[f"segment dense-tiny torch {side}"]
        assert whole["cells"] > cells
        assert whole["mpx"] == side**2 / 1e6
        assert whole["mpx_per_s"] == pytest.approx(whole["mpx"] / whole["wall_s"], abs=1e-3)
        assert 0 < whole["first_patch_begins_s"] < whole["first_patch_s"] <= whole["last_patch_s"]
        assert whole["last_patch_s"] < whole["wall_s"]
        assert set(whole["stages"]) == {"predict", "trace", "number"}
        assert all(stage["mpx_per_s"] > 0 for stage in whole["stages"].values())
        assert list(whole["tiles_traced"]) == ["cpu"]
    assert values["tests"]["tests"] > 5
    assert values["tests"]["failures"] == values["tests"]["errors"] == 0
    assert sorted(p.name for p in work.iterdir() if p.is_dir()) == [
        *(["cache"] if (work / "cache").exists() else []),
        "slide-1024.ome.zarr", "slide-512.ome.zarr",
    ]  # fmt: skip
