"""A picture of transmitted light is told from one of fluorescence."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from densebatch.base.geometry import Region
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.simulation.tissue import Tissue, render
from densebatch.slides.slide import open_slide
from densebatch.survey.brightfield import looks_brightfield
from tests.helpers.slide_files import write_zarr

SIDE = 512
# Optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston
# 2001, Table 1).
STAINS = {
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "dab": (0.27, 0.57, 0.78),
}


def tissue(seed=3, glass=0.0):
    """Membrane and nuclei from 0 to about 1."""
    pixels = render(Tissue(SIDE, SIDE, seed=seed, empty_fraction=glass), Region(0, 0, SIDE, SIDE))[
        0
    ]
    scaled = [gaussian_filter(plane.astype(float), 1) for plane in pixels]
    return [(plane - plane.min()) / np.ptp(plane) for plane in scaled]


def stain(nuclei, rest, by="eosin", light=0.95):
    """`(h, w, 3)` from 0 to 1: what two stains leave of the light."""
    density = np.multiply.outer(1.1 * nuclei, STAINS["haematoxylin"])
    density = density + np.multiply.outer(0.5 * rest, STAINS[by])
    return light * 10.0**-density


def write_colours(folder, picture, kind):
    """A picture from 0 to 1 as a slide of a kind."""
    if kind == "png":
        Image.fromarray((255 * picture).astype(np.uint8)).save(folder / "a.png")
        return folder / "a.png"
    if kind in ("uint8", "uint16", "float32"):
        peak = {"uint8": 255, "uint16": 4095, "float32": 1}[kind]
        pixels = (peak * picture).astype(kind)
        tifffile.imwrite(folder / "a.tif", pixels, photometric="rgb", tile=(64, 64))
        return folder / "a.tif"
    planes = (255 * np.moveaxis(picture, -1, 0)).astype(np.uint8)
    return write_zarr(folder / "a.zarr", planes, labels=kind.split())


KINDS = ["png", "uint8", "uint16", "float32", "Red Green Blue", "R G B"]


@pytest.mark.parametrize("kind", KINDS)
def test_stained_tissue_in_transmitted_light_is_told(tmp_path, kind):
    membrane, nuclei = tissue()
    slide = open_slide(write_colours(tmp_path, stain(nuclei, 0.3 + membrane), kind))
    assert looks_brightfield(slide)
    notes = build_plan(slide.info.path, SegmentSettings(membrane=("#0",), pixel_size=0.5)).notes
    assert [note for note in notes if "brightfield" in note]


def glassy():
    membrane, nuclei = tissue(glass=0.7)
    return stain(nuclei, membrane)


def dark_stain():
    membrane, nuclei = tissue()
    return stain(1.3 * nuclei, 0.6 + membrane, light=0.85)


def brown():
    membrane, nuclei = tissue()
    return stain(nuclei, membrane, by="dab")


def unscanned():
    """Black where the scanner has not been: whole tiles."""
    picture = glassy()
    picture[:, :256] = 0
    return picture


@pytest.mark.parametrize("make", [glassy, dark_stain, brown, unscanned])
def test_other_pictures_of_transmitted_light_are_told(tmp_path, make):
    assert looks_brightfield(open_slide(write_colours(tmp_path, make(), "uint8")))


def composite():
    membrane, nuclei = tissue()
    return np.stack([membrane, 0.5 * membrane, nuclei], -1)


def grey():
    return np.repeat(tissue()[0][..., None], 3, -1)


def saturated():
    """Half of the pixels at the top."""
    membrane = tissue()[0]
    return np.clip(membrane / np.median(membrane), 0, 1)[..., None] * np.ones(3)


def dim():
    """A signal that is hardly above what the camera reads in the dark."""
    return 0.08 + 0.05 * composite()


def one_plane():
    return tissue()[0][..., None] * np.array([1.0, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [composite, grey, saturated, one_plane])
def test_fluorescence_is_not(tmp_path, make, kind):
    assert not looks_brightfield(open_slide(write_colours(tmp_path, make(), kind)))


def test_dim_fluorescence_is_not(tmp_path):
    assert not looks_brightfield(open_slide(write_colours(tmp_path, dim(), "uint16")))


def test_markers_are_no_colours_however_bright_they_are(tmp_path):
    membrane, nuclei = tissue()
    path = write_colours(tmp_path, stain(nuclei, membrane), "CD3 CD8 DAPI")
    assert not looks_brightfield(open_slide(path))


def test_a_large_slide_is_read_in_a_few_places(tmp_path, monkeypatch):
    membrane, nuclei = tissue()
    picture = np.tile(stain(nuclei, membrane), (4, 4, 1))
    slide = open_slide(write_colours(tmp_path, picture, "uint8"))
    regions = []
    read = slide._source.read
    monkeypatch.setattr(slide._source, "read", lambda *a: regions.append(a[2]) or read(*a))
    assert looks_brightfield(slide)
    assert len(regions) == len(set(regions)) == 16
    assert all(region.shape == (256, 256) for region in regions)


def test_a_damaged_place_is_no_reason_to_stop(tmp_path):
    """The note is not worth a channel that nobody asked for."""
    path = tmp_path / "a.tif"
    picture = np.full((3, 128, 128), 240, np.uint8)
    picture[:, 30:60, 30:60] = 90
    tifffile.imwrite(path, picture, photometric="rgb", planarconfig="separate", tile=(64, 64),
                     compression="zlib")  # fmt: skip
    assert looks_brightfield(open_slide(path))
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[-1]
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = b"damaged!"
    path.write_bytes(data)
    assert not looks_brightfield(open_slide(path))
