"""Commands are watched from outside."""

import logging
import os
import sys

import pytest

from densebatch.base.errors import DensebatchError
from densebatch.studies.watch import watch_command


def test_a_command_is_watched():
    hold = "import time; a = bytearray(300_000_000); time.sleep(0.5); print('said')"
    watched = watch_command([sys.executable, "-c", hold])
    assert watched.returncode == 0
    assert watched.output == "said\n"
    assert 0.5 <= watched.wall_s < 60
    assert 300 < watched.largest_mb <= watched.peak_mb < 500


def test_memory_is_that_of_all_processes():
    child = "a = bytearray(100_000_000); import time; time.sleep(2)"
    parent = f"import subprocess, sys; c = [sys.executable, '-c', {child!r}]; "
    parent += "p = [subprocess.Popen(c) for _ in range(2)]; [q.wait() for q in p]"
    watched = watch_command([sys.executable, "-c", parent])
    assert watched.peak_mb > 200 > watched.largest_mb > 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process to cores")
def test_processors_are_limited_for_the_command_alone():

    before = os.sched_getaffinity(0)
    tell = "import os; print(len(os.sched_getaffinity(0)))"
    assert watch_command([sys.executable, "-c", tell], cores=1).output == "1\n"
    assert os.sched_getaffinity(0) == before


def test_a_failed_command_is_told():
    with pytest.raises(DensebatchError, match=r"ended with 3: it broke$"):
        watch_command([sys.executable, "-c", "print('it broke'); raise SystemExit(3)"], check=True)


def test_a_command_has_its_own_folder_and_environment(tmp_path):
    tell = "import os; print(os.getcwd(), sorted(os.environ.keys() & {'HOME', 'ANSWER'}))"
    env = {**os.environ, "ANSWER": "42"}
    del env["HOME"]
    watched = watch_command([sys.executable, "-c", tell], env=env, cwd=tmp_path)
    assert watched.output == f"{tmp_path} ['ANSWER']\n"


def test_a_failed_command_is_an_error_only_if_asked_for(caplog):
    with caplog.at_level(logging.INFO, "densebatch.studies"):
        watched = watch_command([sys.executable, "-c", "raise SystemExit(3)"])
    assert watched.returncode == 3
    (record,) = caplog.records
    assert (record.event, record.fields["returncode"]) == ("watched command ended", 3)
