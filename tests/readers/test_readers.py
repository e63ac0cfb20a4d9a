"""What holds for every format: equal pixels whatever the window, names, size, and many readers."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE, Popen

import numpy as np
import pytest

from densebatch.base.geometry import Grid, Region
from densebatch.slides.slide import open_slide, reopen_slide
from tests.helpers.slide_formats import read_all
from tests.readers.conftest import FOLDERS, FORMATS

pytestmark = pytest.mark.extra


@pytest.mark.parametrize("name", [*FORMATS, *FOLDERS])
def test_pixels_names_and_size_are_the_files(written, name):
    path, planes, names, um = written(name)
    slide = open_slide(path)
    info = slide.info
    assert (info.height, info.width) == planes.shape[1:]
    assert info.dtype == planes.dtype.name
    assert info.channels == names
    assert info.um_per_px == (None if um is None else pytest.approx(um))
    assert (info.um_per_px_from is None) == (um is None)
    assert info.levels[0] == planes.shape[1:]
    np.testing.assert_array_equal(read_all(slide), planes)
    assert reopen_slide(info).info == info
    n, height, width = planes.shape
    regions = [Region(0, 0, 1, 1), Region(height - 1, width - 1, height, width)]
    regions += [Region(13, 7, 71, 66).clip(height, width), Region(5, 0, 6, width)]
    for region in regions:
        for first, stop in ((0, n), (1, 2)):
            np.testing.assert_array_equal(
                slide.read_planes(first, stop, region), planes[(slice(first, stop), *region.slices)]
            )


@pytest.mark.parametrize("name", [*FORMATS, *FOLDERS])
def test_threads_and_processes_may_read_at_once(written, name):
    path, planes, *_ = written(name)
    slide = open_slide(path)
    code = (
        "import sys, hashlib\n"
        "from densebatch.base.geometry import Region\n"
        "from densebatch.slides.slide import open_slide\n"
        "slide = open_slide(sys.argv[1])\n"
        "planes = slide.read_planes(0, 2, Region(0, 0, slide.info.height, slide.info.width))\n"
        "print(hashlib.sha256(planes.tobytes()).hexdigest())\n"
    )
    if name in ("CZI", "MCD"):
        command = [sys.executable, "-c", code, str(path)]
        others = [Popen(command, stdout=PIPE, text=True) for _ in range(2)]
    else:
        others = []
    grid = Grid(*planes.shape[1:], 32, 32)
    regions = [grid[index] for index in grid]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda region: slide.read_planes(0, 2, region), regions))
    for region, pixels in zip(regions, found, strict=True):
        np.testing.assert_array_equal(pixels, planes[(slice(0, 2), *region.slices)])
    told = {other.communicate()[0] for other in others}
    assert len(told) == min(1, len(others))
