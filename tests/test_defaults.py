"""`docs/defaults.md` says what is told where something is missing: here all of it is brought about.

Words of the document that no case brings about, a case whose words are not in the document, and
words that the program does not print any more all fail.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from skimage.io import imsave

from densebatch.simulation.debris import put_area, put_discs, put_specks
from tests.helpers.checkpoint_files import make_state
from tests.helpers.run_files import call_main, simulate, write_tiff
from tests.helpers.tiff_files import ome_image, ome_xml, place, write_pages

DOCUMENT = Path(__file__).parents[1] / "docs" / "defaults.md"
PIXELS = np.repeat(simulate(90, 120), 2, 0)
ONE = PIXELS[:1]


def list_told(kind):
    """What the document quotes in its last column as notes, or as errors."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    last = [row.rstrip(" |").rsplit(" | ", 1)[-1] for row in rows]
    return [words for cell in last for words in re.findall(rf"^{kind}[^`|]*: `([^`]+)`", cell)]


def as_pattern(words):
    return ".*".join(map(re.escape, words.split("…")))


def plan(write, *options):
    """Case: what `plan` prints of a slide."""

    def tell(folder, capsys):
        slide = write(folder)
        return call_main(capsys, "plan", slide, folder / "out", "--workers", 0, *options)

    return tell


def train(sizes, um_per_px=None, value=0.0, specks=False):
    """Case: what `train` prints of images of these pixel sizes."""

    def tell(folder, capsys):
        pixels, labels = (
            np.random.default_rng(0).random((1, 96, 96), np.float32),
            np.zeros((96, 96)),
        )
        labels[20:40, 20:40] = 1
        pixels[0, 0, 0] = value
        if specks:
            pixels, labels = put_specks(TISSUE, 100, 10, 3)[0], np.zeros(TISSUE.shape[1:])
            labels[20:40, 20:40] = 1
        for index, size in enumerate(sizes):
            write_tiff(folder / f"t{index}_img.ome.tif", pixels, ["M"], size)
            imsave(folder / f"t{index}_masks.png", labels.astype(np.uint8), check_contrast=False)
        recipe = folder / "r.yaml"
        stated = f"um_per_px: {um_per_px}\n" if um_per_px is not None else ""
        recipe.write_text(f"{stated}steps: 1\nbatch: 1\nwarmup_steps: 0\npatch_px: 64\n"
                          "widths: [2, 4, 8]\nautocast: false\n")  # fmt: skip
        return call_main(capsys, "train", folder, "-o", folder / "m.safetensors", "-c", recipe)

    return tell


def slide(pixels=ONE, names=("M",), um_per_px=0.5):
    return lambda folder: write_tiff(folder / "a.ome.tif", pixels, names, um_per_px)


def odd_float(change):
    def write(folder):
        return write_tiff(folder / "a.ome.tif", change(ONE.astype(np.float32)), ["M"])

    return write


def with_nan(pixels):
    pixels[0, 3, 3] = np.nan
    return pixels


def colours(picture):
    def write(folder):
        tifffile.imwrite(folder / "a.tif", picture, photometric="rgb")
        return folder / "a.tif"

    return write


def stack(folder):
    tifffile.imwrite(folder / "a.ome.tif", PIXELS, metadata={"axes": "ZYX"})
    return folder / "a.ome.tif"


def checkpoint(*options, **changes):
    def tell(folder, capsys):
        torch.save(make_state(**changes), folder / "stock")
        write = slide(PIXELS[:2], ["M", "N"])
        options_of_it = ("--membrane", "M", "--model", folder / "stock", *options)
        return plan(write, *options_of_it)(folder, capsys)

    return tell


rng = np.random.default_rng(0)
NOISE = rng.integers(0, 255, (90, 120, 3), np.uint8)
LIGHT = np.where(rng.random((90, 120, 1)) < 0.3, [150, 90, 160], [240, 238, 242]).astype(np.uint8)
TISSUE = simulate(256, 320)[:1]
GLASS = rng.normal(300, 10, TISSUE.shape).astype(np.uint16)
FOUR = ["CD8,4B", "CD8", "4B", "2"]


def write_store(*transformations, of_image=(), labels=None):
    def write(folder):
        pixels = PIXELS[:2, None]
        group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=pixels, chunks=(1, 1, 64, 64))
        axes = [{"name": name, "unit": "micrometer"} for name in "czyx"]
        image = {"axes": axes, "coordinateTransformations": list(of_image)}
        image["datasets"] = [{"path": "0", "coordinateTransformations": list(transformations)}]
        group.attrs["multiscales"] = [image]
        if labels is not None:
            group.attrs["omero"] = {"channels": [{"label": label} for label in labels]}
        return folder / "a.zarr"

    return write


def scale(*numbers):
    return {"type": "scale", "scale": list(numbers)}


def physical(**size):
    def write(folder):
        metadata = {"axes": "CYX", **size}
        tifffile.imwrite(folder / "a.ome.tif", PIXELS[:1], metadata=metadata)
        return folder / "a.ome.tif"

    return write


def with_other_tags(folder):
    options = {"resolution": (40000, 40000), "resolutionunit": 3, "photometric": "minisblack"}
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(folder / "a.ome.tif", PIXELS[:1], metadata=metadata, **options)
    return folder / "a.ome.tif"


def with_thumbnail(folder):
    with tifffile.TiffWriter(folder / "a.tif") as writer:
        writer.write(PIXELS[0, :9, :20], subfiletype=1, metadata=None)
        writer.write(PIXELS[0], metadata=None, resolution=(20000, 20000), resolutionunit=3)
    return folder / "a.tif"


def without_planes(folder):
    """OME-XML of an image whose planes lie nowhere."""
    description = ome_xml(ome_image("a", ["A"], ifd=-1, size=PIXELS.shape[1:]))
    return write_pages(folder / "a.ome.tif", PIXELS[0], description=description)


def with_more_pages(folder):
    description = ome_xml(ome_image("a", ["A"], size=PIXELS.shape[1:]))
    return write_pages(folder / "a.ome.tif", *PIXELS[:2], description=description)


def renamed(folder):
    planes = place(0, 0, file="another.ome.tif")
    description = ome_xml(ome_image("a", ["A"], size=PIXELS.shape[1:], planes=planes))
    return write_pages(folder / "a.ome.tif", PIXELS[0], description=description)


def with_half(folder):
    return write_pages(folder / "a.tif", PIXELS[0], PIXELS[0, ::2, ::2])


def with_fold(folder):
    dim = simulate(512, 512, 1)[0] / 40
    dim[100:300, 100:300] *= 30
    return write_tiff(folder / "a.ome.tif", dim.astype(np.uint16)[None], ["M"])


def inverted(folder):
    tifffile.imwrite(folder / "a.tif", PIXELS[0], photometric="miniswhite", metadata=None)
    return folder / "a.tif"


def merged(folder, capsys):
    """Case: label tiles whose places have no unit."""
    for name, x in (("a", 0.0), ("b", 3.0)):
        plane = {"PositionX": x, "PositionY": 0.0}
        metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Plane": plane}
        tifffile.imwrite(folder / f"{name}.ome.tif", np.eye(8, dtype=np.uint8), metadata=metadata)
    return call_main(capsys, "merge", folder / "a.ome.tif", folder / "b.ome.tif", folder / "out")


def box(side):
    return {"type": "Polygon", "coordinates": [[[0, 0], [side, 0], [side, side], [0, side]]]}


def in_areas(document):
    """Case: areas of a slide, by GeoJSON or a mask of another shape."""

    def tell(folder, capsys):
        path = folder / ("roi.png" if document is None else "roi.geojson")
        if document is None:
            imsave(path, np.ones((9, 90), np.uint8), check_contrast=False)
        else:
            path.write_text(json.dumps(document))
        return plan(slide(), "--roi", path)(folder, capsys)

    return tell


NOTES = {
    "the pixel size counts as unknown, unless": plan(write_store(), "--membrane", "0"),
    "the last two are taken": plan(write_store(scale(1, 0.5, 0.5)), "--membrane", "0"),
    "that of the whole image": plan(
        write_store(of_image=[scale(1, 1, 0.5, 0.5)]), "--membrane", "0"
    ),
    "(points, lines)": in_areas([{"type": "Point", "coordinates": [1, 1]}, box(9)]),
    "that reach beyond": in_areas(box(5000)),
    "is stretched to the slide": in_areas(None),
    "which are not square": plan(physical(PhysicalSizeX=0.5, PhysicalSizeY=0.7)),
    "taken for its height too": plan(physical(PhysicalSizeX=0.5)),
    "do not count and channels": plan(
        write_store(scale(1, 1, 0.5, 0.5), labels=["a", "b", "c"]), "--membrane", "0"
    ),
    "of which": plan(with_thumbnail),
    "which image of its OME-XML": plan(without_planes),
    "0 is white": plan(inverted),
    "describes all but": plan(with_more_pages),
    "taken for it, renamed": plan(renamed),
    "taken for lower resolutions": plan(with_half),
    "no text as label": plan(
        write_store(scale(1, 1, 0.5, 0.5), labels=[["x"], "b"]), "--membrane", "b"
    ),
    "looks like tissue by itself": plan(with_fold),
    "pixel size unknown: taken as": plan(slide(um_per_px=None)),
    "tells no pixel size": checkpoint(),
    "states no diam_mean": checkpoint("--diameter", 20, diam_mean=None),
    "diameter auto: cells": plan(slide(TISSUE), "--diameter", "auto", "--model", "dense-tiny"),
    "too few cells are found": plan(
        slide(np.zeros_like(ONE)), "--diameter", "auto", "--model", "dense-tiny"
    ),
    "as stated, is used": plan(slide(), "--pixel-size", 0.25),
    "and the resolution tags of the TIFF give": plan(with_other_tags),
    "is unusual for cells": plan(slide(um_per_px=20), "--diameter", 15),
    "times for the network": plan(slide(um_per_px=2.5)),
    "is the channel labelled": plan(slide(PIXELS, ["a", "b", "0", "d"]), "--membrane", "0"),
    "is taken as an index": plan(slide(PIXELS, ["405", "488", "a", "b"]), "--membrane", "0"),
    "is the channel of that name": plan(slide(PIXELS, FOUR), "--membrane", "CD8,4B"),
    "was trained without": plan(slide(PIXELS, FOUR), "--membrane", "4B", "--nuclei", "CD8"),
    "does not tell whether": checkpoint("--nuclei", "N", "--diameter", 20),
    "brightfield": plan(colours(LIGHT), "--membrane", "red"),
    "NaN or infinite; the network": plan(odd_float(with_nan)),
    "if they are cells": plan(slide(put_specks(TISSUE, 20, 6, 3)[0])),
    "rare bright cells": plan(slide(put_discs(TISSUE // 8, 15, 16, 3)[0])),
    "taken for dead": plan(slide(put_area(TISSUE + 5000, 0)[0])),
    "strewn over the slide": plan(slide(put_specks(GLASS, 60, 6, 3)[0])),
    "saturated": plan(slide(np.minimum(TISSUE, int(np.percentile(TISSUE, 95))))),
    "as different as tissue and glass": plan(slide(), "--tissue", "auto"),
    "has no contrast": plan(slide(np.zeros_like(ONE))),
    "4 diameters of": plan(slide(), "--segmenter", "watershed", "--tile", 256),
    "the membrane of a cell is": plan(
        slide(PIXELS[:2], ["M", "N"], None),
        "--nuclei",
        "N",
        "--membrane",
        "M",
        "--compartments",
        "--nuclei-model",
        "watershed",
    ),
    "have no unit": merged,
    "the images are taken to be of": train([None]),
    "that of the others": train([None, 0.5]),
    "its percentiles leave them out": train([0.5], specks=True),
    "another is told by": train([0.25], um_per_px=0.5),
}
ERRORS = {
    "which --expand": plan(slide(um_per_px=None), "--nuclei", 0, "--expand", 2),
    "needs the nuclear channel": plan(slide(), "--expand", 2),
    "which a diameter of": plan(slide(um_per_px=None), "--diameter-um", 8),
    "would be rescaled": plan(slide(um_per_px=50)),
    "none was named; name with": plan(slide(PIXELS, FOUR)),
    "planes differ": plan(colours(NOISE)),
    "may be the channels": plan(slide(PIXELS, FOUR), "--membrane", "CD8,4B,2"),
    "such as": plan(slide(PIXELS, ["A", "B", "A", "C"]), "--membrane", "A"),
    "say so with --axes": plan(stack),
    "at which the model is to see slides": train([0.25, 0.5]),
    "NaN, infinite or beyond": train([0.5], value=np.nan),
}


@pytest.mark.parametrize(("kind", "cases"), [("note", NOTES), ("error", ERRORS)])
def test_every_case_is_in_the_document_and_the_other_way_round(kind, cases):
    told = list_told(kind)
    found = {case: [words for words in told if case in words] for case in cases}
    assert {case: len(words) for case, words in found.items()} == dict.fromkeys(cases, 1)
    assert {words for one in found.values() for words in one} == set(told)


@pytest.mark.parametrize("case", NOTES)
def test_notes_are_those_of_the_document(case, tmp_path, capsys):
    [words] = [words for words in list_told("note") if case in words]
    code, out, err = NOTES[case](tmp_path, capsys)
    assert code == 0, err
    assert re.search(as_pattern(words), out + err), out + err


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_those_of_the_document(case, tmp_path, capsys):
    [words] = [words for words in list_told("error") if case in words]
    code, _, err = ERRORS[case](tmp_path, capsys)
    assert code == 2
    assert re.search("^error: .*" + as_pattern(words), err), err
