"""Ctrl-C and SIGTERM: the tasks under way end, nothing is lost, and the same command continues."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from densebatch.run.driver import Driver, InterruptedRunError
from densebatch.run.segment import segment
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    list_workers,
    output_bytes,
    read_report,
    run_command,
    simulate,
    slow_traces,
    start_command,
    tasks_folder,
    write_tiff,
)

GROUP_PX = 300
SENTENCE = "interrupted; the same command continues the run"
UNDER_WAY = "tasks under way are finished first; Ctrl-C stops now"


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    path = write_tiff(folder / "a.ome.tif", simulate(200, 500, seed=2), ["CD3", "DAPI"])
    segment(path, folder / "clean", workers=0, membrane=("CD3",))
    return path, output_bytes(folder / "clean")


def command(slide, out, workers):
    return "segment", slide, out, "--membrane", "CD3", "--workers", workers, "--tile", 64


def count_records(out):
    return len(list((tasks_folder(out) / "journal").glob("*.json")))


def start_and_wait(slide, out, workers, n_records, before=""):
    process = start_command(*command(slide, out, workers), group_px=GROUP_PX, before=before)
    deadline = time.monotonic() + 120
    while count_records(out) < n_records:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def finish(slide, out, workers, kept):
    """Continue, and look that what was done is kept; the number of tasks."""
    code, _, err = run_command(*command(slide, out, workers), group_px=GROUP_PX)
    assert code == 0, err
    report = read_report(out)
    assert report["tasks_kept"] == kept
    return report["tasks"]


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        pytest.param(0, signal.SIGINT, id="Ctrl-C, here", marks=pytest.mark.slow),
        # Between two tasks there is none to wait for, which a busy machine may make of it.
        pytest.param(0, signal.SIGTERM, id="SIGTERM, here", marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, id="Ctrl-C, workers", marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, id="SIGTERM, workers", marks=pytest.mark.slow),
    ],
)
def test_the_first_lets_the_tasks_under_way_end(slide, tmp_path, workers, number):
    path, expected = slide
    out = tmp_path / "out"
    before = slow_traces(0.3) if workers == 0 else ""
    process = start_and_wait(path, out, workers, 5, before)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == SENTENCE
    assert UNDER_WAY in err
    assert "Traceback" not in err
    done = count_records(out)
    assert not (out / ".densebatch-owner.json").exists()
    assert not list((out / "work").rglob("*.partial"))
    assert finish(path, out, workers, done) > done
    assert_same_output(out, expected)


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_command(slide, tmp_path):
    """As batch systems and containers send it; workers that die of it are replaced."""
    path, expected = slide
    out = tmp_path / "out"
    process = start_and_wait(path, out, 2, 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == SENTENCE
    finish(path, out, 2, count_records(out))
    assert_same_output(out, expected)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_second_stops_now(slide, tmp_path, workers):
    path, expected = slide
    out = tmp_path / "out"
    # With workers, tasks that would take minutes are those of a worker that is suspended.
    before = slow_traces(100) if workers == 0 else ""
    before = before.replace("time.sleep", "print('tracing', flush=True); time.sleep")
    process = start_and_wait(path, out, workers, 1, before)
    if workers:
        for worker in list_workers(process.pid):
            worker.suspend()
    else:
        assert process.stdout.readline() == "tracing\n"
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - start < 30
    assert err.splitlines()[-1] == SENTENCE
    assert "Traceback" not in err
    finish(path, out, workers, count_records(out))
    assert_same_output(out, expected)


def test_the_python_call_is_interrupted_too(slide, tmp_path):
    path, expected = slide
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    options = {"workers": 0, "membrane": ("CD3",), "tile": 128}
    assert before[1] == signal.SIG_DFL
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):

            class Sender(Watcher):
                def advance(self, name, pixels, number=number):
                    super().advance(name, pixels)
                    if name == "trace" and self.tasks[name] == 3:
                        os.kill(os.getpid(), number)

            watcher = Sender()
            with pytest.raises(InterruptedRunError, match="the same command continues the run"):
                segment(path, tmp_path, progress=watcher, **options)
            assert watcher.tasks["trace"] == 3  # no task was under way
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGTERM) == before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])
    result = segment(path, tmp_path, **options)
    assert result.report["tasks_kept"] >= 6
    assert_same_output(tmp_path, expected)


def test_handlers_of_others_and_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def mine(*_):
        """A program's own."""

    try:
        for handler in (mine, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            signal.signal(signal.SIGTERM, handler)
            with Driver(Watcher()):
                assert signal.getsignal(signal.SIGINT) == handler
                assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    seen = []

    def enter():
        with Driver(Watcher()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before[1]]


def test_an_interrupt_while_planning_leaves_nothing(slide, tmp_path):
    path, _ = slide
    out = tmp_path / "out"
    before = (
        "import time, densebatch.run.prepare as p; u = p.survey_plan\n"
        "def slow(plan):\n    print('surveying', flush=True); time.sleep(60); return u(plan)\n"
        "p.survey_plan = slow"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start_command(*command(path, out, 0), before=before)
        assert process.stdout.readline() == "surveying\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.splitlines()[-1] == SENTENCE
        assert not out.exists()


def test_sigterm_ends_other_commands_with_the_same_code():
    before = (
        "import signal, densebatch.cli.models as m\n"
        "def term(*_):\n    signal.raise_signal(signal.SIGTERM)\n"
        "m.zoo.file_of = term"
    )
    code, _, err = run_command("models", "list", before=before)
    assert code == 130, err
    assert err.splitlines()[-1] == SENTENCE
