"""Units of the output: what is stored, coarser levels, digests."""

import contextlib
import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells import labels as out
from densebatch.cells import pyramid
from tests.helpers.label_files import (
    NO_SOURCE,
    OTHER_READERS,
    VERSIONS,
    files_of,
    fill,
    make_spec,
    validate,
    write_all,
)

pytestmark = OTHER_READERS


@pytest.mark.parametrize("version", VERSIONS)
def test_levels_are_the_same_from_memory_and_from_disk(tmp_path, version):
    read, kept = (make_spec(tmp_path / name, version) for name in ("read", "kept"))
    levels, image = write_all(read)
    out.create(kept, label_attrs=NO_SOURCE)
    fill(dataclasses.replace(kept, n_levels=1), levels, image)
    planes = [None, *range(len(kept.channels))]
    below = dict(zip(planes, [levels, *image], strict=True))
    for level in range(1, kept.n_levels):
        grid = out.shard_grid(kept, level)
        for plane in planes:
            whole = np.empty(kept.level_shape(level), below[plane].dtype)
            for index in grid:
                where = (kept, level, grid[index])
                if plane is None:
                    unit = out.downsample_labels(*where, below[plane])
                else:
                    unit = out.downsample_image(kept, plane, *where[1:], below[plane])
                assert out.digest_pixels(unit) == out.digest_unit(*where, plane)
                whole[grid[index].slices] = unit
            below[plane] = whole
    out.finalize(kept, n_cells=int(levels.max()), provenance={"model": "m"})
    assert files_of(kept.root) == files_of(read.root)


def test_chunks_are_sharded_and_checked(written):
    spec, *_ = written["0.5", True]
    for path, lead in (("labels/cells/0", []), ("0", [1])):
        document = json.loads((Path(spec.root) / path / "zarr.json").read_text())
        assert document["chunk_grid"]["configuration"]["chunk_shape"] == [*lead, 64, 64]
        (codec,) = document["codecs"]
        assert codec["name"] == "sharding_indexed"
        assert codec["configuration"]["chunk_shape"] == [*lead, 32, 32]
        assert codec["configuration"]["codecs"] == [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
            {"name": "crc32c"},
        ]
        assert document["dimension_names"] == (["c"] if lead else []) + ["y", "x"]


def test_zarr_2_chunks_are_plain_blosc(written):
    spec, *_ = written["0.4", True]
    document = json.loads((Path(spec.root) / "labels/cells/0/.zarray").read_text())
    assert document["chunks"] == [32, 32]
    assert document["dtype"] == "<u4"
    assert document["filters"] is None
    assert document["dimension_separator"] == "/"
    assert document["compressor"] == {
        "id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 0, "blocksize": 0
    }  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_background_takes_no_files(tmp_path, version):
    spec = make_spec(tmp_path / "s", version, image=False)
    out.create(spec, label_attrs=NO_SOURCE)
    before = files_of(spec.root)
    fill(spec, np.zeros((spec.height, spec.width), np.uint32))
    assert files_of(spec.root) == before
    assert not np.any(zarr.open_array(spec.root + "/labels/cells/0", mode="r")[:])


def test_every_flipped_bit_is_found(tmp_path):
    spec = make_spec(tmp_path / "s", image=False, n_levels=1)
    labels, _ = write_all(spec)
    grid = out.shard_grid(spec, 0)
    region = grid[1, 0]
    shard = Path(spec.root) / "labels/cells/0/c/1/0"
    good = shard.read_bytes()
    assert out.digest_unit(spec, 0, region) == out.digest_pixels(labels[region.slices])
    rng = np.random.default_rng(1)
    array = out.read_labels(spec.root)
    for position, bit in zip(rng.integers(0, len(good), 100), rng.integers(0, 8, 100), strict=True):
        bad = bytearray(good)
        bad[position] ^= 1 << bit
        shard.write_bytes(bad)
        with pytest.raises((ValueError, RuntimeError)):
            array[region.slices]
    with pytest.raises(
        InputError, match=r"labels/cells/0 is damaged at Region\(y0=64, x0=0, y1=12"
    ):
        out.digest_unit(spec, 0, region)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_digest_finds_a_lost_file_and_a_task_repairs_any_damage(tmp_path, version):
    spec = make_spec(tmp_path / "s", version, n_levels=1)
    labels, image = write_all(spec)
    before = files_of(spec.root)
    region = out.shard_grid(spec, 0)[2, 1]  # cut by both edges of the slide
    for channel, pixels in ((None, labels), (1, image[1])):
        folder = Path(spec.root) / ("0" if channel is not None else "labels/cells/0")
        good = out.digest_pixels(pixels[region.slices])
        key = (2, 1) if version == "0.5" else (4, 2)
        key = key if channel is None else (channel, *key)
        path = folder.joinpath(*(["c"] if version == "0.5" else []), *map(str, key))
        stored = path.read_bytes()
        half = len(stored) // 2
        broken = stored[:half] + bytes([stored[half] ^ 0xFF]) + stored[half + 1 :]
        for damage in (None, b"", b"abc", stored[:half], stored[:-1] + b"!", broken):
            path.unlink() if damage is None else path.write_bytes(damage)
            with contextlib.suppress(InputError):
                assert out.digest_unit(spec, 0, region, channel) != good
            if channel is None:
                out.write_label_shard(spec, 0, region, labels[region.slices])
            else:
                out.write_image_shard(spec, channel, 0, region, pixels[region.slices])
            assert files_of(spec.root) == before


def test_only_whole_units_are_written(tmp_path):
    spec = make_spec(tmp_path / "s")
    out.create(spec, label_attrs=NO_SOURCE)
    grid = out.shard_grid(spec, 0)
    assert [grid[i] for i in grid][-1] == Region(128, 64, 150, 105)
    for region in (
        Region(0, 0, 32, 32),  # a chunk
        Region(0, 0, 128, 64),  # two units
        Region(1, 0, 65, 64),
        Region(128, 64, 192, 128),  # past the edge
        Region(192, 0, 256, 64),
        Region(-64, 0, 0, 64),
    ):
        with pytest.raises(ValueError, match="is not one whole unit of level 0"):
            out.write_label_shard(spec, 0, region, np.zeros(region.shape, np.uint32))
        with pytest.raises(ValueError, match="is not one whole unit of level 0"):
            out.write_image_shard(spec, 0, 0, region, np.zeros(region.shape, np.uint16))
        with pytest.raises(ValueError, match="is not one whole unit of level 1"):
            out.downsample_labels(spec, 1, region.shift(3, 3))
    unit = grid[0, 0]
    with pytest.raises(ValueError, match="takes uint32 labels, not int64"):
        out.write_label_shard(spec, 0, unit, np.zeros(unit.shape, np.int64))
    with pytest.raises(ValueError, match=r"takes uint32 labels, not uint32 of \(1, 1\)"):
        out.write_label_shard(spec, 0, unit, np.zeros((1, 1), np.uint32))
    with pytest.raises(ValueError, match="takes uint16 pixels, not uint8"):
        out.write_image_shard(spec, 0, 0, unit, np.zeros(unit.shape, np.uint8))
    with pytest.raises(ValueError, match="no image channel 2"):
        out.write_image_shard(spec, 2, 0, unit, np.zeros(unit.shape, np.uint16))
    with pytest.raises(ValueError, match="level 0 is not made from another level"):
        out.downsample_labels(spec, 0, unit)
    with pytest.raises(ValueError, match="levels are 0 to"):
        out.shard_grid(spec, spec.n_levels)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_file_belongs_to_two_units(tmp_path, version):
    spec = make_spec(tmp_path / "s", version, image=False, n_levels=1)
    out.create(spec, label_attrs=NO_SOURCE)
    seen = files_of(spec.root)
    grid = out.shard_grid(spec, 0)
    for index in grid:
        out.write_label_shard(spec, 0, grid[index], np.ones(grid[index].shape, np.uint32))
        now = files_of(spec.root)
        assert all(now[path] == data for path, data in seen.items())
        assert len(now) > len(seen)
        seen = now


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(1, 1), (511, 513), (4097, 3), (300, 210)])
def test_levels_against_brute_force(tmp_path, version, shape):
    spec = make_spec(tmp_path / "s", version, shape, chunk_px=128, shard_px=256)
    labels, image = write_all(spec)
    validate(spec)
    for level in range(spec.n_levels):
        if level:
            labels = labels[::2, ::2]
            full = np.pad(image.astype(np.int64), [(0, 0), *((0, s % 2) for s in image.shape[1:])],
                          mode="edge")  # fmt: skip
            four = full.reshape(len(full), full.shape[1] // 2, 2, full.shape[2] // 2, 2)
            image = (four.sum((2, 4)) + 2) // 4
        assert labels.shape == spec.level_shape(level)
        np.testing.assert_array_equal(out.read_labels(spec.root, level)[:], labels)
        stored = zarr.open_array(f"{spec.root}/{level}", mode="r")
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored[:], image)
    assert max(spec.level_shape(spec.n_levels - 1)) <= 64


def test_levels_read_only_what_they_need(tmp_path):
    spec = make_spec(tmp_path / "s")
    for level in range(1, spec.n_levels):
        above = spec.level_shape(level - 1)
        grid = out.shard_grid(spec, level)
        for index in grid:
            region = grid[index]
            doubled = Region(*(2 * edge for edge in (region.y0, region.x0, region.y1, region.x1)))
            assert out.source_region(spec, level, region) == doubled.clip(*above)


@given(st.integers(1, 400), st.integers(1, 400))
def test_nearest_pixel_holds_the_centre(n, m):
    for i in range(m):
        chosen, centre = pyramid.nearest(i, n, m), Fraction(2 * i + 1, 2) * n / m
        assert 0 <= chosen < n
        assert chosen < centre <= chosen + 1
