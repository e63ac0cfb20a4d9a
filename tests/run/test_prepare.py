"""What is decided before a run begins, and that deciding leaves nothing behind."""

from __future__ import annotations

import pytest

from densebatch.base.errors import InputError
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import prepare
from tests.helpers.run_files import simulate, write_tiff

SETTINGS = SegmentSettings(membrane=("CD3",), workers=1)


class Starting:
    """Stands where `ExecutorStart` does and notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def begin(self, workers, plans):
        self.asked.append(("begin", workers, len(plans)))

    def wait(self):
        self.asked.append("wait")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return [
        write_tiff(folder / f"{k}.ome.tif", simulate(100 + 50 * k, 120, seed=k), ["CD3", "DAPI"])
        for k in range(2)
    ]


def test_every_slide_gets_the_plan_that_it_would_get_alone(slides, tmp_path):
    folders = [OutputFolder(tmp_path / name) for name in "ab"]
    runs = prepare(list(zip(slides, folders, strict=True)), SETTINGS)
    assert [run.plan for run in runs] == [build_plan(slide, SETTINGS) for slide in slides]
    assert [run.folder for run in runs] == folders
    assert {run.workers for run in runs} == {1}
    assert all(run.needs.worker_mb > 400 for run in runs)
    assert [run.choice.reason for run in runs] == ["default", "default"]
    assert list(tmp_path.iterdir()) == []


def test_workers_start_beside_the_survey_unless_an_earlier_session_may_have_done_all(
    slides, tmp_path
):
    folder = OutputFolder(tmp_path / "out")
    starting = Starting()
    prepare([(slides[0], folder)], SETTINGS, starting=starting)
    assert starting.asked == [("begin", 1, 1), "wait"]
    plan = build_plan(slides[0], SETTINGS)
    folder.claim(plan, restart=False)
    keys = folder.tasks(plan) / "trace-2048" / "keys.npy"
    for traced, restart, asked in (
        (False, False, [("begin", 1, 1), "wait"]),
        (True, False, ["wait"]),
        (True, True, [("begin", 1, 1), "wait"]),
    ):
        if traced:  # all that takes long is done
            keys.parent.mkdir(exist_ok=True)
            keys.touch()
        starting = Starting()
        prepare([(slides[0], folder)], SETTINGS, restart=restart, starting=starting)
        assert starting.asked == asked


def test_no_worker_starts_for_what_cannot_work(slides, tmp_path):
    """The second folder is somebody's; the first slide could be segmented."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.docx").write_text("x")
    folders = [OutputFolder(tmp_path / name) for name in "ab"]
    starting = Starting()
    with pytest.raises(InputError, match=r"holds .thesis\.docx."):
        prepare(list(zip(slides, folders, strict=True)), SETTINGS, starting=starting)
    missing = SETTINGS.model_copy(update={"membrane": ("CD99",)})
    with pytest.raises(InputError, match="CD99"):
        prepare([(slides[0], OutputFolder(tmp_path / "c"))], missing, starting=starting)
    assert starting.asked == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b", "thesis.docx"]
