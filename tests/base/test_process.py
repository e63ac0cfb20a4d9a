"""What a process frees it gets again without asking the system, or returns, as it is told."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's malloc")

_COUNT = """
import resource, sys, threading
import numpy as np
from densebatch.base import allocation
if sys.argv[1] == "keep":
    allocation.keep_freed_memory()
if sys.argv[1] == "return":
    allocation.return_freed_memory()

def work():  # a Dask worker's tasks run in a thread
    np.ones(2**18, np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):  # numpy asks for huge pages from 4 MiB on
        np.ones(2**18, np.float32)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def _count_faults(mode):
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    if mode == "return":
        del env["MALLOC_TRIM_THRESHOLD_"]
    run = subprocess.run(
        [sys.executable, "-c", _COUNT, mode], env=env, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_pages_are_asked_for_once():
    pages = 50 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert _count_faults("as Dask does") > 0.9 * pages
    assert _count_faults("keep") < 0.1 * pages


def test_pages_are_returned_where_nobody_needs_them_again():
    pages = 50 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert _count_faults("return") > 0.9 * pages
