"""Where a slide lies by its metadata, in um along y and x."""

import pytest
import tifffile

from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import write_zarr
from tests.helpers.tiff_files import PLANES, ome_image, ome_xml, scn_image, write_pages, write_scn

UM = "µm"


def read_origin(path):
    info = open_slide(path).info
    return info.origin_um, info.origin_from


@pytest.mark.parametrize(
    ("own", "whole", "unit", "expected"),
    [
        ([0.0, 30.0, -4.5], None, "micrometer", (30.0, -4.5)),
        ([0.0, 0.03, 0.0], None, "millimeter", (30.0, 0.0)),
        # Those of the whole image come after those of a level, and scale what these have moved.
        ([0.0, 3.0, 1.0], [("scale", 2.0), ("translation", 5.0)], "micrometer", (11.0, 7.0)),
        (None, [("translation", 5.0)], "micrometer", (5.0, 5.0)),
        ([0.0, 0.0, 0.0], None, "micrometer", None),
        ([0.0, 30.0, 4.0], None, None, None),
        ([0.0, "30 um", 4.0], None, "micrometer", None),
    ],
)
def test_translations_of_omezarr(tmp_path, own, whole, unit, expected):
    def place(attributes):
        [image] = attributes["multiscales"]
        if own is not None:
            steps = image["datasets"][0]["coordinateTransformations"]
            steps.append({"type": "translation", "translation": own})
        if whole is not None:
            image["coordinateTransformations"] = [
                {"type": kind, kind: [0.0 if kind == "translation" else 1.0, value, value]}
                for kind, value in whole
            ]

    path = write_zarr(tmp_path / "a.ome.zarr", PLANES, scale=0.001, unit=unit, document=place)
    told = None if expected is None else "translation of the OME-Zarr metadata"
    assert read_origin(path) == (expected, told)


def write_ome(path, inner="", label=""):
    xml = ome_xml(ome_image("a", ["CD3", "CD8", "DAPI"]))
    xml = xml.replace("<Pixels", f"{label}<Pixels").replace("</Pixels>", f"{inner}</Pixels>")
    return write_pages(path, *PLANES, description=xml.encode())


def plane(channel, y, x, unit=UM):
    units = f'PositionXUnit="{unit}" PositionYUnit="{unit}" ' if unit else ""
    return f'<Plane TheC="{channel}" TheZ="0" PositionX="{x}" PositionY="{y}" {units}/>'


@pytest.mark.parametrize(
    ("inner", "label", "expected", "told"),
    [
        (plane(0, 1200, -340.5), "", (1200.0, -340.5), "PositionX of the OME-XML"),
        (plane(0, 1.2, 0.5, "mm"), "", (1200.0, 500.0), "PositionX of the OME-XML"),
        (plane(0, 0, 0), "", None, None),
        # Without a unit it is in a frame of the microscope's own.
        (plane(0, 1200, 340, None), "", None, None),
        (plane(0, 1200, 340, "reference frame"), "", None, None),
        ("", f'<StageLabel Name="s" X="7" XUnit="{UM}" Y="8" YUnit="{UM}"/>', (8.0, 7.0),
         "StageLabel of the OME-XML"),
        ("", '<StageLabel Name="s"/>', None, None),
    ],
)  # fmt: skip
def test_positions_of_ome_tiff(tmp_path, inner, label, expected, told):
    path = write_ome(tmp_path / "a.ome.tif", inner, label)
    assert read_origin(path) == (expected, told)
    assert not open_slide(path).info.notes


def test_planes_that_lie_apart_are_told(tmp_path):
    near = write_ome(tmp_path / "a.ome.tif", plane(0, 100, 50) + plane(1, 100.2, 50))
    assert not open_slide(near).info.notes
    far = write_ome(tmp_path / "b.ome.tif", plane(0, 100, 50) + plane(1, 112, 50))
    assert read_origin(far)[0] == (100.0, 50.0)
    assert open_slide(far).info.notes == (
        "the metadata place the planes up to 12 um apart; the first one's place is taken for the "
        "origin of all",
    )


def test_positions_of_scanners(tmp_path):
    image = scn_image("slide", [0], channels=["DAPI"])
    image = image.replace('offsetX="0" offsetY="0"', 'offsetX="250000" offsetY="90000"')
    path = write_scn(tmp_path / "a.scn", [image], PLANES[0])
    assert read_origin(path) == ((90.0, 250.0), "the file's own metadata (scn)")
    root = "PerkinElmer-QPI-ImageDescription"
    xml = f"<{root}><ImageType>FullResolution</ImageType><Name>DAPI</Name></{root}>"
    for x, expected in (((5, 4), (15000.0, 12500.0)), ((5, 0), None)):
        tags = [(286, "2I", 1, x, True), (287, "2I", 1, (3, 2), True)]
        path = tmp_path / f"{x[1]}.qptiff"
        tifffile.imwrite(
            path, PLANES[0], description=xml.encode(), software="PerkinElmer-QPI", metadata=None,
            resolution=(20000, 20000), resolutionunit="CENTIMETER", extratags=tags, tile=(32, 32),
        )  # fmt: skip
        assert read_origin(path)[0] == expected
        assert open_slide(path).info.channels == ("DAPI",)
    assert read_origin(tmp_path / "4.qptiff")[1] == "the file's own metadata (qpi)"
