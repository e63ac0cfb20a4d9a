"""Scales of OME-Zarr: taken where they can be read in one way, else told."""

import json

import pytest

from densebatch.base.errors import InputError
from densebatch.ngff.scales import find_pixel_lengths, parse_pyramid
from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import random_pixels, write_zarr

CZYX = random_pixels((3, 1, 64, 96))
UNKNOWN = "the pixel size counts as unknown, unless --pixel-size gives it"


def scale(*numbers):
    return {"type": "scale", "scale": list(numbers)}


def shift(*numbers):
    return {"type": "translation", "translation": list(numbers)}


def sequence(*steps, **others):
    return {"type": "sequence", "transformations": list(steps), **others}


def image(own, whole=None, units=("micrometer", "micrometer"), n_levels=1):
    """Axes c, z, y, x; `own` are the transformations of every level, None where there are none."""
    axes = [{"name": "c"}, {"name": "z"}]
    axes += [
        {"name": n} | ({} if u is None else {"unit": u}) for n, u in zip("yx", units, strict=True)
    ]
    datasets = [{"path": str(k)} for k in range(n_levels)]
    for dataset in datasets:
        if own is not None:
            dataset["coordinateTransformations"] = own
    document = {"axes": axes, "datasets": datasets}
    return document if whole is None else document | {"coordinateTransformations": whole}


HALF = scale(1, 1, 0.5, 0.5)
AFFINE = {"type": "affine", "affine": [[1, 0, 0], [0, 1, 0]]}

KNOWN = {
    "ordinary": image([HALF]),
    "with a translation": image([HALF, shift(0, 0, 5, 5)]),
    "after a translation": image([shift(0, 0, 5, 5), HALF]),
    "two scales": image([scale(1, 1, 0.25, 0.25), scale(1, 1, 2, 2)]),
    "of the whole image too": image([scale(1, 1, 0.25, 0.25)], [scale(1, 1, 2, 2)]),
    "a sequence": image([sequence(HALF, shift(0, 0, 1, 1))]),
    "a sequence in a sequence": image([sequence(sequence(scale(1, 1, 0.5, 0.5)))]),
    "an identity beside it": image([{"type": "identity"}, HALF]),
    "numbers as text": image([scale(1, 1, "0.5", "0.5")]),
    "null for channels": image([scale(None, None, 0.5, 0.5)]),
    "one coordinate system": image([HALF | {"input": "0", "output": "physical"}]),
}

TOLD = {
    "short": (image([scale(1, 0.5, 0.5)]), "has 3 entries for 4 axes; the last two are taken"),
    "two entries": (image([scale(0.5, 0.5)]), "highest resolution has 2 entries for 4 axes"),
    "short of the whole image": (
        image([HALF], [scale(1, 1)]),
        "whole image has 2 entries for 4 axes",
    ),
    "short in a sequence": (image([sequence(scale(1, 0.5, 0.5))]), "has 3 entries for 4 axes"),
    "only of the whole image": (image(None, [HALF]), "that of the whole image is taken"),
}

UNCLEAR = {
    "absent": (image(None), "no scale of the highest resolution"),
    "empty": (image([]), "no scale of the highest resolution"),
    "identity": (image([{"type": "identity"}]), "no scale of the highest resolution"),
    "only one of 1 for the whole image": (image([], [scale(0.1, 1, 1, 1)]), "no scale of the hig"),
    "translation only": (image([shift(0, 0, 5, 5)]), "a translation and no scale of the highest"),
    "a path": (image([{"type": "scale", "path": "s"}]), "a scale that is kept elsewhere, in 's'"),
    "affine": (image([AFFINE]), "a transformation of type 'affine'"),
    "affine beside a scale": (image([HALF, AFFINE]), "a transformation of type 'affine'"),
    "affine of the whole image": (image([HALF], [AFFINE]), "a transformation of type 'affine'"),
    "affine in a sequence": (image([sequence(HALF, AFFINE)]), "a transformation of type 'affine'"),
    "rotation": (image([HALF, {"type": "rotation"}]), "a transformation of type 'rotation'"),
    "an empty sequence": (image([sequence()]), "no scale of the highest resolution"),
    "a sequence without steps": (image([{"type": "sequence"}]), "the transformation {"),
    "several coordinate systems": (
        image([HALF], [scale(1, 1, 1, 1) | {"output": "a"}, scale(1, 1, 2, 2) | {"output": "b"}]),
        "transformations into several coordinate systems",
    ),
    "one entry": (image([scale(0.5)]), "a scale of 1 entries for 4 axes"),
    "no entries": (image([scale()]), "a scale of 0 entries for 4 axes"),
    "too long": (image([scale(1, 1, 1, 0.5, 0.5)]), "a scale of 5 entries for 4 axes"),
    "zero": (image([scale(1, 1, 0, 0.5)]), "a scale of 0 along y, 0.5 along x"),
    "negative": (image([scale(1, 1, 0.5, -0.5)]), "a scale of 0.5 along y, -0.5 along x"),
    "not a number": (image([scale(1, 1, float("nan"), 1)]), "a scale of nan along y"),
    "infinite": (image([scale(1, 1, float("inf"), 1)]), "a scale of inf along y"),
    "null": (image([scale(1, 1, None, None)]), "the scale [1, 1, null, null]"),
    "yes": (image([scale(1, 1, True, True)]), "the scale [1, 1, true, true]"),
    "words": (image([scale(1, 1, "a", "b")]), 'the scale [1, 1, "a", "b"]'),
    "nested": (image([scale(1, 1, [0.5], [0.5])]), "the scale [1, 1, [0.5], [0.5]]"),
    "a bare number": (image([{"type": "scale", "scale": 0.5}]), "the scale 0.5"),
    "of the whole image null": (image([HALF], [scale()]), "a scale of 0 entries for 4 axes"),
    "no list": (image(HALF), "the transformations {"),
    "a word": (image(["scale"]), 'the transformation "scale"'),
}

NO_LENGTHS = {
    "no unit": ((None, None), (0.5, 0.5), "a scale of 0.5 without a unit, which is no length"),
    "one unit": (("micrometer", None), (0.5, 0.5), "in 'micrometer' and without a unit"),
    "pixels": (("pixel", "pixel"), (1, 1), "a scale of 1 in 'pixel', which is no length"),
    "no word": ((5, 5), (1, 2), "a scale of 1 x 2 in '5', which is no length"),
    "not square": (
        ("micrometer", "micrometer"),
        (0.5, 0.25),
        "pixels of 0.5 x 0.25 um, which are not square",
    ),
    "units that differ": (
        ("micrometer", "nanometer"),
        (0.5, 0.5),
        "pixels of 0.5 x 0.0005 um, which are not square",
    ),
}


def read_slide(folder, document, version="0.5"):
    def edit(attributes):
        (found,) = attributes["multiscales"]
        for key in ("axes", "datasets", "coordinateTransformations"):
            found.pop(key, None)
        found |= json.loads(json.dumps(document))

    path = write_zarr(folder / "s.zarr", CZYX, "czyx", version, document=edit)
    info = open_slide(path).info
    return info.um_per_px, info.notes


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("name", KNOWN)
def test_known_without_a_word(tmp_path, name, version):
    assert read_slide(tmp_path, KNOWN[name], version) == (0.5, ())


@pytest.mark.parametrize("name", TOLD)
def test_known_and_told(tmp_path, name):
    document, found = TOLD[name]
    um_per_px, (note,) = read_slide(tmp_path, document)
    assert um_per_px == 0.5
    assert found in note


@pytest.mark.parametrize("name", UNCLEAR)
def test_unknown_and_told(tmp_path, name):
    document, found = UNCLEAR[name]
    um_per_px, (note,) = read_slide(tmp_path, document)
    assert um_per_px is None
    assert note.startswith(f"the metadata give {found}")
    assert note.endswith(UNKNOWN)


@pytest.mark.parametrize("name", NO_LENGTHS)
def test_what_is_no_length(tmp_path, name):
    units, numbers, found = NO_LENGTHS[name]
    um_per_px, (note,) = read_slide(tmp_path, image([scale(1, 1, *numbers)], units=units))
    assert um_per_px is None
    assert found in note
    assert note.endswith(UNKNOWN)


def test_units_that_differ_and_lengths_that_do_not(tmp_path):
    document = image([scale(1, 1, 0.5, 500)], units=("micrometer", "nanometer"))
    assert read_slide(tmp_path, document) == (0.5, ())


def test_a_short_scale_where_y_and_x_are_not_the_last_axes():
    document = {"axes": [{"name": n} for n in "yxc"], "datasets": [{"path": "0"}]}
    document["datasets"][0]["coordinateTransformations"] = [scale(0.5, 0.5)]
    found = find_pixel_lengths(document, 0, 1, 3)
    assert (found.lengths, found.problem) == (None, "a scale of 2 entries for 3 axes")


def test_sequences_without_end():
    step = HALF
    for _ in range(40):
        step = sequence(step)
    found = find_pixel_lengths(image([step]), 2, 3, 4)
    assert (found.lengths, found.problem) == (None, "a transformation of type 'sequence'")


SHAPES = [(3, 1, 60, 80), (3, 1, 30, 40)]


def parse(document, **options):
    attributes = {"ome": {"version": "0.5", "multiscales": [document]}}
    return parse_pyramid(attributes, document, SHAPES, "a.zarr", **options)[1]


class TestLabelsOfAnImage:
    """What labels copy; see also tests/ngff/test_metadata.py."""

    @pytest.mark.parametrize(
        ("own", "expected"),
        [
            ([scale(1, 0.5, 0.25)], (("scale", 0.5, 0.25),)),
            ([sequence(HALF, shift(0, 0, 3, 4))], (("scale", 0.5, 0.5), ("translation", 3, 4))),
            ([scale(1, 1, -0.5, 0.5)], (("scale", -0.5, 0.5),)),
        ],
    )
    def test_scales_that_are_copied(self, own, expected):
        assert parse(image(own, n_levels=2)).transforms == (expected,) * 2

    @pytest.mark.parametrize(
        "name",
        [
            *("a path", "affine", "rotation", "one entry", "too long", "zero", "not a number"),
            *("infinite", "null", "yes", "words", "no list", "several coordinate systems"),
        ],
    )
    @pytest.mark.parametrize("bare", [True, False])
    def test_scales_that_are_not(self, name, bare):
        document, _ = UNCLEAR[name]
        document = document | {"datasets": document["datasets"] * 2}
        with pytest.raises(InputError, match="which labels cannot copy; accepted are scales and"):
            parse(document, bare=bare)

    @pytest.mark.parametrize("name", ["absent", "empty", "identity", "translation only"])
    def test_without_a_scale_they_have_levels_of_their_own(self, name):
        document, _ = UNCLEAR[name]
        document = document | {"datasets": document["datasets"] * 2}
        with pytest.raises(InputError, match="has a level without a scale, which labels cannot"):
            parse(document)

    @pytest.mark.parametrize("name", ["absent", "empty", "identity"])
    def test_in_place_the_sizes_of_levels_are_their_scales_without_a_unit(self, name):
        document, _ = UNCLEAR[name]
        document = document | {"datasets": document["datasets"] * 2}
        found = parse(document, bare=True)
        assert found.transforms == ((("scale", 1, 1),), (("scale", 2, 2),))
        assert found.units == (None, None)

    def test_in_place_where_only_the_whole_image_has_one(self):
        found = parse(image(None, [HALF], n_levels=2), bare=True)
        assert found.transforms == ((("scale", 1, 1),), (("scale", 2, 2),))
        assert (found.outer, found.units) == ((("scale", 0.5, 0.5),), ("micrometer",) * 2)

    def test_one_level_of_two_has_a_scale(self):
        document = image([HALF], n_levels=2)
        document["datasets"][1] = {"path": "1"}
        with pytest.raises(InputError, match="has a level without a scale"):
            parse(document, bare=True)

    def test_axes_that_the_user_gave(self):
        document = image([scale(1, 1, 0.25, 0.5)], n_levels=2)
        document["axes"] = ["z"] * 4
        found = parse(document, axes="CZXY")
        assert found.shapes == ((80, 60), (40, 30))
        assert found.transforms[0] == (("scale", 0.5, 0.25),)
