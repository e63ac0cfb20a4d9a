"""Formats of which no file of a microscope is at hand: on files made here, or other formats."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.readers import mrxs
from densebatch.readers.formats import FORMATS
from densebatch.slides.slide import open_slide
from tests.helpers import microscope_files as files
from tests.helpers.slide_files import random_pixels
from tests.helpers.slide_formats import read_all
from tests.readers.conftest import RGB, openslide_tiff

pytestmark = pytest.mark.extra
ZCYX = random_pixels((3, 2, 40, 50))


def lif(folder):
    pytest.importorskip("liffile")
    return files.write_lif(folder / "a.lif", [("one", ZCYX), ("two", ZCYX[:1, :, :30])]), "one"


def nd2(folder):
    pytest.importorskip("nd2")
    return files.write_nd2(folder / "a.nd2", ZCYX), None


@pytest.mark.parametrize("write", [lif, nd2])
def test_stacks_and_images_are_chosen(tmp_path, write):
    path, scene = write(tmp_path)
    with pytest.raises(InputError, match=r"3 images along Z \(focal planes\), .* with --z max$"):
        open_slide(path, scene=scene)
    for z, pixels in (("1", ZCYX[1]), ("max", ZCYX.max(0))):
        slide = open_slide(path, scene=scene, z=z)
        np.testing.assert_array_equal(read_all(slide), pixels)
        assert "is untried: there was no file to test it on" in slide.info.notes[0]
    if scene is not None:
        with pytest.raises(InputError, match=r"holds 2 images and none was chosen.*'one'.*'two'"):
            open_slide(path)
        np.testing.assert_array_equal(read_all(open_slide(path, scene="two")), ZCYX[0, :, :30])


def test_openslide_reads_by_region_and_level(tmp_path):
    """By a TIFF, since the reader takes any file that OpenSlide knows."""
    openslide = pytest.importorskip("openslide")
    path = openslide_tiff(tmp_path)
    with mrxs.OpenSlideReader(path) as reader:
        facts = reader.describe(0)
        assert facts.um_x == pytest.approx(files.UM)
        assert facts.levels == (RGB.shape[:2], (35, 45))
        assert facts.chunk_px == (32, 32)
        planes = np.moveaxis(RGB, -1, 0)
        found = reader.read(0, [2, 0], Region(10, 20, 60, 90))
        np.testing.assert_array_equal(found, planes[[2, 0], 10:60, 20:90])
        below = reader.read(0, [0, 1, 2], Region(3, 4, 30, 40), level=1)
        np.testing.assert_array_equal(below, planes[:, ::2, ::2][:, 3:30, 4:40])
        with openslide.OpenSlide(str(path)) as slide:
            whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
        np.testing.assert_array_equal(np.moveaxis(whole, -1, 0)[:3], planes)


@pytest.mark.parametrize(("suffix", "library"), [(".mrxs", "openslide"), (".vsi", "slideio")])
def test_a_file_without_its_folder(tmp_path, suffix, library):
    pytest.importorskip(library)
    path = tmp_path / f"slide{suffix}"
    path.write_bytes(b"II*\0")
    with pytest.raises(InputError, match=r"has no folder \S+ beside it"):
        open_slide(path)


def test_vsi_that_slideio_cannot_open_is_a_sentence(tmp_path):
    pytest.importorskip("slideio")
    path = tmp_path / "slide.vsi"
    path.write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "_slide_" / "stack1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot be read as Olympus VSI \("):
        open_slide(path)


@pytest.mark.parametrize("format_", [f for f in FORMATS if f.library])
def test_a_missing_library_is_named_with_the_command(tmp_path, monkeypatch, format_):
    monkeypatch.setitem(__import__("sys").modules, format_.library, None)
    path = tmp_path / f"slide{format_.suffix}"
    path.write_bytes((format_.begins or (b"II*\0",))[0] + bytes(100))
    for folder in ("slide", "_slide_"):
        (tmp_path / folder).mkdir()
    with pytest.raises(InputError) as error:
        open_slide(path)
    assert f"install it with: pip install 'densebatch[{format_.extra}]'" in str(error.value)
