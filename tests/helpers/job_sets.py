"""Sets of jobs, and what came of them, for the tests of workers."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st

from densebatch.workers.schedule import Job
from tests.helpers import executor_jobs

N_WORKERS = 2  # of `dask_executor`


def run(executor, jobs, **settings):
    """Outcomes in order; each job has exactly one."""
    outcomes = list(executor.run(jobs, **settings))
    assert Counter(o.job.name for o in outcomes) == Counter(job.name for job in jobs)
    assert all(o.result is None for o in outcomes if o.error is not None)
    return outcomes


def results(outcomes):
    assert [o.error for o in outcomes if o.error] == []
    return {o.job.name: o.result for o in outcomes}


def errors(outcomes):
    return {o.job.name: o.error for o in outcomes if o.error is not None}


def events(caplog):
    """Records of our own, among those that Dask's loggers leave."""
    return [record for record in caplog.records if hasattr(record, "event")]


def squares(folder, n, seconds=0.0, **settings):
    return [
        Job(f"s{i}", executor_jobs.square, (str(folder), f"s{i}", i, seconds), **settings)
        for i in range(n)
    ]


@st.composite
def graphs(draw):
    """Jobs that need earlier ones, shuffled, and how often each fails."""
    n = draw(st.integers(0, 9))
    needs = {
        f"j{i}": draw(st.sets(st.integers(0, i - 1), max_size=3) if i else st.just(set()))
        for i in range(n)
    }
    failures = {name: draw(st.sampled_from([0, 0, 0, 1, 2, 3])) for name in needs}
    ranks = {name: draw(st.integers(0, 2)) for name in needs}
    names = draw(st.permutations(sorted(needs)))
    return {name: tuple(f"j{i}" for i in needs[name]) for name in names}, failures, ranks


def assert_follow(graph, lost, calls):
    """Which jobs are lost and how often each was tried follow from needs and failures alone."""
    needs, failures, _ = graph

    def is_lost(name):
        return any(failures[need] >= 3 or is_lost(need) for need in needs[name])

    assert set(lost) == {n for n in needs if failures[n] >= 3 or is_lost(n)}
    assert calls == {n: min(failures[n] + 1, 3) for n in needs if not is_lost(n)}
