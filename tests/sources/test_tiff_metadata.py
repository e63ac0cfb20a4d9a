"""Channel names and pixel sizes of TIFF files."""

import numpy as np
import pytest
import tifffile

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from tests.helpers.slide_formats import CYX, GREY, read_all
from tests.helpers.tiff_files import (
    COLOURS,
    NAMES,
    PLANES,
    SMALL,
    TILED,
    ome_image,
    ome_xml,
    scn_image,
    write_mmstack,
    write_pages,
    write_qptiff,
    write_scn,
)


class TestInfo:
    def test_ome_tiff(self, tmp_path):
        path = tmp_path / "slide.ome.tif"
        options = {"tile": (32, 48), "compression": "zlib", "photometric": "minisblack"}
        with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
            writer.write(
                CYX,
                subifds=1,
                metadata={
                    "axes": "CYX",
                    "Channel": {"Name": ["CD3", "CD8", "DAPI"]},
                    "PhysicalSizeX": 325.0,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.325,
                    "PhysicalSizeYUnit": "µm",
                },
                **options,
            )
            writer.write(CYX[:, ::2, ::2], subfiletype=1, **options)
        info = open_slide(path).info
        assert info.kind == "tiff"
        assert info.channels == ("CD3", "CD8", "DAPI")
        assert info.um_per_px == pytest.approx(0.325)
        assert info.chunk_px == (32, 48)
        assert (info.n_levels, info.ngff) == (2, None)
        np.testing.assert_array_equal(read_all(open_slide(path)), CYX)

    @pytest.mark.parametrize(
        ("options", "um_per_px"),
        [
            ({}, None),
            ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
            ({"resolution": (25400, 25400), "resolutionunit": "INCH"}, 1.0),
            ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
            ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None),
            ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, None),
            ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "micron"}}, 0.5),
            ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "\\u00B5m"}}, 0.5),
            ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "pixel"}}, None),
        ],
    )
    def test_tiff_resolution(self, tmp_path, options, um_per_px):
        tifffile.imwrite(tmp_path / "a.tif", GREY, **options)
        assert open_slide(tmp_path / "a.tif").info.um_per_px == um_per_px

    @pytest.mark.parametrize(
        ("x", "y", "unit", "um_per_px"),
        [
            (0.5, 0.5, "µm", 0.5),
            (0.5, 0.7, "µm", None),
            (0.5, 0.5, "pixel", None),
            (0, 0, "m", None),
        ],
    )
    def test_ome_physical_size(self, tmp_path, x, y, unit, um_per_px):
        metadata = {
            "axes": "YX",
            **{"PhysicalSizeX": x, "PhysicalSizeY": y},
            **{"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit},
        }
        tifffile.imwrite(tmp_path / "a.ome.tif", GREY, metadata=metadata)
        assert open_slide(tmp_path / "a.ome.tif").info.um_per_px == um_per_px

    def test_imagej_labels(self, tmp_path):
        metadata = {"axes": "CYX", "Labels": ["CD3", "CD8", "DAPI"]}
        tifffile.imwrite(tmp_path / "a.tif", CYX, imagej=True, metadata=metadata)
        assert open_slide(tmp_path / "a.tif").info.channels == ("CD3", "CD8", "DAPI")


class TestOmeImages:
    """Names and micrometres belong to the image that they were written for."""

    @pytest.mark.parametrize(
        "other",
        [
            '<Image ID="Image:9" Name="label"/>',
            '<Image ID="Image:9"><Pixels SizeX="96" SizeY="64" PhysicalSizeX="9"><MetadataOnly/>'
            '<Channel Name="wrong"/></Pixels></Image>',
            ome_image("wrong", NAMES, um=9, planes="<MetadataOnly/>"),
            ome_image("far", ["x", "y", "z"], um=9, ifd=100),
        ],
    )
    def test_an_image_without_pixels(self, tmp_path, other):
        xml = ome_xml(other, ome_image("slide", NAMES, um=0.4))
        path = write_pages(tmp_path / "a.ome.tif", *PLANES, description=xml)
        info = open_slide(path, "slide").info
        assert (info.channels, info.um_per_px) == (NAMES, 0.4)

    @pytest.mark.parametrize("names", [("a", "b"), ("a", "a"), ("", "")])
    @pytest.mark.parametrize("ifds", [(0, 1), (1, 0)])
    def test_images_of_one_size(self, tmp_path, names, ifds):
        xml = ome_xml(
            *(
                ome_image(name, [marker], um=um, ifd=ifd)
                for name, marker, um, ifd in zip(names, NAMES, (0.3, 0.7), ifds, strict=False)
            )
        )
        path = write_pages(tmp_path / "a.ome.tif", *PLANES[:2], description=xml)
        for scene, (marker, um) in enumerate(zip(NAMES, (0.3, 0.7), strict=False)):
            slide = open_slide(path, f"#{scene}")
            np.testing.assert_array_equal(read_all(slide)[0], PLANES[ifds[scene]])
            assert (slide.info.channels, slide.info.um_per_px) == ((marker,), um)

    def test_images_of_the_same_page_keep_their_order(self, tmp_path):
        xml = ome_xml(ome_image("a", ["CD3"], um=0.3), ome_image("b", ["CD8"], um=0.7))
        path = write_pages(tmp_path / "a.ome.tif", PLANES[0], description=xml)
        assert open_slide(path, "b").info.channels == ("CD8",)
        assert open_slide(path, "a").info.um_per_px == 0.3

    def test_an_image_that_takes_all_pages_hides_no_other(self, tmp_path):
        xml = ome_xml(
            ome_image("all", NAMES[:2], planes="<TiffData/>"), ome_image("one", ["DAPI"], ifd=1)
        )
        path = write_pages(tmp_path / "a.ome.tif", *PLANES[:2], description=xml)
        assert open_slide(path, "all").info.channels == NAMES[:2]
        slide = open_slide(path, "one")
        assert slide.info.channels == ("DAPI",)
        np.testing.assert_array_equal(read_all(slide)[0], PLANES[1])

    def test_what_cannot_be_told_is_unknown_and_told(self, tmp_path):
        xml = ome_xml(ome_image("a", ["CD3"], um=0.3, ifd=-1))
        path = write_pages(tmp_path / "a.ome.tif", PLANES[0], description=xml)
        info = open_slide(path).info
        assert (info.channels, info.um_per_px) == (("0",), None)
        assert "which image of its OME-XML this is cannot be told" in info.notes[0]

    def test_pages_that_no_image_describes_are_told(self, tmp_path):
        xml = ome_xml(ome_image("a", NAMES[:1]))
        path = write_pages(tmp_path / "a.ome.tif", *PLANES, description=xml)
        slide = open_slide(path)
        np.testing.assert_array_equal(read_all(slide), PLANES[:1])
        assert "describes all but 2 of the 3 pages" in slide.info.notes[0]

    @pytest.mark.parametrize("um", ["", "abc", "-1", "0", "nan", "inf", "1e999"])
    def test_an_odd_pixel_size_is_unknown(self, tmp_path, um):
        xml = ome_xml(ome_image("a", NAMES, um=um))
        info = open_slide(write_pages(tmp_path / "a.ome.tif", *PLANES, description=xml)).info
        assert (info.channels, info.um_per_px) == (NAMES, None)


class TestAkoya:
    def pages(self, markers, names=("Opal 520", "Opal 690", "DAPI")):
        return [
            (plane, "FullResolution", name, marker)
            for plane, name, marker in zip(PLANES, names, markers, strict=True)
        ]

    def test_markers(self, tmp_path):
        levels = [(p[::2, ::2].copy(), "ReducedResolution", "", "") for p in PLANES]
        thumbnail = (COLOURS[:20, :30].copy(), "Thumbnail", "", "")
        label = (COLOURS[:10, :20].copy(), "Label", "", "")
        pages = [*self.pages(NAMES), thumbnail, *levels, label]
        slide = open_slide(write_qptiff(tmp_path / "a.qptiff", *pages))
        np.testing.assert_array_equal(read_all(slide), PLANES)
        info = slide.info
        assert (info.channels, info.um_per_px, info.n_levels) == (NAMES, 0.5, 2)

    def test_filters_where_there_is_no_marker(self, tmp_path):
        path = write_qptiff(tmp_path / "a.qptiff", *self.pages(["CD3", "", " "]))
        assert open_slide(path).info.channels == ("CD3", "Opal 690", "DAPI")

    def test_no_name(self, tmp_path):
        path = write_qptiff(tmp_path / "a.qptiff", *self.pages([""] * 3, [""] * 3))
        assert open_slide(path).info.channels == ("0", "1", "2")

    def test_descriptions_that_are_no_xml(self, tmp_path):
        options = {"software": "PerkinElmer-QPI", "description": "<PerkinElmer <junk"}
        path = write_pages(tmp_path / "a.qptiff", *PLANES, **options)
        slide = open_slide(path)
        assert slide.info.channels == ("0", "1", "2")
        np.testing.assert_array_equal(read_all(slide), PLANES)


SUMMARY = {"ChNames": list(NAMES), "PixelSize_um": 0.325}


class TestMicroManager:
    def test_summary(self, tmp_path):
        path = write_mmstack(tmp_path / "x_MMStack.ome.tif", PLANES, **SUMMARY)
        slide = open_slide(path)
        np.testing.assert_array_equal(read_all(slide), PLANES)
        assert (slide.info.channels, slide.info.um_per_px) == (NAMES, 0.325)

    def test_ome_xml(self, tmp_path):
        xml = ome_xml(ome_image("Pos0", NAMES, um=0.325))
        info = open_slide(write_mmstack(tmp_path / "x_MMStack.ome.tif", PLANES, xml=xml)).info
        assert (info.channels, info.um_per_px) == (NAMES, 0.325)

    def test_ome_xml_of_positions_that_differ(self, tmp_path):
        xml = ome_xml(ome_image("Pos0", "abc", um=1), ome_image("Pos1", "def", um=2))
        path = write_mmstack(tmp_path / "x_MMStack.ome.tif", PLANES, xml=xml, **SUMMARY)
        info = open_slide(path).info
        assert (info.channels, info.um_per_px) == (NAMES, 0.325)

    @pytest.mark.parametrize(
        "summary",
        [{}, {"ChNames": "CD3", "PixelSize_um": "wide"}, {"ChNames": ["CD3"], "PixelSize_um": 0}],
    )
    def test_an_odd_summary(self, tmp_path, summary):
        info = open_slide(write_mmstack(tmp_path / "x.tif", PLANES, **summary)).info
        assert (info.channels, info.um_per_px) == (("0", "1", "2"), None)

    def test_channels_in_files_that_are_missing(self, tmp_path):
        path = write_mmstack(tmp_path / "x_MMStack.ome.tif", PLANES, Channels=5)
        with pytest.raises(InputError, match="holds 3 of the 5 channels that its summary lists"):
            open_slide(path)

    def test_each_position_has_a_file(self, tmp_path):
        paths = [
            write_mmstack(
                tmp_path / f"x_MMStack_Pos{k}.ome.tif",
                PLANES if k == 0 else PLANES[::-1],
                position=k,
                Positions=2,
                **SUMMARY,
            )
            for k in range(2)
        ]
        for k, path in enumerate(paths):
            slide = open_slide(path)
            np.testing.assert_array_equal(read_all(slide), PLANES if k == 0 else PLANES[::-1])
            assert (slide.info.channels, slide.info.um_per_px) == (NAMES, 0.325)
            assert f"'Pos{1 - k}', 64 x 96 px (in other files)" in slide.info.notes[0]
        slide = open_slide(paths[0], "Pos1")
        np.testing.assert_array_equal(read_all(slide), PLANES[::-1])
        paths[1].unlink()
        paths[0].touch()
        np.testing.assert_array_equal(read_all(open_slide(paths[0])), PLANES)


class TestLeica:
    def test_names_and_view(self, tmp_path):
        image = scn_image("image_1", [0, 1, 2], channels=NAMES)
        info = open_slide(write_scn(tmp_path / "a.scn", [image], *PLANES)).info
        assert (info.channels, info.um_per_px) == (NAMES, 0.25)

    def test_each_image_has_its_own(self, tmp_path):
        images = [
            scn_image("a", [0], channels=["CD3"]),
            scn_image("b", [1], channels=["CD8"], view=(96 * 500, 64 * 500)),
        ]
        path = write_scn(tmp_path / "a.scn", images, *PLANES[:2])
        for scene, marker, um in (("a", "CD3", 0.25), ("b", "CD8", 0.5)):
            info = open_slide(path, scene).info
            assert (info.channels, info.um_per_px) == ((marker,), um)

    @pytest.mark.parametrize("view", [("wide", "high"), (0, 0), (-1, -1)])
    def test_an_odd_view(self, tmp_path, view):
        image = scn_image("a", [0], view=view)
        assert open_slide(write_scn(tmp_path / "a.scn", [image], SMALL)).info.um_per_px is None


@pytest.mark.parametrize(
    ("told", "um_per_px"),
    [
        ("v12|AppMag = 20|MPP = 0.4990", 0.499),
        ("v12|MPP=0.25", 0.25),
        ("v12|MPP = 0,4990|x = 1", 0.499),
        ("v12|MPP = abc", None),
        ("v12|MPP = -1", None),
        ("v12", None),
    ],
)
def test_aperio(tmp_path, told, um_per_px):
    path = tmp_path / "a.svs"
    write_pages(path, COLOURS, description=f"Aperio {told}", tile=(32, 32))
    assert open_slide(path).info.um_per_px == um_per_px


def test_roche(tmp_path):
    xmp = b'<?xml version="1.0"?><iScan Magnification="20" ScanRes="0.465"/>'
    label = {
        "description": "Label Image",
        "software": "ScanOutputManager 1.1",
        "extratags": [(700, "B", len(xmp), xmp, True)],
    }
    path = write_pages(
        tmp_path / "a.bif",
        (COLOURS[:20, :30].copy(), label),
        (COLOURS, {"description": "level=0 mag=20 quality=95", "tile": (32, 32)}),
        (COLOURS[::2, ::2].copy(), {"description": "level=1 mag=10", "tile": (32, 32)}),
    )
    slide = open_slide(path)
    np.testing.assert_array_equal(read_all(slide), COLOURS.transpose(2, 0, 1))
    assert (slide.info.um_per_px, slide.info.n_levels) == (0.465, 2)
    assert "'Label', 20 x 30 px (label)" in slide.info.notes[0]
    assert "without being stitched" in slide.info.notes[1]


def test_philips(tmp_path):
    levels = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">'
        f'"{mm}" "{mm}"</Attribute></DataObject>'
        for mm in (0.00025, 0.0005)
    )
    xml = f'<DataObject ObjectType="DPUfsImport"><Array>{levels}</Array></DataObject>'
    path = write_pages(
        tmp_path / "a.tiff",
        (COLOURS, {"description": xml, "software": "Philips DP v1.0", "tile": (32, 32)}),
        (COLOURS[::2, ::2].copy(), {"tile": (32, 32), "subfiletype": 1}),
        (COLOURS[:20, :30].copy(), {"description": "Macro"}),
    )
    slide = open_slide(path)
    np.testing.assert_array_equal(read_all(slide), COLOURS.transpose(2, 0, 1))
    assert slide.info.um_per_px == pytest.approx(0.25)
    assert "'Macro', 20 x 30 px (macro)" in slide.info.notes[0]


class TestPageNames:
    @pytest.mark.parametrize("n", [3, 12])
    def test_each_page_has_its_own(self, tmp_path, n):
        names = tuple(f"marker {k}" for k in range(n))
        pages = [(SMALL, {"extratags": [(285, "s", 0, name, True)]}) for name in names]
        assert open_slide(write_pages(tmp_path / "a.tif", *pages)).info.channels == names

    def test_one_name_on_all_pages_names_no_channel(self, tmp_path):
        options = {"extratags": [(285, "s", 0, "slide", False)]}
        path = write_pages(tmp_path / "a.tif", *((plane, options) for plane in PLANES))
        assert open_slide(path).info.channels == ("0", "1", "2")

    def test_a_name_is_missing(self, tmp_path):
        named = {"extratags": [(285, "s", 0, "CD3", True)]}
        path = write_pages(tmp_path / "a.tif", (PLANES[0], named), PLANES[1], PLANES[2])
        assert open_slide(path).info.channels == ("CD3", "1", "2")


def test_what_tifffile_was_given_for_a_plain_tiff(tmp_path):
    metadata = {"axes": "CYX", "Channel": {"Name": list(NAMES)}, "PhysicalSizeX": 0.5}
    tifffile.imwrite(
        tmp_path / "a.tif", PLANES, photometric="minisblack", metadata=metadata, **TILED
    )
    info = open_slide(tmp_path / "a.tif").info
    assert (info.channels, info.um_per_px) == (NAMES, 0.5)


def test_indica(tmp_path):
    channels = "".join(f'<channel id="{i}" name="{n}"/>' for i, n in enumerate(NAMES))
    xml = f"<indica><image><channels>{channels}</channels></image></indica>"
    options = {"software": "IndicaLabsImageWriter v1.2", "description": xml}
    path = write_pages(tmp_path / "a.tif", *PLANES, **options)
    assert open_slide(path).info.channels == NAMES


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {"description": "<indica><channel>", "software": "IndicaLabsImageWriter"}),
        ("a.svs", {"description": "Aperio |||=|MPP", "tile": (32, 32)}),
        ("a.tif", {"extratags": [(51123, "s", 0, "{junk", True)]}),
        ("a.tif", {"description": '{"shape": [64, 96], "Channel": 3, "PhysicalSizeX": []}'}),
        ("a.tif", {"description": "ImageJ=1.52\nimages=x\nunit="}),
        ("a.tif", {"description": "<!DOCTYPE a><indica><channel name='x'/></indica>"}),
    ],
)
def test_junk_hides_no_pixel(tmp_path, name, options):
    path = write_pages(tmp_path / name, (PLANES[0], options))
    try:
        slide = open_slide(path)
    except InputError as exc:
        assert "\n" not in str(exc)  # noqa: PT017
    else:
        np.testing.assert_array_equal(read_all(slide)[0], PLANES[0])
        assert (slide.info.channels, slide.info.um_per_px) == (("0",), None)


class TestWhatIsTold:
    def notes(self, tmp_path, **metadata):
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(
            path, PLANES, metadata={"axes": "CYX", **metadata}, photometric="minisblack"
        )
        return open_slide(path).info

    def test_an_ordinary_file_gives_no_note(self, tmp_path):
        size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        info = self.notes(tmp_path, Channel={"Name": list(NAMES)}, **size)
        assert (info.notes, info.channels, info.um_per_px) == ((), NAMES, 0.5)

    def test_oblong_pixels(self, tmp_path):
        info = self.notes(tmp_path, PhysicalSizeX=0.5, PhysicalSizeY=0.6)
        assert info.um_per_px is None
        assert info.notes == (
            "the metadata give pixels of 0.6 x 0.5 um, which are not square: the pixel size counts "
            "as unknown, unless --pixel-size gives it",
        )

    def test_oblong_pixels_in_tags(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path, PLANES[0], resolution=(20000, 10000), resolutionunit=3, metadata=None
        )
        info = open_slide(path).info
        assert info.um_per_px is None
        assert "which are not square" in info.notes[0]

    @pytest.mark.parametrize("per_cm", [20000, 20001, 40000, 28])
    def test_tags_that_contradict_the_ome_xml_are_named(self, tmp_path, per_cm):
        """Not those that are rounded, nor those of a screen."""
        told = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(path, PLANES, metadata=told, resolution=(per_cm,) * 2, resolutionunit=3)
        info = open_slide(path).info
        assert info.um_per_px == 0.5
        assert info.notes == (
            (
                "PhysicalSizeX of the OME-XML gives 0.5 um/px and the resolution tags of the TIFF "
                "give 0.25 um/px: the first is taken, unless --pixel-size gives another",
            )
            if per_cm == 40000
            else ()
        )

    def test_the_resolution_of_a_printer_is_no_note(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, PLANES[0], resolution=(72, 300), resolutionunit=2, metadata=None)
        assert (open_slide(path).info.um_per_px, open_slide(path).info.notes) == (None, ())

    def test_a_width_alone(self, tmp_path):
        info = self.notes(tmp_path, PhysicalSizeX=0.5)
        assert info.um_per_px == 0.5
        assert info.notes == (
            "the metadata give the width of a pixel, which is taken for its height too",
        )

    def test_names_of_another_number(self, tmp_path):
        path = tmp_path / "a.tif"
        labels = ["CD3", "CD8"]
        tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "CYX", "Labels": labels})
        info = open_slide(path).info
        assert info.channels == ("0", "1", "2")
        assert info.notes == (
            "the metadata have names for 2 channels and there are 3, so the names do not count and "
            "channels are numbered from 0",
        )

    def test_zero_is_white(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, PLANES[0], photometric="miniswhite", metadata=None)
        assert "the file says that 0 is white" in open_slide(path).info.notes[0]
        assert np.array_equal(open_slide(path).read(0, Region(0, 0, 64, 96)), PLANES[0])
