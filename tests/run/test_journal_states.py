"""Run, kill, corrupt, delete, mix up, change a setting, resume: never a false "complete".

Hypothesis makes up the order. Whatever came before, a call that returns leaves the bytes of an
undisturbed run, and a folder that calls itself complete holds them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from densebatch.base.errors import InputError
from densebatch.planning import flow_planner
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from tests.helpers.damage import take_records
from tests.helpers.run_files import (
    assert_same_output,
    output_bytes,
    simulate,
    tasks_folder,
    write_tiff,
)

MIN_SIZES = (15, 60)
TILES = (64, 128)
FIXED = {"membrane": ("CD3",), "model": "dense-tiny", "workers": 0}


class Kill(BaseException):
    """Ends a run at a write, as a kill does but for the owner file, which tests of it leave."""


@contextmanager
def killed_at(k):
    """Let a run get to its k-th file, which gets no name; with none to kill at, to its end."""
    replace, count = Path.replace, 0

    def counted(self, target):
        nonlocal count
        if Path(target).name not in (".densebatch-owner.json", "state.json"):
            count += 1
            if count == k:
                raise Kill
        return replace(self, target)

    Path.replace = counted
    try:
        yield
    finally:
        Path.replace = replace


@pytest.fixture(scope="module", autouse=True)
def slide(tmp_path_factory):
    """The slide, and by minimum size of cells the plan and the bytes of an undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_planner, "_GROUP_PX", 100)
        folder = tmp_path_factory.mktemp("states")
        path = write_tiff(folder / "a.ome.tif", simulate(100, 260, seed=2), ["CD3", "DAPI"])
        clean, plans = {}, {}
        for size in MIN_SIZES:
            segment(path, folder / str(size), min_size=size, **FIXED)
            clean[size] = output_bytes(folder / str(size))
            plans[size] = build_plan(path, SegmentSettings(min_size=size, **FIXED))
        assert clean[15] != clean[60]
        other = write_tiff(folder / "b.ome.tif", simulate(100, 260, seed=3), ["CD3", "DAPI"])
        for tile in TILES:
            segment(other, folder / f"b-{tile}", tile=tile, keep_flows=True, **FIXED)
        Runs.others = [tasks_folder(folder / f"b-{tile}") for tile in TILES]
        Runs.slide, Runs.clean, Runs.plans = path, clean, plans
        yield path


class Runs(RuleBasedStateMachine):
    """One output folder and all that may happen to it."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="densebatch-test-"))
        self.out = self.folder / "out"
        self.size = MIN_SIZES[0]  # of the run that the folder belongs to, once it does

    def teardown(self):
        shutil.rmtree(self.folder)

    def call(self, size, tile, *, restart=False):
        result = segment(self.slide, self.out, min_size=size, tile=tile, restart=restart, **FIXED)
        assert not result.is_partial
        assert_same_output(self.out, self.clean[size])

    @rule(tile=st.sampled_from(TILES))
    def run(self, tile):
        self.call(self.size, tile)

    @rule(k=st.integers(1, 45), tile=st.sampled_from(TILES))
    def kill(self, k, tile):
        try:
            with killed_at(k):
                self.call(self.size, tile)
        except Kill:
            pass

    @rule(k=st.integers(1, 45), size=st.sampled_from(MIN_SIZES))
    def begin_again_and_kill(self, k, size):
        self.size = size
        try:
            with killed_at(k):
                self.call(size, 128, restart=True)
        except Kill:
            # Killed before the marker is written anew, the folder is still the other run's.
            earlier = OutputFolder(self.out).read_marker()
            if earlier is not None:
                self.size = earlier.trace.min_size_px

    def files(self):
        """Of the unfinished run: records, flows, traces, keys, sums, and labels with their ids."""
        found = [p for p in sorted(self.out.rglob("*")) if p.is_file()]
        inside = [p for p in found if "work" in p.relative_to(self.out).parts]
        shards = [p for p in found if "/c/" in p.as_posix() and p not in inside]
        return [p for p in (*inside, *shards) if p.name not in ("state.json", "zarr.json")]

    @precondition(lambda self: (self.out / "work").is_dir())
    @rule(data=st.data(), what=st.sampled_from(["flip", "delete", "empty"]))
    def damage(self, data, what):
        files = self.files()
        if not files or (self.out / "run.json").exists():
            return
        path = files[data.draw(st.integers(0, len(files) - 1))]
        content = bytearray(path.read_bytes())
        if what == "delete":
            path.unlink()
        elif what == "flip" and content:
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
        else:
            path.write_bytes(b"")

    @precondition(lambda self: (self.out / "work").is_dir())
    @rule(data=st.data(), everything=st.booleans())
    def mix_up_with_another_slide(self, data, everything):
        """Records of tasks of the same names, with all that they cover."""
        tasks = tasks_folder(self.out)
        if not tasks.is_dir() or (self.out / "run.json").exists():
            return
        other = data.draw(st.sampled_from(self.others))
        names = sorted(p.stem for p in (other / "journal").glob("*.json"))
        chosen = None if everything else [data.draw(st.sampled_from(names))]
        take_records(tasks, other, chosen)

    @precondition(lambda self: (self.out / ".densebatch.json").exists())
    @rule()
    def change_a_setting(self):
        """Another run is refused as long as the folder is this one's."""
        (other,) = set(MIN_SIZES) - {self.size}
        with pytest.raises(InputError, match=r"holds another run: trace\.min_size_px was"):
            segment(self.slide, self.out, min_size=other, **FIXED)

    @precondition(lambda self: (self.out / ".densebatch.json").exists())
    @rule(data=st.data())
    def damage_the_marker(self, data):
        """It is told, or known from what else there is; it never passes for another run's."""
        marker = self.out / ".densebatch.json"
        good = marker.read_bytes()
        content = bytearray(good)
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        marker.write_bytes(content)
        try:
            self.call(self.size, 128)
        except InputError as error:
            told = str(error)
        else:
            return
        assert "is damaged" in told
        marker.write_bytes(good)

    @invariant()
    def what_calls_itself_complete_is_complete(self):
        report = self.out / "run.json"
        if not report.exists():
            return
        assert json.loads(report.read_bytes())["complete"]
        for size, plan in self.plans.items():
            if OutputFolder(self.out).read_complete(plan) is not None:
                assert_same_output(self.out, self.clean[size])


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def run_machine(n_examples, n_steps):
    run_state_machine_as_test(
        Runs,
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            deadline=None,
            suppress_health_check=CHECKS,
        ),
    )


def test_no_order_of_events_makes_a_run_complete_that_is_not():
    run_machine(15, 10)


@pytest.mark.slow
def test_no_long_order_of_events_makes_a_run_complete_that_is_not():
    run_machine(80, 20)
