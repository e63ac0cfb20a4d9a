"""Whatever runs jobs passes the same tests; then what each executor does beyond that."""

import contextlib
import logging
import os
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densebatch.workers.executors import SerialExecutor
from densebatch.workers.schedule import Job
from densebatch.workers.sharing import Lane
from tests.helpers import executor_jobs
from tests.helpers.job_sets import (
    N_WORKERS,
    assert_follow,
    errors,
    events,
    graphs,
    results,
    run,
    squares,
)

WINDOW = 2 * N_WORKERS


def test_every_job_runs_once(executor, tmp_path):
    jobs = squares(tmp_path, 15)
    assert results(run(executor, jobs)) == {f"s{i}": i**2 for i in range(15)}
    assert executor_jobs.count_calls(tmp_path) == {f"s{i}": 1 for i in range(15)}


def test_no_jobs_are_done_at_once(executor):
    assert run(executor, []) == []


@pytest.mark.parametrize("shuffle", [None, 0])
def test_needs_are_done_before(executor, tmp_path, shuffle):
    """A random graph; each job looks for what its needs have left."""
    rng = random.Random(3)
    graph = {f"j{i}": tuple({f"j{rng.randrange(i)}" for _ in range(i and 3)}) for i in range(24)}
    jobs = [
        Job(name, executor_jobs.after, (str(tmp_path), name, needs), needs)
        for name, needs in graph.items()
    ]
    rng.shuffle(jobs)
    outcomes = run(executor, jobs, shuffle=shuffle)
    chains = results(outcomes)
    assert chains == {
        name: 1 + max((chains[need] for need in needs), default=0) for name, needs in graph.items()
    }
    place = {o.job.name: i for i, o in enumerate(outcomes)}
    assert all(place[need] < place[name] for name, needs in graph.items() for need in needs)


def test_what_is_done_already_counts_as_done(executor, tmp_path):
    job = squares(tmp_path, 1, needs=("earlier", "older"))[0]
    assert results(run(executor, [job], done=frozenset({"earlier", "older", "more"}))) == {"s0": 0}


def test_lower_ranks_go_first(executor, tmp_path):
    late = squares(tmp_path, 8, 0.02, rank=1)
    soon = [
        Job(f"r{i}", executor_jobs.square, (str(tmp_path), f"r{i}", i, 0.02), rank=0)
        for i in range(8)
    ]
    order = [o.job.name for o in run(executor, [*late, *soon], shuffle=1)]
    # on workers, the first of the others is handed out when the last of these is in flight
    first = 8 - WINDOW + 1 if executor.workers else 8
    assert {name[0] for name in order[:first]} == {"r"}


def test_failing_job_is_tried_three_times(executor, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="densebatch")
    jobs = [
        *squares(tmp_path, 4),
        Job("always", executor_jobs.fail, (str(tmp_path), "always", 99)),
        Job("twice", executor_jobs.fail, (str(tmp_path), "twice", 2)),
        Job("silent", executor_jobs.fail, (str(tmp_path), "silent", 99, "")),
        Job("lines", executor_jobs.fail, (str(tmp_path), "lines", 99, "\nwhat\nwhere")),
    ]
    outcomes = run(executor, jobs)
    assert errors(outcomes) == {
        "always": "ValueError: broken tile",
        "silent": "ValueError: no message",
        "lines": "ValueError: what",
    }
    assert {o.job.name: o.result for o in outcomes}["twice"] == 3
    calls = executor_jobs.count_calls(tmp_path)
    assert [calls.pop(name) for name in ("always", "twice", "silent", "lines")] == [3, 3, 3, 3]
    assert calls == {f"s{i}": 1 for i in range(4)}
    told = [(r.event, r.fields["attempt"]) for r in events(caplog) if r.fields["job"] == "always"]
    retried = "job failed, to be retried"
    assert told == [(retried, 1), (retried, 2), ("job given up", 3)]


def test_failing_job_is_tried_again_after_the_others(executor, tmp_path):
    """So that one that kills its workers does not meet the same company again."""
    jobs = [Job("bad", executor_jobs.fail, (str(tmp_path), "bad", 2)), *squares(tmp_path, 12)]
    order = [o.job.name for o in run(executor, jobs)]
    assert order.index("bad") >= 12 - (WINDOW if executor.workers else 0)


def test_what_needs_a_failed_job_is_reported_once(executor, tmp_path):
    """A diamond below two jobs that fail, and one beside it that is not concerned."""
    folder = str(tmp_path)
    jobs = [
        Job("bad0", executor_jobs.fail, (folder, "bad0", 99, "first")),
        Job("bad1", executor_jobs.fail, (folder, "bad1", 99, "second")),
        Job("good", executor_jobs.square, (folder, "good", 2)),
        Job("both", executor_jobs.square, (folder, "both", 3), ("bad0", "good", "bad1")),
        Job("left", executor_jobs.square, (folder, "left", 4), ("both",)),
        Job("right", executor_jobs.square, (folder, "right", 5), ("both", "bad1")),
        Job("below", executor_jobs.square, (folder, "below", 6), ("left", "right")),
        Job("fine", executor_jobs.square, (folder, "fine", 7), ("good",)),
    ]
    outcomes = run(executor, jobs)
    found = errors(outcomes)
    assert set(found) == {"bad0", "bad1", "both", "left", "right", "below"}
    reasons = {
        "needs bad0, which failed: ValueError: first",
        "needs bad1, which failed: ValueError: second",
    }
    assert all(found[name] in reasons for name in ("both", "left", "right", "below"))
    assert {o.job.name: o.result for o in outcomes if not o.error} == {"good": 4, "fine": 49}
    assert executor_jobs.count_calls(tmp_path) == {"bad0": 3, "bad1": 3, "good": 1, "fine": 1}


def test_results_do_not_depend_on_the_order(executor, tmp_path):
    found = []
    for seed in (None, 0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        jobs = [
            *squares(folder, 9),
            Job("end", executor_jobs.square, (str(folder), "end", 3), ("s1", "s8")),
        ]
        found.append(results(run(executor, jobs, shuffle=seed)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        ([("a", ()), ("b", ("c",))], "job b needs c, which nobody does"),
        ([("a", ()), ("a", ())], "two jobs have one name"),
        ([("z", ()), ("a", ("b",)), ("b", ("a",))], "job a waits for itself through"),
        ([("a", ("a",))], "job a waits for itself through"),
    ],
)
def test_impossible_jobs_are_refused_before_any_runs(executor, tmp_path, jobs, told):
    jobs = [
        Job(name, executor_jobs.square, (str(tmp_path), name, 1), needs) for name, needs in jobs
    ]
    with pytest.raises(ValueError, match=told):
        next(iter(executor.run(jobs)))
    assert executor_jobs.count_calls(tmp_path) == {}


def test_giving_up_early_stops_what_waits(executor, tmp_path):
    jobs = squares(tmp_path, 40, 0.05)
    outcomes = executor.run(jobs)
    next(outcomes)
    outcomes.close()
    if executor.workers:
        dask = executor._shared.executor if isinstance(executor, Lane) else executor
        scheduler = dask.client.cluster.scheduler
        deadline = time.monotonic() + 20
        while scheduler.tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not scheduler.tasks
    assert 1 <= len(executor_jobs.count_calls(tmp_path)) <= 1 + 2 * WINDOW


@given(graphs(), st.none() | st.integers(0, 5))
def test_serial_outcomes_follow_from_the_graph(graph, shuffle):
    needs, failures, ranks = graph
    calls = Counter()
    done = []

    def work(name):
        calls[name] += 1
        assert set(needs[name]) <= set(done)
        if calls[name] <= failures[name]:
            raise ValueError(name)
        done.append(name)
        return name

    jobs = [Job(name, work, (name,), needs[name], ranks[name]) for name in needs]
    outcomes = run(SerialExecutor(), jobs, shuffle=shuffle)
    assert_follow(graph, errors(outcomes), calls)
    assert [o.job.name for o in outcomes if o.error is None] == done


def test_serial_order_is_rank_then_place_or_seed(tmp_path):
    jobs = squares(tmp_path, 12)
    orders = {
        seed: [o.job.name for o in SerialExecutor().run(jobs, shuffle=seed)]
        for seed in (None, 0, 1)
    }
    assert orders[None] == [job.name for job in jobs]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert orders[0] == [o.job.name for o in SerialExecutor().run(jobs, shuffle=0)]


def test_serial_lower_rank_that_becomes_ready_goes_ahead():
    order = []
    jobs = [
        Job("p0", order.append, ("p0",), rank=1),
        Job("p1", order.append, ("p1",), rank=1),
        Job("p2", order.append, ("p2",), rank=1),
        Job("t0", order.append, ("t0",), ("p0",), rank=0),
        Job("t1", order.append, ("t1",), ("p0", "p1"), rank=0),
    ]
    run(SerialExecutor(), jobs)
    assert order == ["p0", "t0", "p1", "t1", "p2"]


def test_serial_does_not_swallow_an_interrupt():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(SerialExecutor().run([Job("a", interrupt, ())]))


def name_of(settings):
    """Of the job that is submitted."""
    return settings["key"].rpartition("-")[0]


@contextlib.contextmanager
def counted_submissions(executor, monkeypatch):
    names = []
    submit = executor.client.submit

    def counting(function, *args, **settings):
        names.append(name_of(settings))
        return submit(function, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(executor.client, "submit", counting)
        yield names


def test_window_of_two_jobs_a_worker(dask_executor, tmp_path, monkeypatch):
    jobs = squares(tmp_path, 16, 0.01)
    with counted_submissions(dask_executor, monkeypatch) as submitted:
        in_flight = []
        for n_done, _ in enumerate(dask_executor.run(jobs)):
            # the one that is just told of has left, and its place is taken when we go on
            in_flight.append(len(submitted) - n_done)
    assert max(in_flight) == WINDOW
    assert in_flight[: 16 - WINDOW + 1] == [WINDOW] * (16 - WINDOW + 1)
    assert submitted == [job.name for job in jobs]


def test_jobs_become_futures_of_their_own(dask_executor, tmp_path):
    """The same function and arguments twice are two jobs, not one result."""
    args = (str(tmp_path), "same", 3)
    jobs = [Job(name, executor_jobs.square, args) for name in "abc"]
    run(dask_executor, jobs)
    assert executor_jobs.count_calls(tmp_path) == {"same": 3}


def test_jobs_run_in_the_workers(dask_executor):
    pids = set(
        results(run(dask_executor, [Job(f"p{i}", os.getpid, ()) for i in range(12)])).values()
    )
    assert pids <= set(dask_executor.client.run(os.getpid).values())
    assert os.getpid() not in pids


def test_what_cannot_be_pickled_or_read_is_the_failure_of_its_own_job(dask_executor, tmp_path):
    """Results are fetched many at a time, and those beside it are made once."""
    folder = str(tmp_path)
    jobs = [
        Job("unreadable", executor_jobs.return_unreadable, (folder, "unreadable")),
        Job("unsendable", executor_jobs.return_unsendable, (folder, "unsendable")),
        Job("argument", executor_jobs.square, (folder, "argument", executor_jobs.Unreadable())),
        Job("never", executor_jobs.square, (folder, "never", lambda: None)),
        Job("below", executor_jobs.square, (folder, "below", 1), ("unreadable",)),
        *squares(tmp_path, 8),
    ]
    found = errors(run(dask_executor, jobs))
    assert set(found) == {"unreadable", "unsendable", "argument", "never", "below"}
    assert found["unreadable"] == found["argument"] == "ValueError: cannot be read"
    assert "pickle" in found["unsendable"]
    assert "pickle" in found["never"]
    calls = executor_jobs.count_calls(tmp_path)
    assert calls == {"unreadable": 3, "unsendable": 3} | {f"s{i}": 1 for i in range(8)}


def test_death_of_a_worker_loses_no_job(dask_executor, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="densebatch")
    jobs = [
        Job("dies", executor_jobs.die, (str(tmp_path), "dies", 1)),
        *squares(tmp_path, 10, 0.02),
    ]
    found = results(run(dask_executor, jobs))
    assert found == {"dies": 2} | {f"s{i}": i**2 for i in range(10)}
    assert [record.event for record in events(caplog)] == ["worker lost"]
    assert len(dask_executor.client.nthreads()) >= 1


def test_job_that_kills_its_workers_is_quarantined_alone(dask_executor, tmp_path, monkeypatch):
    """What was on the same worker is not lost with it, though it may have nowhere else to go."""
    # Dask itself allows for three deaths before it tells; one is enough here
    monkeypatch.setattr(dask_executor.client.cluster.scheduler, "allowed_failures", 0)
    jobs = [
        Job("kills", executor_jobs.die, (str(tmp_path), "kills", 99)),
        Job("below", executor_jobs.square, (str(tmp_path), "below", 1), ("kills",)),
        *squares(tmp_path, 6, 0.3, rank=1),
    ]
    futures = []
    company = []
    submit = dask_executor.client.submit

    def watch(function, *args, **settings):
        name = name_of(settings)
        busy = [other for other, future in futures if not future.done()]
        if name == "kills" or "kills" in busy:
            company.append((name, busy))
        futures.append((name, submit(function, *args, **settings)))
        return futures[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(dask_executor.client, "submit", watch)
        outcomes = run(dask_executor, jobs)
    assert set(errors(outcomes)) == {"kills", "below"}
    assert errors(outcomes)["kills"].startswith("KilledWorker: ")
    assert executor_jobs.count_calls(tmp_path)["kills"] == 3
    # at first nobody knows; then nothing is beside it, neither before nor after
    assert [entry for entry in company if entry[0] == "kills"] == [("kills", [])] * 3
    assert company[-2:] == [("kills", [])] * 2
    dask_executor.client.wait_for_workers(N_WORKERS, timeout=60)
