"""Damaged OME-Zarr folders end in one sentence or in right pixels, whatever was changed."""

from __future__ import annotations

import faulthandler
import os
import resource
import shutil
from collections import Counter

import numpy as np
import pytest
from numcodecs import Blosc, Zlib
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from tests.helpers.damaged_folders import damage_folder, read_damaged_folder
from tests.helpers.slide_files import edit_json, random_pixels, write_zarr

_LONGEST_S = 10.0  # that reading one of these small folders may take before it counts as a hang
_MOST_KB = 2_000_000
CYX = np.add.outer(np.arange(75), 3 * np.arange(110)) + random_pixels((2, 75, 110)) % 50 + 1000
CYX = CYX.astype(np.uint16)
SHARDS = {"chunks": (1, 16, 16), "shards": (1, 64, 64)}
# name: how it is stored, rows and columns of a file, whether checksums tell every flipped bit
STORED = {
    "0.4, Blosc": ({"version": "0.4", "compressors": Blosc()}, 32, False),
    "0.4, zlib": ({"version": "0.4", "compressors": Zlib()}, 32, False),
    "0.4, as it is": ({"version": "0.4", "compressors": None}, 32, False),
    "0.5, shards with crc32c": ({"compressors": [ZstdCodec(), Crc32cCodec()], **SHARDS}, 64, True),
    "0.5, zstd": ({"compressors": ZstdCodec()}, 32, False),
    "0.5, Blosc": ({"compressors": BloscCodec()}, 32, False),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder of a slide of two levels per way of storing it."""
    top = tmp_path_factory.mktemp("slides")
    return {
        name: write_zarr(top / str(k) / "slide.zarr", CYX, n_levels=2, **options)
        for k, (name, (options, *_)) in enumerate(STORED.items())
    }


def damage_and_read(stored, name, tmp_path, seeds):
    _, chunk, is_checked = STORED[name]
    outcomes = Counter()
    try:
        for seed in seeds:
            folder = tmp_path / f"{seed}.zarr"
            shutil.copytree(stored[name], folder)
            damage = damage_folder(folder, seed)
            faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
            found = read_damaged_folder(folder, CYX, damage, (chunk, chunk), is_checked=is_checked)
            outcomes[found] += 1
            shutil.rmtree(folder)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcomes


@pytest.mark.parametrize("name", STORED)
def test_some_damaged_folders(stored, name, tmp_path):
    outcomes = damage_and_read(stored, name, tmp_path, range(20))
    assert outcomes["refused"] >= 5
    assert sum(outcomes.values()) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_many_damaged_folders(stored, name, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = damage_and_read(stored, name, tmp_path, range(20, 520))
    assert outcomes["refused"] > 100
    assert sum(outcomes.values()) == 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + _MOST_KB


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("what", ["an empty file", "no file", "a link to a file that is not there"])
def test_what_is_no_chunk_is_none_that_is_absent(stored, name, what, tmp_path):
    """As a crash, or a copy without what links lead to, leaves it behind; zarr reads 0 there."""
    folder = shutil.copytree(stored[name], tmp_path / "slide.zarr")
    chunk = folder / "0" / ("c/0/1/1" if STORED[name][0].get("version") is None else "0.1.1")
    chunk.unlink()
    slide, at = open_slide(folder), STORED[name][1]
    assert not slide.read(0, Region(at, at, at + 5, at + 5)).any()
    if what == "an empty file":
        chunk.touch()
    elif what == "no file":
        chunk.mkdir()
    else:
        chunk.symlink_to("nowhere")
    slide = open_slide(folder)
    assert len(slide.info.identity) == 64  # which looks at all files
    with pytest.raises(InputError, match=rf"zarr cannot be read in rows .*1 is {what}"):
        slide.read(0, Region(at, at, at + 5, at + 5))
    np.testing.assert_array_equal(slide.read(0, Region(0, 0, 5, 5)), CYX[0, :5, :5])


@pytest.mark.parametrize("name", STORED)
def test_an_empty_chunk_of_a_low_level_is_not_black(stored, name, tmp_path):
    """Tissue is looked for there."""
    folder = shutil.copytree(stored[name], tmp_path / "slide.zarr")
    chunk = folder / "1" / ("c/0/0/0" if STORED[name][0].get("version") is None else "0.0.0")
    chunk.write_bytes(b"")
    slide = open_slide(folder)
    assert slide.can_read(1)
    with pytest.raises(InputError, match=r"cannot be read at level 1 .*0 is an empty file"):
        slide.read_level(1, 0, Region(0, 0, 5, 5))
    assert slide.read_level(1, 1, Region(0, 0, 5, 5)).any()


@pytest.mark.parametrize("name", ["0.4, Blosc", "0.5, zstd"])
def test_what_is_far_too_large_is_not_read(stored, name, tmp_path):
    """A hole in a file takes no disk, and all memory if it is read; a link may lead to itself."""
    folder = shutil.copytree(stored[name], tmp_path / "slide.zarr")
    chunk = folder / "0" / ("0.0.0" if name.startswith("0.4") else "c/0/0/0")
    document = folder / "0" / (".zarray" if name.startswith("0.4") else "zarr.json")
    content, first = document.read_bytes(), Region(0, 0, 5, 5)
    os.truncate(chunk, 2**35)
    with pytest.raises(InputError, match="has 34359738368 bytes, and no such chunk has as many"):
        open_slide(folder).read(0, first)
    os.truncate(document, 2**35)
    with pytest.raises(InputError, match="has 34359738368 bytes; accepted are documents of up to"):
        open_slide(folder)
    document.write_bytes(content)
    chunk.unlink()
    chunk.symlink_to(chunk.name)
    slide = open_slide(folder)
    assert len(slide.info.identity) == 64
    with pytest.raises(InputError, match="cannot be looked at: Too many levels of symbolic links"):
        slide.read(0, first)


def test_chunks_of_other_names_are_not_taken_for_absent(stored, tmp_path):
    """One bit of the separator, and without a look at names all pixels would be 0."""
    old = shutil.copytree(stored["0.4, zlib"], tmp_path / "old.zarr")
    edit_json(old / "0" / ".zarray", dimension_separator="/")
    with pytest.raises(
        InputError, match=r"old\.zarr/0 has chunks such as \d\.\d\.\d, and .* named as 0/0/0, of wh"
    ):
        open_slide(old)
    new = shutil.copytree(stored["0.5, zstd"], tmp_path / "new.zarr")
    edit_json(new / "0" / "zarr.json", chunk_key_encoding={"name": "v2"})
    with pytest.raises(InputError, match=r"has chunks such as c/\d/\d/\d, and .* named as 0\.0\.0"):
        open_slide(new)
    shutil.rmtree(old / "0" / "0", ignore_errors=True)
    for path in (old / "0").glob("?.?.?"):
        path.unlink()
    (old / "0" / "Thumbs.db").touch()
    assert not open_slide(old).read(0, Region(0, 0, 75, 110)).any()  # all of it may be absent


def test_a_chunk_that_says_it_is_larger_than_memory_is_damaged(stored, tmp_path):
    """A bit of zstd's header says that eight bytes tell the size, which its decoder allocates."""
    folder = shutil.copytree(stored["0.5, zstd"], tmp_path / "slide.zarr")
    chunk = folder / "0" / "c" / "0" / "0" / "0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:4] + b"\xe0" + (2**50).to_bytes(8, "little") + data[7:])
    with pytest.raises(InputError, match="a chunk says that it holds more than there is memory f"):
        open_slide(folder).read(0, Region(0, 0, 5, 5))


def test_a_level_that_says_it_has_no_pixel_is_refused(stored, tmp_path):
    folder = shutil.copytree(stored["0.5, zstd"], tmp_path / "slide.zarr")
    edit_json(folder / "1" / "zarr.json", shape=[2, 0, 55])
    with pytest.raises(InputError, match=r"resolutions of 75 x 110, 0 x 55 px, of which one has "):
        open_slide(folder)


def test_a_level_that_says_it_is_larger_is_not_taken_for_the_highest(stored, tmp_path):
    folder = shutil.copytree(stored["0.5, zstd"], tmp_path / "slide.zarr")
    edit_json(folder / "1" / "zarr.json", shape=[2, 38000, 55])
    with pytest.raises(InputError, match=r"resolutions of 75 x 110, 38000 x 55 px, of which none "):
        open_slide(folder)
