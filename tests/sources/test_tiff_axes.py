"""Dimensions of TIFF files: channels that a program saved as time or focus, by the user's word."""

import numpy as np
import pytest
import tifffile

from densebatch.base.errors import InputError
from densebatch.slides.slide import open_slide, reopen_slide
from tests.helpers.slide_formats import YXS, read_all
from tests.helpers.tiff_files import NAMES, PLANES, TILED, ome_image, ome_xml, write_pages


def imagej(path, axes, **metadata):
    tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": axes, **metadata})


def ome(path, axes, **options):
    tifffile.imwrite(path, PLANES, ome=True, metadata={"axes": axes}, **options)


def shaped(path, axes, **options):
    metadata = {"axes": axes}
    tifffile.imwrite(path, PLANES, photometric="minisblack", metadata=metadata, **options)


@pytest.mark.parametrize(
    ("write", "axis", "options"),
    [
        (imagej, "T", {}),
        (imagej, "Z", {}),
        (ome, "T", TILED),
        (ome, "Z", {"compression": "zlib"}),
        (shaped, "T", TILED),
        (shaped, "R", {}),
        (shaped, "H", {}),
    ],
)
def test_a_stack_is_refused_in_plain_words_and_taken_for_channels_when_told(
    tmp_path, write, axis, options
):
    path = tmp_path / "a.tif"
    write(path, f"{axis}YX", **options)
    remedy = f"choose one with --{axis.lower()} INDEX, from 0 to 2.*" if axis in "TZ" else ""
    with pytest.raises(
        InputError,
        match=rf"holds 3 images along {axis} \([a-z ]+\).*{remedy}if these are channels, say so "
        r"with --axes CYX",
    ):
        open_slide(path)
    slide = open_slide(path, axes="cyx")
    np.testing.assert_array_equal(read_all(slide), PLANES)
    assert not slide.info.notes
    np.testing.assert_array_equal(read_all(reopen_slide(slide.info)), PLANES)


def test_labels_of_an_imagej_stack_are_the_channels_names(tmp_path):
    imagej(tmp_path / "a.tif", "TYX", Labels=list(NAMES))
    assert open_slide(tmp_path / "a.tif", axes="CYX").info.channels == NAMES


def test_dimensions_of_length_one_may_be_left_out_or_not(tmp_path):
    metadata = {"axes": "TZCYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", PLANES[None, :, None], metadata=metadata)
    for axes in ("CYX", "TCZYX"):
        slide = open_slide(tmp_path / "a.ome.tif", axes=axes)
        np.testing.assert_array_equal(read_all(slide), PLANES)


@pytest.mark.parametrize("options", [{}, TILED, {"compression": "zlib"}])
def test_an_array_with_channels_last_that_was_cut_into_pages_of_rows(tmp_path, options):
    """numpy users save (rows, columns, channels) so; each page then is a row."""
    options = {**options, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", PLANES.transpose(1, 2, 0), **options)
    slide = open_slide(tmp_path / "a.tif")
    assert len(slide.info.channels) == 64
    assert "64 channels of 96 x 3 px; if the last are channels" in slide.info.notes[0]
    slide = open_slide(tmp_path / "a.tif", axes="YXC")
    np.testing.assert_array_equal(read_all(slide), PLANES)
    assert not slide.info.notes


def test_samples_of_a_colour_picture_as_channels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", YXS, photometric="rgb")
    slide = open_slide(tmp_path / "a.tif", axes="YXC")
    np.testing.assert_array_equal(read_all(slide), YXS.transpose(2, 0, 1))
    assert slide.info.channels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        ("TYX", "holds 3 images along T"),
        ("TCYX", r"--axes TCYX has 4 letters for .*3 dimensions \(TYX, 3 x 64 x 96\)"),
        ("YX", "--axes YX has 2 letters"),
        ("CY", "--axes 'CY' is not accepted for"),
        ("CYY", "--axes 'CYY' is not accepted for"),
        ("?YX", r"--axes '\?YX' is not accepted for"),
        ("", "--axes '' is not accepted for"),
        ("YXC", r"--axes YXC contradicts .*rows \(Y\) and columns \(X\) of its pages are where"),
        ("CXY", "--axes CXY contradicts"),
    ],
)
def test_axes_that_contradict_the_file(tmp_path, axes, match):
    imagej(tmp_path / "a.tif", "TYX")
    with pytest.raises(InputError, match=match) as error:
        open_slide(tmp_path / "a.tif", axes=axes)
    assert "\n" not in str(error.value)


def test_of_two_stacks_none_can_be_called_channels(tmp_path):
    pixels = np.stack([PLANES, PLANES])
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(
        InputError,
        match=r"2 images along T \(time\) of 3 channels each \(TCYX.*--t INDEX, from 0 to 1$",
    ):
        open_slide(tmp_path / "a.tif")


def test_axes_as_the_file_has_them_change_no_pixel(tmp_path):
    shaped(tmp_path / "a.tif", "CYX")
    plain, told = open_slide(tmp_path / "a.tif"), open_slide(tmp_path / "a.tif", axes="CYX")
    np.testing.assert_array_equal(read_all(told), read_all(plain))


def test_one_image_said_in_several_ways_is_one_selection(tmp_path):
    """So that a run goes on whichever way its slide is asked for again."""
    path = tmp_path / "a.ome.tif"
    xml = ome_xml(ome_image("A", ["CD3"]), ome_image("B", ["CD8"], ifd=1))
    write_pages(path, PLANES[0], PLANES[1], description=xml)
    found = {open_slide(path, scene).info for scene in ("B", "b", "1", "#1")}
    assert len(found) == 1
    (info,) = found
    assert (info.scene, info.channels) == ("#1", ("CD8",))
    np.testing.assert_array_equal(read_all(reopen_slide(info))[0], PLANES[1])
    whole = open_slide(path, None, "cyx").info
    assert (whole.scene, whole.axes) == (None, "CYX")
    np.testing.assert_array_equal(read_all(reopen_slide(whole)), PLANES[:2])


@pytest.mark.parametrize("write", [imagej, ome, shaped])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_a_plane_of_several_or_their_maximum_is_taken_when_told(tmp_path, write, options):
    if write is imagej and options:
        pytest.skip("ImageJ's files are not compressed")
    write(tmp_path / "a.tif", "ZYX", **options)
    for z, pixels in (("1", PLANES[1]), ("max", PLANES.max(0))):
        slide = open_slide(tmp_path / "a.tif", z=z)
        np.testing.assert_array_equal(read_all(slide), pixels[None])
        again = reopen_slide(slide.info)
        assert again.info == slide.info
        assert again.info.z == z
        np.testing.assert_array_equal(read_all(again), pixels[None])
    identities = {open_slide(tmp_path / "a.tif", z=z).info.identity for z in ("0", "1", "max")}
    assert len(identities) == 3
    for wrong in ({"z": "3"}, {"z": "first"}, {"z": "1", "t": "1"}, {"z": "1", "t": "max"}):
        with pytest.raises(InputError, match=r"is not accepted, but an index (of|from) 0"):
            open_slide(tmp_path / "a.tif", **wrong)


def test_a_plane_of_one_needs_no_word_and_changes_nothing(tmp_path):
    shaped(tmp_path / "a.tif", "CYX")
    assert (
        open_slide(tmp_path / "a.tif", z="max", t="0").info == open_slide(tmp_path / "a.tif").info
    )
