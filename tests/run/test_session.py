"""A session drives tasks: recalls what is done, tells progress, and keeps what failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from densebatch.engines.backend import Engine
from densebatch.planning.engine_choice import EngineChoice
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.session import Session, Step
from densebatch.stages.work import Task
from densebatch.workers.executors import SerialExecutor
from tests.helpers.run_files import Watcher, write_tiff


@dataclass(frozen=True)
class Square(Task):
    """Squares a number, except 3."""

    number: int
    stage: ClassVar[str] = "square"

    @property
    def name(self):
        return f"square-{self.number}"

    def run(self):
        if self.number == 3:
            raise ValueError("3 is not squared")
        return self.work.journal.record(self.name, [], {"square": self.number**2})

    def is_current(self, facts):
        return facts["square"] != 16


@pytest.fixture
def begin(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, 80, 90), np.uint16), ["CD3", "DAPI"])
    settings = SegmentSettings(membrane=("CD3",), workers=0)
    plan, folder = draft_plan(slide, settings), OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)

    def begin():
        choice = EngineChoice(Engine(), "default")
        progress = Watcher()
        return Session(
            plan, settings, choice, folder, Driver(progress), SerialExecutor, 0, progress
        )

    return begin


def list_steps(run, *numbers):
    return [Step(Square(run.work, n), "squares", 10) for n in numbers]


def test_what_an_earlier_session_did_is_kept(begin):
    first = begin()
    assert first.drive(list_steps(first, 1, 2)) == {}
    assert first.facts == {Square(first.work, n): {"square": n**2} for n in (1, 2)}
    assert first.kept == set()
    second = begin()
    assert second.drive(list_steps(second, 1, 2, 5)) == {}
    assert second.kept == {Square(second.work, n) for n in (1, 2)}
    assert second.facts == {Square(second.work, n): {"square": n**2} for n in (1, 2, 5)}
    assert second.progress.stages == {"squares": (3, 2)}
    assert second.progress.tasks == {"squares": 1}


def test_what_this_session_did_is_not_kept_but_not_done_again(begin):
    run = begin()
    run.drive(list_steps(run, 1))
    run.drive(list_steps(run, 1))
    assert run.kept == set()
    assert run.progress.tasks == {"squares": 1}


def test_a_record_that_no_longer_counts_is_done_again(begin):
    for _ in range(2):
        run = begin()
        run.drive(list_steps(run, 4))
        assert run.kept == set()
        assert run.progress.stages == {"squares": (1, 0)}
        assert run.progress.tasks == {"squares": 1}


def test_a_task_that_fails_is_told_and_what_needs_it_fails_too(begin):
    run = begin()
    last = Step(Square(run.work, 6), "squares", 10, needs=("square-3",))
    failures = run.drive([*list_steps(run, 2, 3), last])
    assert set(failures) == {Square(run.work, 3), Square(run.work, 6)}
    assert "3 is not squared" in failures[Square(run.work, 3)]
    assert "square-3" in failures[Square(run.work, 6)]
    assert set(run.facts) == {Square(run.work, 2)}
    assert [note.split(" failed: ")[0] for note in run.progress.notes] == ["square-3", "square-6"]
    assert run.progress.tasks == {"squares": 3}


def test_a_stage_is_timed(begin):
    run = begin()
    with run.timed("square"):
        run.drive(list_steps(run, 1))
    assert set(run.seconds) == {"square"}
    assert run.seconds["square"] >= 0
