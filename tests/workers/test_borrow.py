"""Workers lent for work that is not a run's, such as scoring."""

from __future__ import annotations

import os

import numpy as np
import pytest
from distributed import LocalCluster

from densebatch.base.errors import DensebatchError
from densebatch.scoring.files import score_files
from densebatch.workers.borrow import borrow_workers
from densebatch.workers.check import Requirements
from densebatch.workers.scheduler import Scheduler
from tests.helpers import executor_jobs
from tests.helpers.run_files import call_main


def test_calls_are_done_by_workers(dask_executor, tmp_path):
    scheduler = Scheduler(dask_executor.client.scheduler.address)
    with borrow_workers(scheduler, Requirements(), print) as workers:
        futures = [
            workers.submit(executor_jobs.square, str(tmp_path), f"s{k}", k) for k in range(9)
        ]
        assert [future.result(60) for future in futures] == [k**2 for k in range(9)]
        assert workers.submit(os.getpid).result(60) != os.getpid()
        with pytest.raises(ValueError, match="broken tile"):
            workers.submit(executor_jobs.fail, str(tmp_path), "bad", 9).result(60)
        dies = workers.submit(executor_jobs.die, str(tmp_path), "dies", 1)
        assert dies.result(60) == 2


def test_calls_fail_in_words_when_all_workers_are_lost(tmp_path):
    with LocalCluster(n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        scheduler = Scheduler(cluster.scheduler_address, patience_s=1.0)
        with borrow_workers(scheduler, Requirements(), print) as workers:
            future = workers.submit(executor_jobs.square, str(tmp_path), "s", 2, 30.0)
            cluster.scale(0)
            with pytest.raises(DensebatchError, match="all its workers are lost, for 1 s"):
                future.result(60)


def test_scores_of_a_cluster_are_those_of_threads(dask_executor, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
        for k in range(2):
            ids = (1 + rng.permutation(900)).reshape(30, 30)
            labels = np.roll(np.repeat(np.repeat(ids, 8, 0), 8, 1), k, 0)
            labels[0] = 0
            np.save(tmp_path / name / f"{k}.npy", labels.astype(np.uint16))
    address = dask_executor.client.scheduler.address
    with borrow_workers(Scheduler(address), Requirements(), print) as workers:
        found = score_files(tmp_path / "pred", tmp_path / "truth", workers=workers)
    assert found == score_files(tmp_path / "pred", tmp_path / "truth")
    alone = call_main(capsys, "score", tmp_path / "pred", tmp_path / "truth", "--json", "-")
    shared = call_main(
        capsys, "score", tmp_path / "pred", tmp_path / "truth", "--json", "-",
        "--scheduler-address", address,
    )  # fmt: skip
    assert shared[:2] == alone[:2]
    assert shared[0] == 0
