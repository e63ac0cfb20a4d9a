"""Executors for the tests of workers."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from densebatch.workers.cluster import open_executor
from densebatch.workers.executors import SerialExecutor
from densebatch.workers.sharing import SharedExecutor
from tests.helpers.job_sets import N_WORKERS


@pytest.fixture(scope="module")
def dask_executor():
    with open_executor(N_WORKERS) as executor:
        pids = executor.client.run(os.getpid).values()
        scratch = Path(executor.client.cluster.workers[0].local_directory)
        assert os.getpid() not in pids
        assert scratch.exists()
        yield executor
    # nothing is left behind, neither processes nor scratch
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not scratch.exists()


@pytest.fixture(params=["serial", "dask", pytest.param("lane", marks=pytest.mark.slow)])
def executor(request):
    """Whatever passes these tests is an executor."""
    if request.param == "serial":
        yield SerialExecutor()
        return
    dask_executor = request.getfixturevalue("dask_executor")
    if request.param == "dask":
        yield dask_executor
        return
    with SharedExecutor(dask_executor) as shared, shared.open_lane("one") as lane:
        yield lane
