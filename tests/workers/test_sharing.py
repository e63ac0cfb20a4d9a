"""Lanes share workers: each gets its own outcomes, and what ends one does not end the others."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from densebatch.base.errors import DensebatchError
from densebatch.workers.schedule import Job
from densebatch.workers.sharing import SharedExecutor
from tests.helpers import executor_jobs
from tests.helpers.job_sets import N_WORKERS, errors, results, run, squares


def list_times(folder):
    """When each of its jobs was done."""
    return sorted(path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def shared(dask_executor):
    with SharedExecutor(dask_executor) as shared:
        yield shared


def start(function):
    """A thread, and a queue that gets what it returns or raises."""
    ended = queue.SimpleQueue()

    def call():
        try:
            ended.put(function())
        except BaseException as error:  # for the test to look at
            ended.put(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return ended


def hold(folder, name="held"):
    """A job that is under way until `let_go`."""
    return Job(name, executor_jobs.wait_for_file, (str(folder), name))


def let_go(folder, name="held"):
    (folder / f"{name}.go").touch()


def wait_until_held(folder, name="held"):
    while not (folder / f"{name}.there").exists():
        time.sleep(0.01)


def test_jobs_of_one_name_in_several_lanes(shared, tmp_path):
    """Needs, failures and results are each lane's own."""
    ended = []
    for k in range(3):
        folder = tmp_path / str(k)
        folder.mkdir()
        jobs = [
            *squares(folder, 6),
            Job("bad", executor_jobs.fail, (str(folder), "bad", 99)),
            Job("after", executor_jobs.square, (str(folder), "after", k + 10), ("s1", "s2")),
            Job("never", executor_jobs.square, (str(folder), "never", 3), ("bad",)),
        ]

        def follow(jobs=jobs, k=k):
            with shared.open_lane(f"lane {k}") as lane:
                first = run(lane, jobs, done=frozenset({"earlier"}))
                return first, run(
                    lane, [Job("s0", executor_jobs.square, (jobs[0].args[0], "x", 5))]
                )

        ended.append(start(follow))
    for k, each in enumerate(ended):
        first, second = each.get(timeout=60)
        found = {outcome.job.name: outcome.result for outcome in first}
        assert found == {
            **{f"s{i}": i**2 for i in range(6)}, "after": (k + 10) ** 2, "bad": None, "never": None,
        }  # fmt: skip
        assert errors(first) == {
            "bad": "ValueError: broken tile",
            "never": "needs bad, which failed: ValueError: broken tile",
        }
        assert results(second) == {"s0": 25}
        calls = executor_jobs.count_calls(tmp_path / str(k))
        assert calls == {**{f"s{i}": 1 for i in range(6)}, "bad": 3, "after": 1, "x": 1}


def test_the_lane_that_was_opened_first_goes_first(shared, tmp_path):
    """The second takes what the first leaves: nothing, as long as it has enough.

    One that was opened in front of them comes before both.
    """
    lanes = [shared.open_lane("0"), shared.open_lane("1")]
    in_front = shared.open_lane("2", in_front=True)
    for k in range(3):
        (tmp_path / str(k)).mkdir()
    held = [hold(tmp_path, f"held{i}") for i in range(2 * N_WORKERS)]  # the window is full
    begun = [start(lambda: run(lanes[0], [*held, *squares(tmp_path / "0", 8)]))]
    for job in held[:N_WORKERS]:
        wait_until_held(tmp_path, job.name)
    assert not shared.is_hungry
    begun.append(start(lambda: run(lanes[1], squares(tmp_path / "1", 8))))
    begun.append(start(lambda: run(in_front, squares(tmp_path / "2", 8))))
    while len(lanes[0].running) < len(held):
        time.sleep(0.01)
    for job in held:
        let_go(tmp_path, job.name)
    for each in begun:
        results(each.get(timeout=60))
    times = [list_times(tmp_path / str(k)) for k in range(3)]
    # Jobs of one that were handed out when the last of the one before it were in flight.
    assert sum(at < times[0][-1] for at in times[1]) <= 2 * N_WORKERS
    assert sum(at < times[2][-1] for at in times[0]) <= 2 * N_WORKERS
    assert shared.is_hungry


def test_a_lane_that_is_stopped_or_left_ends_alone(shared, tmp_path):
    with shared.open_lane("other") as other, shared.open_lane("stopped") as lane:
        jobs = [hold(tmp_path), *squares(tmp_path, 30, needs=("held",))]
        ended = start(lambda: run_all(lane, jobs))
        wait_until_held(tmp_path)
        assert [job.name for job in lane.running] == ["held"]
        assert other.running == []
        lane.stopping = True
        assert results(run(other, squares(tmp_path, 4))) == {f"s{i}": i**2 for i in range(4)}
        let_go(tmp_path)
        assert results(ended.get(timeout=60)) == {"held": 1}
    counted = tmp_path / "counted"
    counted.mkdir()
    with shared.open_lane("left") as lane:
        outcomes = lane.run(squares(counted, 30, 0.01))
        next(outcomes)
    assert lane.running == []
    before = sum(executor_jobs.count_calls(counted).values())
    assert before < 30
    with shared.open_lane("next") as lane:
        assert len(run(lane, squares(counted, 3))) == 3
    assert sum(executor_jobs.count_calls(counted).values()) == before + 3


def run_all(lane, jobs):
    return list(lane.run(jobs))


def test_an_abort_ends_all_lanes_at_once(shared, tmp_path):
    lanes = [shared.open_lane(str(k)) for k in range(2)]
    ended = [start(lambda k=k: run_all(lanes[k], [hold(tmp_path, f"held{k}")])) for k in range(2)]
    for k in range(2):
        wait_until_held(tmp_path, f"held{k}")
    shared.abort()
    for each in ended:
        assert isinstance(each.get(timeout=10), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(shared.open_lane("late"), squares(tmp_path, 1))
    for k in range(2):
        let_go(tmp_path, f"held{k}")


def test_workers_that_are_lost_for_good_end_all_lanes(shared, tmp_path, monkeypatch):
    lost = DensebatchError("all workers are lost")
    lane = shared.open_lane("lane")
    ended = start(lambda: run_all(lane, [hold(tmp_path)]))
    wait_until_held(tmp_path)

    def look(*, at_once=False):
        raise lost

    monkeypatch.setattr(shared.executor.pool, "look", look)
    assert ended.get(timeout=10) is lost
    assert shared.error is lost
    let_go(tmp_path)


@pytest.mark.slow
def test_a_job_that_kills_workers_takes_no_other_lane_s_along(shared, tmp_path):
    """From the second time on it runs with nothing else in flight, whosever it is."""
    folders = [tmp_path / str(k) for k in range(2)]
    for folder in folders:
        folder.mkdir()
    deadly = Job("deadly", executor_jobs.die, (str(folders[0]), "deadly", 99))
    sets = [[deadly, *squares(folders[0], 10, 0.05)], squares(folders[1], 40, 0.05)]
    ended = [start(lambda k=k: run(shared.open_lane(str(k)), sets[k])) for k in range(2)]
    outcomes = [each.get(timeout=300) for each in ended]
    assert set(errors(outcomes[0])) == {"deadly"}
    assert results(outcomes[1]) == {f"s{i}": i**2 for i in range(40)}
