"""Of several images of a TIFF none is taken silently; pictures beside a slide are left out."""

import numpy as np
import pytest
import tifffile

from densebatch.base.errors import InputError
from densebatch.slides.slide import open_slide, reopen_slide
from tests.helpers.slide_formats import read_all
from tests.helpers.tiff_files import (
    COLOURS,
    NAMES,
    PLAIN,
    PLANES,
    SMALL,
    TILED,
    ndpi_tags,
    ome_image,
    ome_xml,
    scn_image,
    write_pages,
    write_qptiff,
    write_scn,
)


def write_loop(path, **options):
    with tifffile.TiffWriter(path) as writer:
        for plane in PLANES:
            writer.write(plane, photometric="minisblack", **options)
    return path


def write_cores(path):
    xml = ome_xml(ome_image("core A", ["CD3"]), ome_image("core B", ["CD3"], ifd=1))
    return write_pages(path, *PLANES[:2], description=xml)


class TestSeveral:
    @pytest.mark.parametrize("options", [{}, TILED, {"compression": "zlib"}])
    def test_pages_written_one_by_one(self, tmp_path, options):
        path = write_loop(tmp_path / "a.tif", **options)
        with pytest.raises(
            InputError,
            match=r"holds 3 images and none was chosen; choose one with --scene.*1: without a "
            r"name, 1 plane of 64 x 96 px, uint16.*channels of one image, say so with --axes CYX",
        ):
            open_slide(path)
        np.testing.assert_array_equal(read_all(open_slide(path, "1")), PLANES[1:2])
        slide = open_slide(path, axes="CYX")
        np.testing.assert_array_equal(read_all(slide), PLANES)
        assert reopen_slide(slide.info).info == slide.info

    def test_appended(self, tmp_path):
        for plane in PLANES:
            tifffile.imwrite(tmp_path / "a.tif", plane, append=True)
        with pytest.raises(InputError, match="holds 3 images"):
            open_slide(tmp_path / "a.tif")

    def test_images_of_ome_tiff_as_channels(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
            for name, plane in zip(NAMES, PLANES, strict=True):
                um = {"PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}
                writer.write(plane, metadata={"axes": "YX", "Name": name, **um}, **TILED)
        with pytest.raises(InputError, match=r"0: 'CD3'.*2: 'DAPI'"):
            open_slide(tmp_path / "a.ome.tif")
        slide = open_slide(tmp_path / "a.ome.tif", axes="CYX")
        assert (slide.info.channels, slide.info.um_per_px) == (NAMES, 0.3)
        np.testing.assert_array_equal(read_all(slide), PLANES)

    def test_cores_by_name_and_index(self, tmp_path):
        path = write_cores(tmp_path / "a.ome.tif")
        with pytest.raises(InputError, match=r"\(0: 'core A', .*; 1: 'core B', 1 plane"):
            open_slide(path)
        for scene in ("core B", "CORE b", "1", "#1"):
            np.testing.assert_array_equal(read_all(open_slide(path, scene))[0], PLANES[1])
        for scene in ("core C", "2", "#2"):
            with pytest.raises(InputError, match=f"holds no image '{scene}'; accepted"):
                open_slide(path, scene)

    def test_cores_that_are_alike_have_identities_of_their_own(self, tmp_path):
        path = write_cores(tmp_path / "a.ome.tif")
        first, second = (open_slide(path, scene).info for scene in ("core A", "1"))
        assert first.channels == second.channels == ("CD3",)
        assert first.identity != second.identity
        assert second.identity == open_slide(path, "core B").info.identity
        np.testing.assert_array_equal(read_all(reopen_slide(second))[0], PLANES[1])

    def test_pages_of_unlike_sizes(self, tmp_path):
        path = write_pages(tmp_path / "a.tif", PLANES[0, :40, :50].copy(), PLANES[0])
        with pytest.raises(InputError, match="holds 2 images") as error:
            open_slide(path)
        assert "--axes" not in str(error.value)
        with pytest.raises(InputError, match="differ in size, type or compression"):
            open_slide(path, axes="CYX")

    def test_names_of_pages(self, tmp_path):
        pages = [
            (plane, {"extratags": [(285, "s", 0, name, True)]})
            for plane, name in ((PLANES[0, :40].copy(), "left"), (PLANES[1], "right"))
        ]
        path = write_pages(tmp_path / "a.tif", *pages)
        np.testing.assert_array_equal(read_all(open_slide(path, "right"))[0], PLANES[1])

    def test_regions_of_a_leica_collection(self, tmp_path):
        images = [scn_image("region 1", [0]), scn_image("region 2", [1])]
        path = write_scn(tmp_path / "a.scn", images, *PLANES[:2])
        with pytest.raises(InputError, match=r"0: 'region 1'.*1: 'region 2'"):
            open_slide(path)
        np.testing.assert_array_equal(read_all(open_slide(path, "region 2"))[0], PLANES[1])

    def test_a_smaller_field_beside_a_larger_one_is_no_copy_of_it(self, tmp_path):
        small = PLANES[0, ::2, ::2].copy()
        xml = ome_xml(ome_image("a", ["CD3"], size=small.shape), ome_image("b", ["CD3"], ifd=1))
        path = write_pages(tmp_path / "a.ome.tif", small, PLANES[0], description=xml)
        with pytest.raises(InputError, match="holds 2 images"):
            open_slide(path)

    def test_an_image_that_contradicts_the_pages_is_not_passed_over(self, tmp_path):
        xml = ome_xml(
            ome_image("slide", ["CD3"], size=(60, 96)), ome_image("b", ["x"], ifd=1, size=(16, 24))
        )
        path = write_pages(tmp_path / "a.ome.tif", PLANES[0], SMALL, description=xml)
        with pytest.raises(InputError, match="0: 'slide', whose metadata contradict the pages"):
            open_slide(path)
        with pytest.raises(InputError, match="image 'slide' in a way that contradicts"):
            open_slide(path, "slide")
        np.testing.assert_array_equal(read_all(open_slide(path, "b"))[0], SMALL)

    def test_the_only_image_needs_no_choice_and_takes_no_other(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", PLANES[0])
        np.testing.assert_array_equal(read_all(open_slide(tmp_path / "a.tif", "0"))[0], PLANES[0])
        with pytest.raises(InputError, match="holds no image 'core B'"):
            open_slide(tmp_path / "a.tif", "core B")


def overview_first(path):
    xml = ome_xml(ome_image("im0", ["macro"], size=SMALL.shape), ome_image("im1", NAMES, ifd=1))
    return write_pages(path, SMALL, *PLANES, description=xml)


def named_label(path):
    xml = ome_xml(ome_image("Label image", ["x"], size=(30, 20)), ome_image("slide", NAMES, ifd=1))
    return write_pages(path, PLANES[0, :30, :20].copy(), *PLANES, description=xml)


def same_extent(path):
    xml = ome_xml(
        ome_image("q1", NAMES[:1], size=SMALL.shape, um=2.0), ome_image("q0", NAMES, ifd=1)
    )
    return write_pages(path, SMALL, *PLANES, description=xml)


def thumbnail_in_sub_directory_order(path):
    options = {"subfiletype": 1}
    return write_pages(path, (SMALL, options), *((plane, TILED) for plane in PLANES))


def shaped_thumbnail(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMALL, subfiletype=1)
        writer.write(PLANES, photometric="minisblack")
    return path


def colour_copy(path):
    return write_pages(path, COLOURS[::4, ::4].copy(), *PLANES)


def described(path):
    options = {"description": "Thumbnail"}
    return write_pages(path, (PLANES[0, :20, :50].copy(), options), *PLANES)


def leica(path):
    images = [
        scn_image("image_1", [0], size=SMALL.shape, view=(900000, 600000)),
        scn_image("image_2", [1, 2, 3]),
    ]
    return write_scn(path.with_suffix(".scn"), images, SMALL, *PLANES)


def akoya(path):
    thumbnail = (COLOURS[:20, :30].copy(), "Thumbnail", "", "")
    label = (COLOURS[:10, :30].copy(), "Label", "", "")
    full = [(plane, "FullResolution", "", name) for plane, name in zip(PLANES, NAMES, strict=True)]
    return write_qptiff(path, thumbnail, *full, label)


@pytest.mark.parametrize(
    ("write", "left_out"),
    [
        (overview_first, "'im0', 16 x 24 px (macro)"),
        (named_label, "'Label image', 30 x 20 px (label)"),
        (same_extent, "'q1', 16 x 24 px (smaller copy)"),
        (thumbnail_in_sub_directory_order, "16 x 24 px (reduced image)"),
        (shaped_thumbnail, "16 x 24 px (reduced image)"),
        (colour_copy, "16 x 24 px (smaller colour copy)"),
        (described, "'Thumbnail', 20 x 50 px (thumbnail)"),
        (leica, "'image_1', 16 x 24 px (macro)"),
        (akoya, "'Thumbnail', 20 x 30 px (thumbnail); 'Label', 10 x 30 px (label)"),
    ],
)
def test_a_picture_beside_the_slide_is_left_out_and_told(tmp_path, write, left_out):
    slide = open_slide(write(tmp_path / "a.tif"))
    np.testing.assert_array_equal(read_all(slide), PLANES)
    (note,) = slide.info.notes
    assert note.endswith(left_out)


def test_a_picture_beside_the_slide_opens_by_its_exact_name(tmp_path):
    path = named_label(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_all(open_slide(path, "Label image"))[0], PLANES[0, :30, :20])
    with pytest.raises(InputError, match="holds no image 'label image'"):
        open_slide(path, "label image")


def test_an_only_image_is_the_slide_whatever_it_is_called(tmp_path):
    xml = ome_xml(ome_image("macro", NAMES))
    path = write_pages(tmp_path / "a.ome.tif", *PLANES, description=xml, subfiletype=1)
    slide = open_slide(path)
    np.testing.assert_array_equal(read_all(slide), PLANES)
    assert slide.info.notes == ()


def test_aperio(tmp_path):
    def page(pixels, told, **options):
        return pixels, {"description": f"Aperio {told}", **options}

    path = write_pages(
        tmp_path / "a.svs",
        page(COLOURS, "v12|MPP = 0.4990", tile=(32, 32)),
        page(COLOURS[::4, ::4].copy(), "thumbnail"),
        page(COLOURS[::2, ::2].copy(), "level", tile=(32, 32)),
        page(COLOURS[:20, :30].copy(), "label", subfiletype=1),
        page(COLOURS[:10, :30].copy(), "macro", subfiletype=9),
    )
    slide = open_slide(path)
    np.testing.assert_array_equal(read_all(slide), COLOURS.transpose(2, 0, 1))
    assert (slide.info.n_levels, slide.info.um_per_px) == (2, 0.499)
    assert "'Thumbnail', 16 x 24 px (thumbnail); 'Label'" in slide.info.notes[0]
    assert read_all(open_slide(path, "Label")).shape == (3, 20, 30)


def test_hamamatsu(tmp_path):
    path = write_pages(
        tmp_path / "a.tif",
        (COLOURS[:30, :40].copy(), {"extratags": ndpi_tags(-1)}),
        (COLOURS, {"extratags": ndpi_tags(20)}),
        (COLOURS[::2, ::2].copy(), {"extratags": ndpi_tags(10)}),
        (COLOURS[:20, :40, 0].copy(), {"extratags": ndpi_tags(-2)}),
    )
    slide = open_slide(path)
    np.testing.assert_array_equal(read_all(slide), COLOURS.transpose(2, 0, 1))
    assert "'Macro', 30 x 40 px (macro)" in slide.info.notes[0]
    assert "'Map', 20 x 40 px (map)" in slide.info.notes[0]


class TestLevels:
    @pytest.mark.parametrize("steps", [(4, 2, 1), (2, 1, 4), (1, 2, 4)])
    def test_the_highest_resolution_is_the_largest(self, tmp_path, steps):
        pages = [PLANES[0, ::step, ::step].copy() for step in steps]
        slide = open_slide(write_pages(tmp_path / "a.tif", *pages))
        np.testing.assert_array_equal(read_all(slide)[0], PLANES[0])
        assert slide.info.n_levels == 3
        assert slide.info.notes

    @pytest.mark.parametrize("steps", [(1, 2, 4), (4, 2, 1), (1, 3, 5)])
    def test_levels_that_are_marked_need_no_word(self, tmp_path, steps):
        pages = [
            (PLANES[0, ::step, ::step].copy(), {"subfiletype": int(step > 1)}) for step in steps
        ]
        info = open_slide(write_pages(tmp_path / "a.tif", *pages)).info
        assert (info.height, info.n_levels, info.notes) == (64, 3, ())

    def test_in_sub_directories(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(PLANES[0], subifds=2, **PLAIN)
            writer.write(PLANES[0, ::2, ::2], subfiletype=1, **PLAIN)
            writer.write(PLANES[0, ::5, ::5], subfiletype=1, **PLAIN)
        info = open_slide(tmp_path / "a.tif").info
        assert (info.height, info.n_levels, info.notes) == (64, 3, ())

    def test_a_small_image_with_the_slide_in_its_sub_directory(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(SMALL, subifds=1, subfiletype=1, **PLAIN)
            writer.write(PLANES[0], **PLAIN)
        np.testing.assert_array_equal(read_all(open_slide(tmp_path / "a.tif"))[0], PLANES[0])


@pytest.mark.parametrize("order", ["small last", "small first"])
def test_pages_that_follow_those_of_tifffile(tmp_path, order):
    """tifffile describes its own pages and gives up where others follow them."""
    path = tmp_path / "a.tif"
    large, small = PLANES[0], PLANES[1, ::5, ::3]
    first, second = (large, small) if order == "small last" else (small, large)
    with tifffile.TiffWriter(path) as writer:
        writer.write(first)
        writer.write(second, metadata=None)
    with pytest.raises(InputError, match="holds 2 images and none was chosen"):
        open_slide(path)
    index = str(int(order == "small first"))
    np.testing.assert_array_equal(read_all(open_slide(path, index))[0], large)
