"""Ctrl-C and SIGTERM: the tasks under way end, nothing is lost, and the same command continues."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from densebatch.run.driver import Driver, InterruptedRunError
from densebatch.run.segment import segment
from tests.helpers.die_at import hooked, write_hook
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    output_bytes,
    read_report,
    run_command,
    simulate,
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


class Held:
    """A command one task of which is under way until it is let go."""

    def __init__(self, slide, folder, workers):
        role = "worker" if workers else "driver"
        self.hook = write_hook(folder / "hook", role, "journal/trace-*", "wait")
        self.process = start_command(
            *command(slide, folder / "out", workers), group_px=GROUP_PX, env=hooked(self.hook)
        )
        self.lines = []
        while not (self.hook / "there").exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)

    def read_until(self, text):
        while not self.lines or text not in self.lines[-1]:
            self.lines.append(self.process.stderr.readline())
            assert self.lines[-1], self.lines

    def let_go(self):
        (self.hook / "go").touch()

    def end(self):
        """Exit code and all that it said."""
        self.lines += self.process.stderr.readlines()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.wait(), "".join(self.lines)


@pytest.fixture
def hold(slide, tmp_path):
    """Starts such a command; it does not outlive the test."""
    started = []

    def start(workers):
        started.append(Held(slide[0], tmp_path, workers))
        return started[-1]

    yield start
    for held in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(held.process.pid, signal.SIGKILL)


def finish(slide, out, workers, kept):
    """Continue, and look that what was done is kept; the number of tasks."""
    code, _, err = run_command(*command(slide, out, workers), group_px=GROUP_PX)
    assert code == 0, err
    report = read_report(out)
    assert report["tasks_kept"] == kept
    return report["tasks"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number"),
    [
        pytest.param(0, signal.SIGINT, id="Ctrl-C, here"),
        pytest.param(0, signal.SIGTERM, id="SIGTERM, here"),
        pytest.param(2, signal.SIGINT, id="Ctrl-C, workers"),
        pytest.param(2, signal.SIGTERM, id="SIGTERM, workers"),
    ],
)
def test_the_first_lets_the_tasks_under_way_end(slide, tmp_path, hold, workers, number):
    path, expected = slide
    out = tmp_path / "out"
    held = hold(workers)
    if number == signal.SIGINT:
        os.killpg(held.process.pid, number)  # as a terminal does
    else:
        held.process.send_signal(number)
    held.read_until(UNDER_WAY)
    held.let_go()
    code, err = held.end()
    assert code == 130, err
    assert err.splitlines()[-1] == SENTENCE
    assert "Traceback" not in err
    done = count_records(out)
    assert not (out / ".densebatch-owner.json").exists()
    assert not list((out / "work").rglob("*.partial"))
    assert finish(path, out, workers, done) > done
    assert_same_output(out, expected)


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_command(slide, tmp_path, hold):
    """As batch systems and containers send it; workers that die of it are replaced."""
    path, expected = slide
    out = tmp_path / "out"
    held = hold(2)
    os.killpg(held.process.pid, signal.SIGTERM)
    held.let_go()
    code, err = held.end()
    assert code == 130, err
    assert err.splitlines()[-1] == SENTENCE
    finish(path, out, 2, count_records(out))
    assert_same_output(out, expected)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_second_stops_now(slide, tmp_path, hold, workers):
    """Though a task would never end."""
    path, expected = slide
    out = tmp_path / "out"
    held = hold(workers)
    os.killpg(held.process.pid, signal.SIGINT)
    held.read_until(UNDER_WAY)
    os.killpg(held.process.pid, signal.SIGINT)
    code, err = held.end()
    assert code == 130, err
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
        "def slow(*plans):\n    print('surveying', flush=True); time.sleep(60); return u(*plans)\n"
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
