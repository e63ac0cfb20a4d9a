"""A slide that changes under a run: a clean stop, never a label image of two slides."""

from __future__ import annotations

import os
import shutil

import pytest
import tifffile

from densebatch.base.errors import InputError, SlideChangedError
from densebatch.run.segment import Progress, segment
from tests.helpers.run_files import output_bytes, simulate
from tests.helpers.slide_files import write_zarr

SHAPE = (300, 1100)
OPTIONS = {"membrane": ("CD3",), "tile": 128, "workers": 0, "model": "dense-tiny"}


GROUP_PX = 250


class Meddler(Progress):
    """Does something when the first task of a stage is done."""

    def __init__(self, stage, act):
        self.act, self.awaited = act, stage

    def advance(self, name, pixels):
        if name == self.awaited:
            self.awaited = None
            self.act()


def write(path, seed, kind):
    pixels = simulate(*SHAPE, seed=seed)
    # Nothing is compressed, so that another slide has files of the same size.
    if kind == "tiff":
        names = {"axes": "CYX", "Channel": {"Name": ["CD3", "DAPI"]}}
        tifffile.imwrite(path, pixels, photometric="minisblack", tile=(64, 64), metadata=names)
        return path
    return write_zarr(path, pixels, labels=["CD3", "DAPI"], chunks=(1, 128, 128), compressors=None)


def list_files(path):
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def keep_times(path, others):
    for file, other in zip(list_files(path), others, strict=True):
        assert file.stat().st_size == other.st_size
        os.utime(file, ns=(other.st_atime_ns, other.st_mtime_ns))


def overwrite(slide, other, times):
    """In place: the same inodes."""
    for file, new in zip(list_files(slide), list_files(other), strict=True):
        file.write_bytes(new.read_bytes())
    if times is not None:
        keep_times(slide, times)


def exchange(slide, other, times):
    """By another file or folder of its name."""
    if slide.is_dir():
        shutil.rmtree(slide)
        shutil.copytree(other, slide)
    else:
        copy = slide.with_suffix(".new")
        shutil.copy(other, copy)
        copy.replace(slide)
    if times is not None:
        keep_times(slide, times)


@pytest.mark.parametrize("kind", ["tiff", "ome-zarr"])
@pytest.mark.parametrize("how", [overwrite, exchange])
@pytest.mark.parametrize("keeps_time", [True, False])
def test_another_slide_of_the_same_size(tmp_path, kind, how, keeps_time):
    name = "a.ome.tif" if kind == "tiff" else "a.ome.zarr"
    (tmp_path / "other").mkdir()
    slide = write(tmp_path / name, 1, kind)
    other = write(tmp_path / "other" / name, 2, kind)
    first = [p.read_bytes() for p in list_files(slide)]
    times = [p.stat() for p in list_files(slide)]
    meddler = Meddler("predict", lambda: how(slide, other, times if keeps_time else None))
    with pytest.raises(SlideChangedError, match=f"{name}: has changed under the run.*--restart"):
        segment(slide, tmp_path / "out", progress=meddler, **OPTIONS)
    assert not (tmp_path / "out/run.json").exists()
    # the other slide is refused, also if nothing but its pixels tell it
    with pytest.raises(InputError, match="holds another run"):
        segment(slide, tmp_path / "out", **OPTIONS)
    # back as it was, the run goes on, and ends as if nothing had happened
    for file, data in zip(list_files(slide), first, strict=True):
        file.write_bytes(data)
    keep_times(slide, times)
    result = segment(slide, tmp_path / "out", **OPTIONS)
    assert result.report["tasks_kept"] > 0
    segment(slide, tmp_path / "clean", **OPTIONS)
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "clean")


@pytest.mark.parametrize("act", ["remove", "unreadable"])
def test_a_slide_that_is_gone(tmp_path, act):
    """It does not make the whole slide a gap."""
    slide = write(tmp_path / "a.ome.tif", 1, "tiff")
    away = tmp_path / "away"

    def meddle():
        slide.rename(away)
        if act == "unreadable":
            slide.mkdir()

    with pytest.raises(SlideChangedError, match=r"a\.ome\.tif: cannot be opened any more"):
        segment(slide, tmp_path / "out", progress=Meddler("predict", meddle), **OPTIONS)


def test_a_chunk_that_is_gone_is_no_background(tmp_path):
    slide = write(tmp_path / "a.ome.zarr", 1, "ome-zarr")
    chunk = slide / "0/c/0/1/8"
    with pytest.raises(SlideChangedError, match="has changed under the run"):
        segment(slide, tmp_path / "out", progress=Meddler("predict", chunk.unlink), **OPTIONS)


def test_workers_compare_too(tmp_path):
    """A process that opens the slide only after it was exchanged."""
    slide = write(tmp_path / "a.ome.tif", 1, "tiff")
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other/a.ome.tif", 2, "tiff")
    times = [slide.stat()]

    class Now(Progress):
        def stage(self, name, total, done):
            if name == "predict":
                exchange(slide, other, times)

    with pytest.raises(SlideChangedError, match="has changed under the run"):
        segment(slide, tmp_path / "out", progress=Now(), **OPTIONS | {"workers": 1})


def test_a_slide_that_was_only_read_has_not_changed(tmp_path):
    """Access times, and labels written into it, are no change."""
    slide = write(tmp_path / "a.ome.zarr", 1, "ome-zarr")

    def read():
        for file in list_files(slide):
            file.read_bytes()

    segment(slide, tmp_path / "a", progress=Meddler("predict", read), in_place=True, **OPTIONS)
    segment(slide, tmp_path / "b", progress=Meddler("trace", read), restart=True, in_place=True,
            **OPTIONS)  # fmt: skip
