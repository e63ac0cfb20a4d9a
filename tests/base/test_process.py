"""What a process and its tasks are said to have taken."""

import subprocess
import sys

import pytest

from densebatch.base.process import Meter, count_io

_PEAKS = """
import subprocess, sys
from densebatch.base.process import measure_peak_mb
before = measure_peak_mb()
if sys.argv[1:]:
    held = bytearray(200 * 10**6)
    del held
    print(before, measure_peak_mb(), end=" ", flush=True)
    subprocess.run([sys.executable, "-c", sys.stdin.read()], check=True)
else:
    print(before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak")
def test_peak_memory_is_this_process_s_own():
    """It outlasts the memory, and a new process does not begin with that of its parent."""
    run = subprocess.run(
        [sys.executable, "-c", _PEAKS, "big"],
        input=_PEAKS, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    before, after, child = map(int, run.stdout.split())
    assert after > before + 150
    assert child < before + 50


def test_a_meter_tells_what_happened_since_it_was_made(tmp_path):
    (tmp_path / "earlier").write_bytes(bytes(10**6))
    meter = Meter()
    with meter.timed("write"):
        (tmp_path / "a").write_bytes(bytes(10**5))
    for _ in range(2):
        with meter.timed("read"):
            (tmp_path / "a").read_bytes()
    facts = meter.read()
    assert set(facts["parts"]) == {"write", "read"}
    assert facts["seconds"] >= sum(facts["parts"].values()) - 2e-4  # each is rounded
    assert facts["peak_rss_mb"] > 0
    if count_io() is None:
        assert facts["bytes_read"] is facts["bytes_written"] is None
    else:
        assert 2 * 10**5 <= facts["bytes_read"] < 10**6
        assert 10**5 <= facts["bytes_written"] < 10**6
