"""Five hundred slides in a sheet: the main process takes no more memory for them than for some."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from tests.helpers.cohort_slides import OPTIONS, states, write_sheet, write_slides
from tests.helpers.run_files import start_command

pytestmark = pytest.mark.slow

N = 500
MORE = 1.15  # pools of memory that grow for a while yet


def test_memory_does_not_grow_with_the_slides(tmp_path):
    [slide] = write_slides(tmp_path, 1)
    sheet = write_sheet(
        tmp_path / "sheet.csv", *({"sample": f"s{k}", "slide": slide.name} for k in range(N))
    )
    out = tmp_path / "out"
    process = start_command("segment", "--sheet", sheet, out, *OPTIONS, "--workers", 2)
    driver, seen = psutil.Process(process.pid), {}
    reading = threading.Thread(target=process.communicate)  # else it would wait for its reader
    reading.start()
    while reading.is_alive():
        n = len(list(out.glob("*/run.json")))
        try:
            seen[n] = max(seen.get(n, 0), driver.memory_info().rss)
        except psutil.Error:  # it has just ended
            break
        time.sleep(0.2)
    reading.join()
    assert process.returncode == 0
    assert states(out) == {f"s{k}": "done" for k in range(N)}
    early = max(rss for n, rss in seen.items() if n <= N / 5)
    late = max(rss for n, rss in seen.items() if n > N / 5)
    assert late < MORE * early
