"""A plan as text, as a fingerprint, and compared with another."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from densebatch.engines.backend import Engine
from densebatch.planning.plan import Plan, describe_difference, load_plan, parse_plan
from densebatch.planning.planner import draft_plan
from densebatch.planning.scale import DiameterEstimate
from densebatch.planning.settings import SegmentSettings
from densebatch.regions.areas import pack_areas
from densebatch.regions.runs import find_runs
from densebatch.regions.tissue import TissueSearch
from tests.helpers.run_files import write_tiff

SHAPE = (80, 90)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.ome.tif"
    return write_tiff(path, np.zeros((2, 80, 90), np.uint16), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def plan(slide):
    return draft_plan(slide, SegmentSettings(membrane=("CD3",)))


def test_a_plan_comes_back_from_its_text(plan, tmp_path):
    again = parse_plan(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert load_plan(str(tmp_path / "plan.json")) == plan


def change(plan):
    """A changed value of every field."""
    return {
        "slide": replace(plan.slide, width=91),
        "model": replace(plan.model, sha256="0" * 64),
        "membrane": (replace(plan.membrane[0], high=7.0),),
        "nuclei": plan.membrane[0],
        "um_per_px": 0.25,
        "rescale": plan.rescale * 2,
        "rescale_reason": "another",
        "lattice": replace(plan.lattice, y=plan.lattice.x, x=plan.lattice.y)
        if plan.lattice.x != plan.lattice.y
        else replace(plan.lattice, y=replace(plan.lattice.y, length=plan.lattice.y.length + 1)),
        "group_y": plan.group_y + 1,
        "group_x": plan.group_x + 1,
        "active": "AA==",
        "mask_debris": not plan.mask_debris,
        "skip_contrast": 0.5,
        "trace": replace(plan.trace, min_size_px=99),
        "travel_px": plan.travel_px + 16,
        "ngff": "0.4",
        "copy_image": not plan.copy_image,
        "in_place": not plan.in_place,
        "versions": {**plan.versions, "numpy": "1"},
        "notes": ("another",),
        "engine": Engine("openvino"),
        "region": make_areas("a"),
    }


def make_areas(*names, file="a.png"):
    runs = find_runs(np.tri(*SHAPE, dtype=bool), 0)
    return pack_areas(runs, SHAPE, names, {"roi": (file, "0" * 64)})


@pytest.mark.parametrize(
    "name", sorted({field.name for field in fields(Plan)} - {"notes", "estimate", "tissue"})
)
def test_every_field_is_in_the_fingerprint(plan, name):
    other = replace(plan, **{name: change(plan)[name]})
    assert other.fingerprint != plan.fingerprint
    assert describe_difference(plan, other).startswith(name)


def test_notes_are_not_in_the_fingerprint(plan):
    """They depend on how a thing was asked for: by name or by index, say."""
    other = replace(
        plan,
        notes=("another",),
        slide=replace(plan.slide, notes=("another",)),
        model=replace(plan.model, notes=("another",)),
    )
    assert other.fingerprint == plan.fingerprint
    assert describe_difference(plan, other) == "nothing"


def test_how_tissue_was_found_is_not_in_the_fingerprint(plan):
    """The area is; and where all of the slide counts, it is a run as without `--tissue`."""
    other = replace(plan, tissue=TissueSearch(3, 32.0, 100.0, (), reason="no glass"))
    assert other.fingerprint == plan.fingerprint
    assert describe_difference(plan, other) == "nothing"
    assert parse_plan(other.to_json()) == other


def test_areas_are_in_the_fingerprint_whatever_file_told_them(plan):
    one, other, named = (
        replace(plan, region=make_areas(name, file=file))
        for name, file in (("", "a.png"), ("", "b.tif"), ("A", "a.png"))
    )
    assert parse_plan(one.to_json()) == one
    assert one.fingerprint == other.fingerprint != named.fingerprint
    # As of runs that began before there were areas.
    assert '"region"' not in json.dumps(plan._list_decisive())


def test_an_estimate_is_in_the_fingerprint_by_its_scale(plan, slide):
    """So that runs without one keep theirs, and the diameter that it gives may be stated too."""
    estimate = DiameterEstimate(20.0, 300, 8)
    assert replace(plan, estimate=estimate).fingerprint == plan.fingerprint
    estimated = draft_plan(slide, SegmentSettings(membrane=("CD3",), diameter="auto"), estimate)
    stated = draft_plan(slide, SegmentSettings(membrane=("CD3",), diameter=20))
    assert estimated.fingerprint == stated.fingerprint != plan.fingerprint
    assert parse_plan(estimated.to_json()) == estimated


def test_neither_tiles_nor_workers_are_in_the_fingerprint(plan, slide):
    other = draft_plan(slide, SegmentSettings(membrane=("CD3",), tile=333, workers=3))
    assert other.fingerprint == plan.fingerprint
    assert describe_difference(plan, other) == "nothing"


def test_what_the_user_sees_is_told_before_what_follows_from_it(plan):
    other = replace(
        plan, active="AA==", group_y=9, trace=replace(plan.trace, min_size_px=99), um_per_px=0.25
    )
    told = describe_difference(plan, other)
    assert told == f"trace.min_size_px was {plan.trace.min_size_px} and is now 99"


def test_surveyed_pixels_count_and_times_of_files_do_not(plan):
    """A slide that was only touched is the same; its plan is another edition."""
    touched = replace(plan, slide=replace(plan.slide, identity="other"))
    assert touched.fingerprint != plan.fingerprint  # as long as nobody has seen the pixels

    def survey(plan, content):
        return replace(plan, membrane=tuple(replace(b, content=content) for b in plan.membrane))

    seen, seen_again = survey(plan, "ab"), survey(touched, "ab")
    if plan.nuclei is not None:
        nuclei = replace(plan.nuclei, content="cd")
        seen, seen_again = replace(seen, nuclei=nuclei), replace(seen_again, nuclei=nuclei)
    assert seen.fingerprint == seen_again.fingerprint
    assert seen.edition != seen_again.edition
    assert describe_difference(seen, seen_again) == "nothing"
    changed = survey(seen_again, "ef")
    assert changed.fingerprint != seen.fingerprint
    assert "has changed since" in describe_difference(seen, changed)
