"""What a process tells of itself: memory, bytes, time by part, and whether it uses a GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from densebatch.base.process import Meter, count_io, has_gpu_context, measure_peak_mb, name_process


def test_the_peak_is_this_process_s_own():
    """A process that is started by a large one does not inherit its peak."""
    held = bytearray(300 * 10**6)
    held[::4096] = b"x" * len(held[::4096])
    assert measure_peak_mb() > 300
    code = "from densebatch.base.process import measure_peak_mb; print(measure_peak_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < int(child.stdout) < 200
    del held


def test_bytes_written_and_read_are_counted(tmp_path):
    before = count_io()
    if before is None:
        pytest.skip("this system does not count system calls")
    (tmp_path / "a").write_bytes(b"x" * 10**6)
    (tmp_path / "a").read_bytes()
    after = count_io()
    assert after[0] - before[0] >= 10**6
    assert after[1] - before[1] >= 10**6


def test_a_meter_adds_up_parts():
    meter = Meter()
    for _ in range(3):
        with meter.timed("wait"):
            time.sleep(0.02)
    with meter.timed("nothing"):
        pass
    told = meter.read()
    assert told["parts"]["wait"] >= 0.06
    assert 0 <= told["parts"]["nothing"] < told["parts"]["wait"] <= told["seconds"]
    assert told["process"] == name_process()
    assert told["peak_rss_mb"] > 0


def test_processes_have_names_of_their_own():
    code = "from densebatch.base.process import name_process; print(name_process())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() != name_process()
    assert child.stdout.split(":")[0] == name_process().split(":")[0]


def test_a_gpu_is_in_use_once_it_has_a_context(monkeypatch):
    """And a process that has not imported PyTorch does not import it to find out."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not has_gpu_context()
    assert "torch" not in sys.modules
    for context in (False, True):
        cuda = SimpleNamespace(is_initialized=lambda context=context: context)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        assert has_gpu_context() is context
