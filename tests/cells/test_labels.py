"""The life of a label image: created, filled, finished, replaced; and inside a slide."""

import dataclasses
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.storage._local as local_store

from densebatch.base.errors import InputError
from densebatch.cells import labels as out
from densebatch.cells import pyramid, pyramid_spec
from densebatch.ngff.metadata import find_multiscale, ome_attributes
from tests.helpers.label_files import (
    NO_SOURCE,
    OTHER_READERS,
    VERSIONS,
    files_of,
    fill,
    make_pixels,
    make_spec,
    open_in_napari,
    open_in_ome_zarr,
    validate,
    write_all,
)
from tests.helpers.slide_files import write_zarr

pytestmark = OTHER_READERS


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


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_data_gives_the_same_bytes(tmp_path, version):
    first, second = (make_spec(tmp_path / name, version) for name in "ab")
    write_all(first)
    write_all(second, order=-1)
    assert files_of(first.root) == files_of(second.root)
    labels, image = make_pixels(first)
    fill(first, labels, image)
    assert files_of(first.root) == files_of(second.root)


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
        out.read_labels(write_zarr(tmp_path / "image", np.zeros((1, 8, 8), np.uint16)))
    with pytest.raises(InputError, match="is not a zarr group"):
        out.read_labels(tmp_path)
    with pytest.raises(InputError, match="has no multiscales"):
        out.read_labels(Path(spec.root) / "labels")
    with pytest.raises(InputError, match="is not a readable zarr group"):
        out.read_labels(Path(spec.root) / "0")


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
    spec = dataclasses.replace(out.in_place_spec(root), chunk_px=16, shard_px=32)
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
    image = ome_attributes(attributes)["multiscales"][0]["datasets"]
    mine = find_multiscale(
        ome_attributes(zarr.open_group(root / "labels/cells", mode="r").attrs.asdict())
    )
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
            out.create(dataclasses.replace(spec, label_name=name), label_attrs={"slide": "b"})
    with pytest.raises(InputError, match=r"nuclei was not written by densebatch and is not del"):
        out.create(
            dataclasses.replace(spec, label_name="nuclei"), label_attrs=NO_SOURCE, restart=True
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
    shift = {"type": "translation", "translation": [3, 4]}
    declare(datasets=[{"path": "0", "coordinateTransformations": [shift]}])
    with pytest.raises(InputError, match="has a level without a scale"):
        out.in_place_spec(tmp_path / "a")
    declare(coordinateTransformations=[{"type": "affine", "affine": []}])
    with pytest.raises(
        InputError, match="has a transformation of type 'affine', which labels cannot copy"
    ):
        out.in_place_spec(tmp_path / "a")
    declare(datasets=[dataset | {"path": "1"}])
    with pytest.raises(InputError, match="is not a readable zarr array"):
        out.in_place_spec(tmp_path / "a")
    declare(coordinateTransformations=[{"type": "scale", "scale": [3, 4]}])
    spec = out.in_place_spec(tmp_path / "a")
    assert spec.slide.outer == (("scale", 3.0, 4.0),)
    document = pyramid_spec.label_document(spec)["ome"]["multiscales"][0]
    assert document["coordinateTransformations"] == [{"type": "scale", "scale": [3.0, 4.0]}]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fault_of_the_slides_metadata_is_copied_and_logged(tmp_path, version, caplog):
    def document(attributes):
        for dataset in attributes["multiscales"][0]["datasets"]:
            dataset["coordinateTransformations"] *= 2

    caplog.set_level("INFO", logger="densebatch")
    pixels = np.zeros((1, 40, 40), np.uint16)
    root = write_zarr(tmp_path / "a", pixels, version=version, n_levels=2, document=document)
    spec = out.in_place_spec(root)
    out.create(spec, label_attrs=NO_SOURCE)
    (record,) = caplog.records
    assert record.event == "labels copy a fault of the slide's metadata"
    assert record.fields["root"] == str(root)
    assert "Expected a scale or (scale, translation)" in record.fields["fault"]
    fill(spec, np.zeros((40, 40), np.uint32))
    out.finalize(spec, n_cells=0, provenance={})
    found = find_multiscale(
        ome_attributes(zarr.open_group(root / "labels/cells", mode="r").attrs.asdict())
    )
    steps = [dataset["coordinateTransformations"] for dataset in found["datasets"]]
    assert steps == [[{"type": "scale", "scale": [k, k]}] * 2 for k in (0.5, 1.0)]


def test_metadata_of_ours_that_are_not_valid_are_never_written(tmp_path):
    spec = make_spec(tmp_path / "s", channels=("a", "b"), um_per_px=-1.0)
    with pytest.raises(ValueError, match="would not be valid OME-Zarr: multiscales"):
        out.create(spec, label_attrs=NO_SOURCE)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_levels_listed_smallest_first_are_copied_by_size(tmp_path, version):
    def document(attributes):
        attributes["multiscales"][0]["datasets"].reverse()

    pixels = np.zeros((1, 90, 70), np.uint16)
    root = write_zarr(tmp_path / "a", pixels, "cyx", version, n_levels=3, document=document)
    spec = out.in_place_spec(root)
    assert spec.slide.shapes == ((90, 70), (45, 35), (23, 18))
    assert [steps[0][1] for steps in spec.slide.transforms] == [0.5, 1.0, 2.0]
    labels, _ = make_pixels(spec)
    out.create(spec, label_attrs=NO_SOURCE)
    fill(spec, labels)
    out.finalize(spec, n_cells=5, provenance={})
    assert [out.read_labels(root, level).shape for level in range(3)] == list(spec.slide.shapes)
    # A label image of another program may list them in any order, too.
    group = zarr.open_group(root / "labels/cells", mode="r+")
    attributes = group.attrs.asdict()
    ome_attributes(attributes)["multiscales"][0]["datasets"].reverse()
    group.update_attributes(attributes)
    assert [out.read_labels(root, level).shape for level in range(3)] == list(spec.slide.shapes)


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_of_an_image_without_scales(tmp_path, version):
    def document(attributes):
        for dataset in attributes["multiscales"][0]["datasets"]:
            del dataset["coordinateTransformations"]

    pixels = np.zeros((1, 90, 70), np.uint16)
    root = write_zarr(tmp_path / "a", pixels, "cyx", version, n_levels=2, document=document)
    assert out.slide_layout(root) is None
    spec = out.in_place_spec(root)
    out.create(spec, label_attrs=NO_SOURCE)
    fill(spec, np.zeros((90, 70), np.uint32))
    out.finalize(spec, n_cells=0, provenance={})
    validate(dataclasses.replace(spec, in_place=False))
    found = find_multiscale(
        ome_attributes(zarr.open_group(root / "labels/cells", mode="r").attrs.asdict())
    )
    assert [axis.get("unit") for axis in found["axes"]] == [None, None]
    steps = [dataset["coordinateTransformations"] for dataset in found["datasets"]]
    assert steps == [[{"type": "scale", "scale": [k, k]}] for k in (1.0, 2.0)]


@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_labels_that_nobody_could_see_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    write_zarr(tmp_path / "plate" / "image", np.zeros((1, 40, 40), np.uint16))
    zarr.open_group(tmp_path / "plate", mode="a", zarr_format=3)
    zarr.consolidate_metadata(tmp_path / "plate")
    spec = out.in_place_spec(tmp_path / "plate" / "image")
    out.check_place(spec, label_attrs=NO_SOURCE, restart=False)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "plate")
    with pytest.raises(InputError, match="plate has consolidated metadata, without which nobody"):
        out.check_place(spec, label_attrs=NO_SOURCE, restart=False)
