import contextlib
import dataclasses
import io
import json
import pickle
import shutil
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.storage._local as local_store
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells import labels as out
from densebatch.cells import ngff, pyramid

pytestmark = [
    # napari's plugin engine declares its pydantic models in a way that pydantic 2 is about to drop
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),
    # ome-zarr's own default of a Scaler, built and deprecated in the same package
    pytest.mark.filterwarnings("ignore:.*Scaler.*:DeprecationWarning"),
]

VERSIONS = ["0.5", "0.4"]
NO_SOURCE = {"slide": "a"}


def make_spec(root, ngff_version="0.5", shape=(150, 105), **changes):
    settings = {
        "n_levels": out.count_levels(*shape, top_px=64),
        "um_per_px": 0.5,
        "chunk_px": 32,
        "shard_px": 64,
        "image": True,
        "channels": ("CD3", "DAPI"),
        "image_dtype": "uint16",
    }
    return out.PyramidSpec(str(root), ngff_version, *shape, **(settings | changes))


def make_pixels(spec, seed=0):
    """Block labels with an empty quarter, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: spec.height, : spec.width]
    labels = ((y // 7) * 1000 + x // 7 + 1).astype(np.uint32)
    labels[: spec.height // 2, : spec.width // 2] = 0
    if not spec.image:
        return labels, None
    shape = (len(spec.channels), spec.height, spec.width)
    if np.dtype(spec.image_dtype).kind == "f":
        return labels, rng.normal(size=shape).astype(spec.image_dtype)
    info = np.iinfo(spec.image_dtype)
    return labels, rng.integers(info.min, info.max, shape, spec.image_dtype, endpoint=True)


def fill(spec, labels, image=None, order=1):
    for level in range(spec.n_levels):
        grid = out.shard_grid(spec, level)
        for index in list(grid)[::order]:
            region = grid[index]
            if level == 0:
                out.write_label_shard(spec, 0, region, labels[region.slices])
            else:
                out.downsample_labels(spec, level, region)
            for channel in range(len(spec.channels) if spec.image else 0):
                if level == 0:
                    pixels = image[channel][region.slices]
                    out.write_image_shard(spec, channel, 0, region, pixels)
                else:
                    out.downsample_image(spec, channel, level, region)


def write_all(spec, **kwargs):
    labels, image = make_pixels(spec)
    out.create(spec, label_attrs=NO_SOURCE)
    fill(spec, labels, image, **kwargs)
    out.finalize(spec, n_cells=int(labels.max()), provenance={"model": "m"})
    return labels, image


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


def files_of(folder):
    folder = Path(folder)
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def open_in_napari(path):
    from napari_ome_zarr._reader import napari_get_reader

    with contextlib.redirect_stdout(io.StringIO()):
        return napari_get_reader(str(path))(str(path))


def open_in_ome_zarr(path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    return [node for node in Reader(parse_url(path))() if node.data]


def validate(spec):
    """What ome-zarr-models says of every group that it has a model for."""
    from ome_zarr_models import v04, v05
    from ome_zarr_models.v04.image_label import ImageLabel as ImageLabel04
    from ome_zarr_models.v04.labels import Labels as Labels04
    from ome_zarr_models.v05.image_label import ImageLabel as ImageLabel05
    from ome_zarr_models.v05.labels import Labels as Labels05

    image, labels, label = {
        "0.4": (v04.Image, Labels04, ImageLabel04),
        "0.5": (v05.Image, Labels05, ImageLabel05),
    }[spec.ngff]
    root = zarr.open_group(spec.root, mode="r")
    listed = labels.from_zarr(root["labels"]).attributes
    assert spec.label_name in getattr(listed, "ome", listed).labels
    label.from_zarr(root["labels"][spec.label_name])
    if spec.image or spec.in_place:
        image.from_zarr(root)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One finished output of each version, with and without an image."""
    result = {}
    for version in VERSIONS:
        for image in (True, False):
            root = tmp_path_factory.mktemp("out") / "segmentation.ome.zarr"
            spec = make_spec(root, version, image=image)
            result[version, image] = (spec, *write_all(spec))
    return result


# --- what others say of the output


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_output_is_valid(written, version, image):
    validate(written[version, image][0])


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_reader_opens_it(written, version, image):
    spec, labels, pixels = written[version, image]
    nodes = open_in_ome_zarr(out.viewer_path(spec))
    assert len(nodes) == 1 + image
    assert [level.dtype for level in nodes[-1].data] == [np.uint32] * spec.n_levels
    np.testing.assert_array_equal(nodes[-1].data[0].compute(), labels)
    if image:
        assert nodes[0].metadata["channel_names"] == ["CD3", "DAPI"]
        assert len(nodes[0].data) == len(nodes[1].data) == spec.n_levels
        np.testing.assert_array_equal(nodes[0].data[0].compute(), pixels)


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_napari_opens_it(written, version, image):
    from napari.layers import Labels

    spec, labels, _ = written[version, image]
    paths = [out.viewer_path(spec), *(Path(spec.root) / p for p in ("labels", "labels/cells"))]
    for path in paths:
        *images, (data, settings, kind) = open_in_napari(path)
        assert kind == "labels"
        assert len(images) == image
        assert [level.shape for level in data] == [
            spec.level_shape(level) for level in range(spec.n_levels)
        ]
        np.testing.assert_array_equal(np.asarray(data[0]), labels)
        assert settings["scale"] == [0.5, 0.5]
        assert settings["units"] == ("micrometer", "micrometer")
    for _, image_settings, _ in images:
        assert image_settings["name"] == ["image: CD3", "image: DAPI"]
        assert image_settings["scale"] == [0.5, 0.5]
    # Every cell is drawn, each in its colour: a list of `colors` would hide those it leaves out.
    layer = Labels(np.asarray(data[-1]), **{k: v for k, v in settings.items() if k == "colormap"})
    colors = {tuple(layer.get_color(value)) for value in (1, 2, 3, 40_000)}
    assert len(colors) == 4
    assert all(color[3] == 1 for color in colors)
    # No group appears above what was asked for (napari-ome-zarr opens parents for writing).
    assert {p.name for p in Path(spec.root).parent.iterdir()} == {"segmentation.ome.zarr"}


@pytest.mark.parametrize("version", VERSIONS)
def test_napari_needs_the_labels_own_path_when_there_is_no_image(written, version):
    spec = written[version, False][0]
    assert open_in_napari(spec.root) == []
    assert out.viewer_path(spec) == Path(spec.root) / "labels" / "cells"


# --- storage


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


def test_a_small_slide_has_small_chunks(tmp_path):
    spec = make_spec(tmp_path / "s", shape=(40, 700), chunk_px=512, shard_px=4096, n_levels=1)
    assert (spec.chunk_shape(0), spec.unit_shape(0)) == ((40, 512), (40, 1024))
    assert len(out.shard_grid(spec, 0)) == 1
    large = make_spec(tmp_path / "s", shape=(5000, 9000), chunk_px=512, shard_px=4096, n_levels=1)
    assert large.unit_shape(0) == (4096, 4096)


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


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_data_gives_the_same_bytes(tmp_path, version):
    first, second = (make_spec(tmp_path / name, version) for name in "ab")
    write_all(first)
    write_all(second, order=-1)
    assert files_of(first.root) == files_of(second.root)
    labels, image = make_pixels(first)
    fill(first, labels, image)
    assert files_of(first.root) == files_of(second.root)


# --- units


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


def test_a_spec_travels_light(tmp_path):
    spec = make_spec(tmp_path / "s", channels=tuple(f"marker {i}" for i in range(10)))
    assert len(pickle.dumps(spec)) < 1000
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_px": 100}, "a shard of 100 px is no multiple of 32 px"),
        ({"label_name": "../x"}, "a label name has letters"),
        ({"label_name": ".."}, "a label name has letters"),
        ({"n_levels": 0}, "sizes and levels are positive"),
        ({"channels": ()}, "an image has channels"),
        ({"image_dtype": "complex64"}, "an image is of integer or real type, not complex64"),
        ({"windows": ((0, 1),)}, "2 channels have 1 windows"),
    ],
)
def test_impossible_specs_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_spec(tmp_path / "s", **changes)
    with pytest.raises(ValueError, match=r"OME-Zarr version is one of 0\.4, 0\.5: 0\.3"):
        make_spec(tmp_path / "s", "0.3")


# --- levels


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


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.int32, np.uint64, np.int64]),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
    )
)
def test_integer_means_are_exact(block):
    mean = pyramid.mean_of_four(block)
    assert mean.dtype == block.dtype
    height, width = block.shape
    for (i, j), value in np.ndenumerate(mean):
        total = sum(
            int(block[min(2 * i + dy, height - 1), min(2 * j + dx, width - 1)])
            for dy in (0, 1)
            for dx in (0, 1)
        )
        assert int(value) == (total + 2) // 4


def test_real_means_do_not_overflow_and_keep_their_type():
    large = np.finfo(np.float32).max
    for dtype in (np.float16, np.float32, np.float64):
        assert pyramid.mean_of_four(np.ones((3, 3), dtype)).dtype == dtype
    np.testing.assert_array_equal(
        pyramid.mean_of_four(np.array([[large, large, np.inf, np.nan]] * 2, np.float32)),
        np.array([[large, np.nan]], np.float32),
    )


@given(st.integers(1, 400), st.integers(1, 400))
def test_nearest_pixel_holds_the_centre(n, m):
    for i in range(m):
        chosen, centre = pyramid.nearest(i, n, m), Fraction(2 * i + 1, 2) * n / m
        assert 0 <= chosen < n
        assert chosen < centre <= chosen + 1


def test_metadata_of_an_unknown_pixel_size_and_real_channels(tmp_path):
    spec = make_spec(
        tmp_path / "s", um_per_px=None, image_dtype="float32", windows=((-1.0, 2.0), (0, 5))
    )
    write_all(spec)
    validate(spec)
    image = json.loads((tmp_path / "s/zarr.json").read_text())["attributes"]["ome"]
    label = json.loads((tmp_path / "s/labels/cells/zarr.json").read_text())["attributes"]["ome"]
    assert image["multiscales"][0]["axes"][1:] == label["multiscales"][0]["axes"]
    assert label["multiscales"][0]["axes"] == [
        {"name": "y", "type": "space"},
        {"name": "x", "type": "space"},
    ]
    for level, (a, b) in enumerate(
        zip(image["multiscales"][0]["datasets"], label["multiscales"][0]["datasets"], strict=True)
    ):
        assert a["coordinateTransformations"] == [
            {"type": "scale", "scale": [1.0, 2.0**level, 2.0**level]}
        ]
        assert b["coordinateTransformations"] == [
            {"type": "scale", "scale": [2.0**level, 2.0**level]}
        ]
    assert [c["window"] for c in image["omero"]["channels"]] == [
        {"min": -1.0, "max": 2.0, "start": -1.0, "end": 2.0},
        {"min": 0.0, "max": 5.0, "start": 0.0, "end": 5.0},
    ]
    assert label["image-label"] == {"version": "0.5", "source": {"image": "../../"}}


# --- life cycle


@pytest.mark.parametrize("version", VERSIONS)
def test_create_again_keeps_everything(tmp_path, version):
    spec = make_spec(tmp_path / "s", version)
    out.create(spec, label_attrs=NO_SOURCE)
    labels, image = make_pixels(spec)
    fill(spec, labels, image)
    before = files_of(spec.root)
    out.create(spec, label_attrs=NO_SOURCE)
    assert files_of(spec.root) == before
    out.finalize(spec, n_cells=3, provenance={})
    after = files_of(spec.root)
    out.create(spec, label_attrs=NO_SOURCE)
    out.finalize(spec, n_cells=3, provenance={})
    assert files_of(spec.root) == after


@pytest.mark.parametrize("version", VERSIONS)
def test_whatever_a_kill_leaves_is_completed(tmp_path, monkeypatch, version):
    class KilledError(BaseException):
        pass

    def run(root):
        spec = make_spec(root, version, (40, 40), n_levels=1, channels=("a",))
        out.create(spec, label_attrs=NO_SOURCE)
        out.finalize(spec, n_cells=0, provenance={})

    run(tmp_path / "whole")
    put = local_store._put
    writing = threading.Lock()
    for survived in range(100):
        left = survived

        def put_and_count(*args, **kwargs):
            nonlocal left
            with writing:  # zarr writes in several threads, which a kill would end together
                left -= 1
                if left < 0:
                    raise KilledError
                return put(*args, **kwargs)

        root = tmp_path / "s"
        with monkeypatch.context() as patch:
            patch.setattr(local_store, "_put", put_and_count)
            try:
                run(root)
            except KilledError:
                killed = True
                with writing:
                    pass  # until what began before the kill is written
            else:
                killed = False
        run(root)
        assert files_of(root) == files_of(tmp_path / "whole")
        shutil.rmtree(root)
        if not killed:
            break
    assert 8 < survived < 99


@pytest.mark.parametrize("version", VERSIONS)
def test_another_runs_output_is_refused_and_restart_replaces_it(tmp_path, version):
    spec = make_spec(tmp_path / "s", version)
    write_all(spec)
    with pytest.raises(
        InputError, match=r"belongs to another run \(slide: 'a' there, 'b' here\); use --restart"
    ):
        out.create(spec, label_attrs={"slide": "b"})
    with pytest.raises(InputError, match=r"exists and differs \(.*shape"):
        out.create(make_spec(spec.root, version, (151, 105)), label_attrs=NO_SOURCE)
    other = next(v for v in VERSIONS if v != version)
    with pytest.raises(InputError, match="is stored in zarr format"):
        out.create(make_spec(spec.root, other), label_attrs=NO_SOURCE)
    smaller = make_spec(spec.root, version, (100, 100))
    out.create(smaller, label_attrs={"slide": "b"}, restart=True)
    fresh = make_spec(tmp_path / "fresh", version, (100, 100))
    out.create(fresh, label_attrs={"slide": "b"})
    assert files_of(smaller.root) == files_of(fresh.root)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_restart_that_was_killed_leaves_nothing_behind(tmp_path, monkeypatch, version):
    spec = make_spec(tmp_path / "s", version)
    write_all(spec)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            out.create(spec, label_attrs=NO_SOURCE, restart=True)
    assert not Path(spec.root).exists()
    out.create(spec, label_attrs=NO_SOURCE, restart=True)
    fresh = make_spec(tmp_path / "fresh", version)
    out.create(fresh, label_attrs=NO_SOURCE)
    assert files_of(spec.root) == files_of(fresh.root)
    assert {p.name for p in tmp_path.iterdir()} == {"s", "fresh"}


def test_what_others_wrote_is_never_taken_or_deleted(tmp_path):
    zarr.create_group(tmp_path / "s").update_attributes({"title": "precious"})
    for restart in (False, True):
        with pytest.raises(InputError, match="was not written by densebatch"):
            out.create(make_spec(tmp_path / "s"), label_attrs=NO_SOURCE, restart=restart)
    assert zarr.open_group(tmp_path / "s", mode="r").attrs["title"] == "precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        out.create(make_spec(tmp_path / "file"), label_attrs=NO_SOURCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_a_label_image_before_the_end(tmp_path, version):
    spec = make_spec(tmp_path / "s", version)
    out.create(spec, label_attrs=NO_SOURCE)
    labels, image = make_pixels(spec)
    fill(spec, labels, image)
    assert open_in_napari(spec.root) == []
    assert open_in_ome_zarr(spec.root) == []
    with pytest.raises(InputError, match="is not finished"):
        out.read_labels(spec.root)
    leftover = Path(spec.root) / "labels/cells/0/c/0.1234.partial"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"killed")
    out.finalize(spec, n_cells=7, provenance={"model": "m"})
    assert not list(Path(spec.root).rglob("*.partial"))
    attributes = zarr.open_group(spec.root + "/labels/cells", mode="r").attrs.asdict()
    assert attributes["densebatch"] == {
        "run": NO_SOURCE,
        "complete": True,
        "cells": 7,
        "provenance": {"model": "m"},
    }
    np.testing.assert_array_equal(out.read_labels(spec.root)[:], labels)
    np.testing.assert_array_equal(out.read_labels(Path(spec.root) / "labels" / "cells")[:], labels)


def test_read_labels_says_what_is_wrong(written, tmp_path):
    spec = written["0.5", True][0]
    with pytest.raises(InputError, match="levels 0 to 2, not 3"):
        out.read_labels(spec.root, 3)
    with pytest.raises(InputError, match="is an OME-Zarr image but not a label image"):
        out.read_labels(spec.root, label_name="nuclei")
    with pytest.raises(InputError, match="is not a zarr group"):
        out.read_labels(tmp_path)
    with pytest.raises(InputError, match="has no multiscales"):
        out.read_labels(Path(spec.root) / "labels")
    with pytest.raises(InputError, match="is not a readable zarr group"):
        out.read_labels(Path(spec.root) / "0")


# --- inside a slide


def write_slide(root, version, axes="cyx", shape=(2, 151, 105), factors=(2, 4)):
    from ome_zarr.format import format_from_version
    from ome_zarr.writer import write_image, write_labels

    fmt = format_from_version(version)
    group = zarr.open_group(root, mode="w", zarr_format=fmt.zarr_format)
    rng = np.random.default_rng(0)
    units = dict.fromkeys("yx", "micrometer")
    scale = {"y": 0.25, "x": 0.3}
    every = dict.fromkeys(axes, 1.0) | scale
    write_image(
        rng.integers(0, 999, shape, np.uint16), group, axes=axes, scale_factors=factors,
        scale=every, axes_units=units, fmt=fmt,
    )  # fmt: skip
    write_labels(
        np.ones(shape[-2:], np.uint8), group, "nuclei", axes="yx", scale_factors=factors,
        scaler=None, scale=scale, axes_units=units, fmt=fmt,
    )  # fmt: skip
    return group


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_inside_a_slide(tmp_path, version):
    root = tmp_path / "slide.zarr"
    write_slide(root, version)
    before = files_of(root)
    spec = out.in_place_spec(root, chunk_px=16, shard_px=32)
    assert (spec.ngff, spec.in_place, spec.n_levels) == (version, True, 3)
    labels, _ = make_pixels(spec)
    out.create(spec, label_attrs=NO_SOURCE)
    fill(spec, labels)
    # Until the end the slide is as it was, to the byte.
    now = files_of(root)
    assert {path: now[path] for path in before} == before
    out.finalize(spec, n_cells=5, provenance={})
    now = files_of(root)
    changed = {path for path in before if now[path] != before[path]}
    assert changed == {Path("labels") / ("zarr.json" if version == "0.5" else ".zattrs")}
    validate(spec)

    attributes = zarr.open_group(root, mode="r").attrs.asdict()
    image = ngff.multiscale_of(attributes, "")["datasets"]
    mine = ngff.multiscale_of(zarr.open_group(root / "labels/cells", mode="r").attrs.asdict(), "")
    assert mine["axes"][0]["unit"] == "micrometer"
    for a, b in zip(image, mine["datasets"], strict=True):
        for step, own in zip(
            a["coordinateTransformations"], b["coordinateTransformations"], strict=True
        ):
            assert step[step["type"]][1:] == own[own["type"]]
    for level, dataset in enumerate(image):
        shape = zarr.open_array(root / dataset["path"], mode="r").shape[1:]
        stored = out.read_labels(root, level)
        assert stored.shape == shape
        if level:
            rows, cols = (
                [pyramid.nearest(i, n, m) for i in range(m)]
                for n, m in zip(labels.shape, shape, strict=True)
            )
            labels = labels[np.ix_(rows, cols)]
        np.testing.assert_array_equal(stored[:], labels)

    assert out.viewer_path(spec) == root
    layers = open_in_napari(root)
    assert [kind for *_, kind in layers] == ["image", "labels", "labels"]
    assert layers[0][1]["scale"] == layers[2][1]["scale"] == [0.25, 0.3]
    assert len(open_in_ome_zarr(root)) == 3

    for name in ("cells", "nuclei"):
        with pytest.raises(InputError, match=r"belongs to another run|not written by densebatch"):
            out.create(
                out.in_place_spec(root, label_name=name, chunk_px=16, shard_px=32),
                label_attrs={"slide": "b"},
            )
    with pytest.raises(InputError, match=r"nuclei was not written by densebatch and is not del"):
        out.create(
            out.in_place_spec(root, label_name="nuclei"), label_attrs=NO_SOURCE, restart=True
        )
    out.create(spec, label_attrs={"slide": "b"}, restart=True)
    now = files_of(root)
    assert {path for path in before if now[path] != before[path]} <= changed
    assert [kind for *_, kind in open_in_napari(root)] == ["image", "labels"]


@pytest.mark.parametrize("version", VERSIONS)
# zarr warns on writing and on reading consolidated metadata of format 3
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_a_slide_with_consolidated_metadata_shows_its_new_labels(tmp_path, version):
    root = tmp_path / "slide.zarr"
    write_slide(root, version, axes="tczyx", shape=(1, 2, 1, 90, 70), factors=(2,))
    zarr.consolidate_metadata(root)
    spec = out.in_place_spec(root)
    labels, _ = make_pixels(spec)
    out.create(spec, label_attrs=NO_SOURCE)
    fill(spec, labels)
    out.finalize(spec, n_cells=5, provenance={})
    assert [kind for *_, kind in open_in_napari(root)] == ["image", "labels", "labels"]
    out.create(spec, label_attrs={"slide": "b"}, restart=True)
    assert [kind for *_, kind in open_in_napari(root)] == ["image", "labels"]


def test_slides_that_cannot_take_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not a zarr group"):
        out.in_place_spec(tmp_path)
    group = zarr.create_group(tmp_path / "a")
    with pytest.raises(InputError, match="is not an OME-Zarr image: it has no multiscales"):
        out.in_place_spec(tmp_path / "a")
    group.create_array("0", shape=(4, 4), chunks=(4, 4), dtype="uint8")
    dataset = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}
    multiscale = {"axes": [{"name": "y"}, {"name": "x"}], "datasets": [dataset]}

    def declare(version="0.5", **changes):
        group.attrs["ome"] = {"version": version, "multiscales": [multiscale | changes]}

    declare("0.6")
    with pytest.raises(InputError, match=r"is OME-Zarr 0\.6; labels go into 0\.4 and 0\.5 only"):
        out.in_place_spec(tmp_path / "a")
    declare(axes=[{"name": "y"}, {"name": "z"}])
    with pytest.raises(InputError, match=r"has axes \['y', 'z'\]"):
        out.in_place_spec(tmp_path / "a")
    declare(datasets=[{"path": "0"}])
    with pytest.raises(InputError, match="has a level without a scale"):
        out.in_place_spec(tmp_path / "a")
    declare(coordinateTransformations=[{"type": "affine", "affine": []}])
    with pytest.raises(InputError, match=r"has the transformation .*affine.*, which is not known"):
        out.in_place_spec(tmp_path / "a")
    declare(datasets=[dataset | {"path": "1"}])
    with pytest.raises(InputError, match="is not a readable zarr array"):
        out.in_place_spec(tmp_path / "a")
    declare(coordinateTransformations=[{"type": "scale", "scale": [3, 4]}])
    spec = out.in_place_spec(tmp_path / "a")
    assert spec.slide.outer == (("scale", 3.0, 4.0),)
    document = ngff.label_document(spec)["ome"]["multiscales"][0]
    assert document["coordinateTransformations"] == [{"type": "scale", "scale": [3.0, 4.0]}]
