"""A converted slide has the pixels, names and size of the slide, and appears whole."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from densebatch.base.errors import DensebatchError, InputError
from densebatch.converting import tasks
from densebatch.converting.convert import convert
from densebatch.ngff.metadata import find_fault
from densebatch.slides.slide import open_slide
from tests.helpers.run_files import Watcher, call_main, write_tiff

SHAPE = (4200, 150)
NAMES = ["CD3", "DAPI", "CD8, clone 4"]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 4000, (3, *SHAPE)).astype(np.uint16)


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.ome.tif", pixels, NAMES, 0.25)


def list_all(folder):
    return sorted(path.name for path in folder.iterdir())


def read_files(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_a_slide_becomes_a_pyramid(slide, pixels, tmp_path, ngff, capsys):
    out = tmp_path / "a.ome.zarr"
    command = ("convert", slide, out, "--ngff", ngff, "--workers", 0)
    code, told, err = call_main(capsys, *command)
    assert code == 0, err
    assert told.startswith(
        f"3 channels of 4200 x 150 px in 5 levels, 0.25 um/px, OME-Zarr {ngff}\nimage   {out}\n"
    )
    assert list_all(tmp_path) == ["a.ome.zarr"]
    group = zarr.open_group(out, mode="r")
    assert find_fault(dict(group.attrs)) is None
    assert group.metadata.zarr_format == {"0.5": 3, "0.4": 2}[ngff]
    np.testing.assert_array_equal(group["0"][:], pixels)
    height, width = (n // 2 * 2 for n in SHAPE)
    quads = pixels[:, :height, :width].reshape(3, height // 2, 2, width // 2, 2).astype(np.uint32)
    np.testing.assert_array_equal(group["1"][:], (quads.sum((2, 4)) + 2) // 4)
    found = open_slide(out).info
    assert (found.kind, found.ngff, found.um_per_px) == ("ome-zarr", ngff, 0.25)
    assert list(found.channels) == NAMES
    assert not (out / "labels").exists()
    before = read_files(out)
    code, again, _ = call_main(capsys, *command)
    assert code == 0
    assert again == told.replace(f"Zarr {ngff}\n", f"Zarr {ngff} (was complete)\n")
    assert read_files(out) == before
    code, _, err = call_main(capsys, *command, "--pixel-size", 2)
    assert code == 2
    assert f"{out}: exists, and is not what this slide and these settings become" in err


def test_an_interrupted_conversion_goes_on(slide, tmp_path):
    """What was done is not done again, and nothing has the name of the result before its end."""
    whole = convert(slide, tmp_path / "whole.zarr", workers=0)
    out = tmp_path / "a.zarr"

    class Stopped(Watcher):
        n = 0

        def advance(self, name, pixels):
            self.n += 1
            if self.n == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(slide, out, workers=0, progress=Stopped())
    assert list_all(tmp_path) == [".a.zarr.unfinished", "whole.zarr"]
    with pytest.raises(InputError, match=r"holds another run: ngff was '0.5' and is now '0.4'"):
        convert(slide, out, workers=0, ngff="0.4")
    [records] = (tmp_path / ".a.zarr.unfinished" / "work").glob("*/journal")
    kept = {path: path.stat().st_mtime_ns for path in records.glob("copy-0-*")}
    assert len(kept) >= 2
    done = []

    class Seen(Watcher):
        def stage(self, name, total, n_done):
            done.append((name, total, n_done))

    made = convert(slide, out, workers=0, progress=Seen())
    assert done[0] == ("copy", 3, len(kept))
    assert made.pixels == whole.pixels
    assert read_files(out) == read_files(tmp_path / "whole.zarr")
    assert list_all(tmp_path) == ["a.zarr", "whole.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [5, 12, 25, 35])
def test_a_killed_conversion_goes_on(slide, tmp_path, kill_at):
    """Killed as it gives a file its name."""
    whole, out = tmp_path / "whole.zarr", tmp_path / "a.zarr"
    convert(slide, whole, workers=0)
    child = os.fork()
    if child == 0:
        replace, count = Path.replace, 0

        def counted(self, target):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = counted
        convert(slide, out, workers=0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not out.exists()
    convert(slide, out, workers=0)
    assert read_files(out) == read_files(whole)
    assert list_all(tmp_path) == ["a.zarr", "whole.zarr"]


@pytest.mark.slow
def test_workers_make_the_same_files(slide, tmp_path):
    for name, workers in (("alone", 0), ("two", 2)):
        convert(slide, tmp_path / f"{name}.zarr", workers=workers)
    assert read_files(tmp_path / "two.zarr") == read_files(tmp_path / "alone.zarr")


def test_areas_of_a_slide(slide, pixels, tmp_path):
    ring = [[10, 200], [90, 200], [90, 700], [10, 700]]
    (tmp_path / "r.json").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    out = convert(slide, tmp_path / "a.zarr", workers=0, roi=tmp_path / "r.json").out
    expected = np.zeros_like(pixels)
    expected[:, 200:700, 10:90] = pixels[:, 200:700, 10:90]
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], expected)


def test_what_is_refused(slide, tmp_path):
    with pytest.raises(InputError, match=r"is no name for an OME-Zarr; accepted are names with"):
        convert(slide, tmp_path / "a.tif", workers=0)
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(InputError, match="exists, and is not what this slide"):
        convert(slide, tmp_path / "b.zarr", workers=0)
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "none.tif", tmp_path / "c.zarr", workers=0)
    assert list_all(tmp_path) == ["b.zarr"]


def test_pixels_that_cannot_be_read_leave_no_result(tmp_path):
    path = tmp_path / "a.ome.tif"
    data = np.random.default_rng(1).integers(0, 255, (1, 600, 600)).astype(np.uint8)
    tifffile.imwrite(path, data, tile=(256, 256), compression="zlib", metadata={"axes": "CYX"})
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[4]
    content = bytearray(path.read_bytes())
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DensebatchError, match="copy-0-0-0 failed") as caught:
        convert(path, tmp_path / "a.zarr", workers=0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()


def test_what_is_written_is_read_back(slide, tmp_path, monkeypatch):
    """A disk that keeps another bit is found."""
    write = tasks.write_image_shard

    def flipped(spec, channel, level, region, pixels):
        pixels = pixels.copy()
        pixels[3, 4] ^= 1
        write(spec, channel, level, region, pixels)

    monkeypatch.setattr(tasks, "write_image_shard", flipped)
    with pytest.raises(
        DensebatchError, match=r"read back of channel 0, level 0, .* is not what was"
    ):
        convert(slide, tmp_path / "a.zarr", workers=0)
    assert not (tmp_path / "a.zarr").exists()
