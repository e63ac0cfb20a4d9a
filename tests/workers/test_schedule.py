"""Which job goes next, whatever comes back first, and what is given up with a job that fails."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from densebatch.workers.schedule import Job, Schedule
from tests.helpers import executor_jobs
from tests.helpers.job_sets import assert_follow, graphs


def test_last_few_of_the_highest_rank_go_before_lower_ranks():
    """What needs them would else wait at the end, with nothing left to do beside."""
    late = [Job(f"s{i}", executor_jobs.square, (), rank=1) for i in range(5)]
    soon = [Job(f"r{i}", executor_jobs.square, (), needs=("s0",)) for i in range(2)]
    schedule = Schedule([*soon, *late], frozenset(), None, n_last=2)
    first, _ = schedule.next(), schedule.next()
    schedule.finish(first)  # three of its rank are left, so both that waited for it go now
    assert schedule.next().name == "r0"
    assert schedule.next().name == "r1"
    assert [schedule.next().name for _ in range(3)] == ["s2", "s3", "s4"]

    schedule = Schedule([*soon, *late], frozenset(), None, n_last=2)
    first, *_ = (schedule.next() for _ in range(3))
    schedule.finish(first)
    assert [schedule.next().name for _ in range(4)] == ["s3", "s4", "r0", "r1"]


def test_failed_job_is_none_of_the_last_few():
    jobs = [Job("s", executor_jobs.square, (), rank=1), Job("r", executor_jobs.square, ())]
    schedule = Schedule(jobs, frozenset(), None, n_last=1)
    assert schedule.fail(schedule.next(), "broken") == []
    assert schedule.next().name == "r"
    assert schedule.next().name == "s"


def come_back(schedule, job, is_broken, done, lost):
    """A job's try ends, and `done` or `lost` grows by what follows from it."""
    if is_broken:
        lost |= {o.job.name: o.error for o in schedule.fail(job, "broken")}
    else:
        done.add(job.name)
        schedule.finish(job)


@given(graphs(), st.none() | st.integers(0, 5), st.integers(1, 5), st.integers(1, 4), st.data())
def test_scheduled_outcomes_follow_from_the_graph(graph, shuffle, n_last, window, data):
    """However many of the highest rank are the last few, and whatever comes back first."""
    needs, failures, ranks = graph
    jobs = [Job(name, print, (), needs[name], ranks[name]) for name in needs]
    schedule = Schedule(jobs, frozenset(), shuffle, n_last)
    calls, done, lost, running = Counter(), set(), {}, []
    fresh = {name for name in needs if ranks[name] == max(ranks.values())}  # never handed out
    while schedule.unfinished:
        while len(running) < window and (job := schedule.next()) is not None:
            if not calls[job.name] and ranks[job.name] < max(ranks.values()):
                # what would have gone before: the last few of the highest rank, were one ready
                ready = {n for n in fresh if set(needs[n]) <= done} - set(lost)
                assert not ready or len(fresh - set(lost)) > n_last
            calls[job.name] += 1
            fresh.discard(job.name)
            assert set(needs[job.name]) <= done
            running.append(job)
        job = running.pop(data.draw(st.integers(0, len(running) - 1)))
        come_back(schedule, job, calls[job.name] <= failures[job.name], done, lost)
    assert schedule.next() is None
    assert_follow(graph, lost, calls)


@given(graphs(), st.sets(st.integers(0, 30)), st.integers(1, 4), st.data())
def test_jobs_for_the_device_and_others_are_asked_for_apart(graph, device, window, data):
    """By two kinds of workers; each job once for each try, whatever comes back first."""
    needs, failures, ranks = graph
    jobs = [
        Job(name, print, (), needs[name], ranks[name], on_device=place in device)
        for place, name in enumerate(needs)
    ]
    schedule = Schedule(jobs, frozenset(), None, 1)
    calls, done, lost, running = Counter(), set(), {}, []
    while schedule.unfinished:
        for kind in (True, False):
            while sum(job.on_device == kind for job in running) < window:
                job = schedule.next(kind)
                if job is None:
                    break
                assert job.on_device == kind
                assert set(needs[job.name]) <= done
                calls[job.name] += 1
                running.append(job)
        job = running.pop(data.draw(st.integers(0, len(running) - 1)))
        come_back(schedule, job, calls[job.name] <= failures[job.name], done, lost)
    assert_follow(graph, lost, calls)
