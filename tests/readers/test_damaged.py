"""Damaged files end in one sentence or in right pixels: no traceback, no hang, no silent zeros."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tifffile

from densebatch.base.geometry import Region
from densebatch.readers.czi import open_reader
from tests.helpers.mutations import mutate, read_damaged
from tests.readers.conftest import FORMATS

pytestmark = pytest.mark.extra
_LONGEST_S = 10.0  # that reading one of these small files may take before it counts as a hang


def damage_and_read(written, name, tmp_path, seeds):
    path, planes, *_ = written(name)
    data = path.read_bytes()
    is_coded = "zstd" in name or "JPEG" in name
    outcomes: Counter[str] = Counter()
    try:
        for seed in seeds:
            damaged = tmp_path / f"{seed}{path.suffix}"
            damaged.write_bytes(mutate(data, seed, heads=(0, -1)))
            faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
            outcomes[read_damaged(damaged, planes, is_coded=is_coded)] += 1
            damaged.unlink()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcomes


@pytest.mark.parametrize("name", FORMATS)
def test_some_damaged_files(written, name, tmp_path):
    outcomes = damage_and_read(written, name, tmp_path, range(20))
    assert outcomes["refused"] >= 5
    assert sum(outcomes.values()) == 20


def test_a_block_that_cannot_be_decoded_is_a_sentence_and_the_next_is_read(written):
    """Also if the process is gone, which says nothing of a block: a new one is started."""
    path, planes, *_ = written("CZI, JPEG XR")
    with open_reader(path) as reader:
        whole = Region(0, 0, *planes.shape[1:])
        np.testing.assert_array_equal(reader.read(0, [1], whole)[0], planes[1])
        process = reader._jpeg_xr.process._process
        process.kill()
        process.wait()
        np.testing.assert_array_equal(reader.read(0, [1], whole)[0], planes[1])
        dtype = np.dtype("uint16")
        with pytest.raises(ValueError, match="a JPEG XR block cannot be decoded"):
            reader._jpeg_xr.decode(b"II\xbc\x01" + bytes(90), dtype, (64, 64, 1))
        np.testing.assert_array_equal(reader.read(0, [1], whole)[0], planes[1])
    assert reader._jpeg_xr.process._process is None


def test_libraries_are_imported_for_files_of_their_format_alone(tmp_path):
    """A worker that reads a TIFF or a CZI loads none of them."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint16))
    code = (
        "import sys\n"
        "from densebatch.slides.slide import open_slide\n"
        "open_slide(sys.argv[1]).info\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.tif")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "tifffile" in loaded
    heavy = {"readimc", "pandas", "imageio", "slideio", "nd2", "liffile", "openslide", "torch"}
    assert not heavy & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files(written, name, tmp_path):
    outcomes = damage_and_read(written, name, tmp_path, range(20, 520))
    assert outcomes["refused"] > 100
    assert sum(outcomes.values()) == 500
