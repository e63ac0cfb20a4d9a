"""What a plan is drafted from: metadata alone."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.base.geometry import Lattice, Region, fit_axis
from densebatch.planning.flow_planner import find_active_cores
from densebatch.planning.planner import draft_plan, survey_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.survey.channel import ChannelSurvey
from densebatch.survey.kernels import BLOCK_PX
from densebatch.survey.normalization import ChannelBounds
from tests.helpers.checkpoint_files import make_network, make_state, save
from tests.helpers.run_files import write_tiff
from tests.helpers.slide_files import write_zarr


@pytest.mark.parametrize("shape", [(449, 449), (513, 963), (1040, 1392), (4096, 4096)])
def test_the_network_sees_at_most_a_fifth_more(tmp_path, shape):
    """Planned, not run: the count is the plan's (`tests/run/test_outputs.py` holds a run to it)."""
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((1, 8, 8), np.uint16))
    metadata = slide / "0" / "zarr.json"
    document = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**document, "shape": [1, *shape]}))
    plan = draft_plan(slide, SegmentSettings())
    assert plan.network_patches == len(plan.lattice.cores)
    assert plan.network_px <= 1.2 * shape[0] * shape[1]
    assert plan.covered_px == shape[0] * shape[1]


def test_a_draft_knows_neither_bounds_nor_glass(tmp_path):
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((2, 300, 400), np.uint16), labels=["M", "N"])
    plan = draft_plan(slide, SegmentSettings(membrane=("M",)))
    assert [(b.name, b.low, b.high) for b in plan.membrane] == [("M", 0.0, 0.0)]
    assert plan.active_cores.all()
    assert plan.covered_px == np.prod(plan.network_shape)
    assert plan.notes == ()
    surveyed = survey_plan(plan)
    assert not surveyed.active_cores.any()  # nothing but one value
    assert surveyed.notes == ("channel M: has no contrast, so nothing is found in it",)


@pytest.mark.parametrize(
    ("labels", "settings", "channels", "notes"),
    [
        (["A", "B", "C"], {"membrane": ("2", "0")}, (2, 0), ()),
        (
            ["A", "2", "C"],
            {"membrane": ("2",)},
            (1,),
            ("--membrane 2 is the channel labelled '2', at index 1; the one at index 2 is '#2'",),
        ),
        (["A", "2", "C"], {"membrane": ("#2",)}, (2,), ()),
        (
            ["405", "488", "561"],
            {"membrane": ("488",), "nuclei": "0"},
            (1,),
            (
                "--nuclei 0 is taken as an index and is '405': no channel is labelled so, though "
                "others are numbered",
            ),
        ),
        (
            ["CD3,CD8", "CD3", "CD8"],
            {"membrane": ("CD3,CD8",)},
            (0,),
            ("--membrane CD3,CD8 is the channel of that name, not 'CD3' and 'CD8'",),
        ),
    ],
)
def test_channels_that_could_be_others_are_told(tmp_path, labels, settings, channels, notes):
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((3, 50, 60), np.uint16), labels=labels)
    plan = draft_plan(slide, SegmentSettings(**settings))
    assert tuple(b.channel for b in plan.membrane) == channels
    assert tuple(note for note in plan.notes if not note.startswith("model ")) == notes


def test_a_name_in_a_list_is_never_split(tmp_path):
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((2, 50, 60), np.uint16), labels=["CD3", "CD8"])
    with pytest.raises(InputError, match=r"has no channel 'CD3,CD8'; accepted are 'CD3', 'CD8'"):
        draft_plan(slide, SegmentSettings(membrane=("CD3,CD8",)))
    with pytest.raises(InputError, match="'CD3', 'cd3' name one channel twice"):
        draft_plan(slide, SegmentSettings(membrane=("CD3", "cd3")))


UNKNOWN = "pixel size unknown: taken as 0.5 um/px, that of the model's images"


@pytest.mark.parametrize(
    ("told", "settings", "words"),
    [
        (None, {}, [UNKNOWN]),
        (None, {"pixel_size": 0.25}, []),
        (None, {"diameter": 30}, []),
        (0.5, {}, []),
        (0.5, {"pixel_size": 0.5049}, []),
        (0.5, {"pixel_size": 0.506}, ["0.506 um/px, as stated, is used; the slide's metadata"]),
        (0.5, {"pixel_size": 0.25, "diameter": 30}, ["0.25 um/px, as stated, is used"]),
        (0.1, {}, ["the slide is shrunk 5 times for the network"]),
        (3.0, {}, ["the slide is enlarged 6 times for the network"]),
        (3.0, {"diameter": 12}, []),
        (3.0, {"pixel_size": 3.0}, []),
        (1e4, {"diameter": 12}, ["10000 um/px, from the slide's metadata, is unusual for cells"]),
        (1e4, {"pixel_size": 0.5}, ["0.5 um/px, as stated, is used; the slide's metadata tell"]),
    ],
)
def test_an_assumed_or_odd_pixel_size_is_told(tmp_path, told, settings, words):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((1, 50, 60), np.uint16), ["M"], told)
    notes = draft_plan(slide, SegmentSettings(**settings)).notes
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_a_diameter_in_um_is_one_in_pixels(tmp_path):
    known = write_tiff(tmp_path / "a.ome.tif", np.zeros((1, 50, 60), np.uint16), ["M"], 0.25)
    unknown = write_tiff(tmp_path / "b.ome.tif", np.zeros((1, 50, 60), np.uint16), ["M"], None)
    in_um = SegmentSettings(diameter_um=8)
    in_px = draft_plan(known, SegmentSettings(diameter=32))
    assert draft_plan(known, in_um).fingerprint == in_px.fingerprint
    stated = SegmentSettings(diameter_um=8, pixel_size=0.5)
    assert draft_plan(unknown, stated).rescale == 2 * in_px.rescale
    message = (
        f"{unknown}: tells no pixel size, which a diameter of 8 um needs; state it with "
        "--pixel-size, or the cells' diameter in px with --diameter"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        draft_plan(unknown, in_um)


@pytest.mark.parametrize("told", [None, 0.5])
def test_the_default_diameter_of_a_model_without_pixel_size_is_told(tmp_path, told):
    torch.save(make_state(diam_labels=torch.tensor([17.0])), tmp_path / "stock")
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((1, 50, 60), np.uint16), ["M"], told)
    model = str(tmp_path / "stock")
    [note] = draft_plan(slide, SegmentSettings(model=model, pixel_size=0.5)).notes
    assert note.startswith(
        "model stock tells no pixel size: cells are taken to be 17 px across, its default"
    )
    assert draft_plan(slide, SegmentSettings(model=model, diameter=20)).notes == ()


def test_what_a_checkpoint_does_not_tell_is_told(tmp_path):
    torch.save(make_state(diam_mean=None), tmp_path / "old")
    torch.save(make_state(), tmp_path / "stock")
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((2, 50, 60), np.uint16), labels=["M", "N"])

    def notes(model, **settings):
        settings = SegmentSettings(membrane=("M",), model=str(model), diameter=20, **settings)
        return draft_plan(slide, settings).notes

    [note] = notes(tmp_path / "old")
    assert note.startswith(
        "model old states no diam_mean: its network is taken to know cells of 30"
    )
    [note] = notes(tmp_path / "stock", nuclei="N")
    assert note.startswith("model stock does not tell whether it was trained with a nuclear")
    save(make_network(), tmp_path / "ours.safetensors")
    assert notes(tmp_path / "ours.safetensors", nuclei="N") == notes(tmp_path / "stock") == ()


def test_cores_are_active_where_their_patch_has_contrast():
    """One bright block: the cores whose patches reach it, margin included, and no other."""
    lattice = Lattice(fit_axis(1500, 224, 32, 16), fit_axis(1500, 224, 32, 16))
    n = -(-1500 // BLOCK_PX)
    lowest, highest = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    highest[20, 30] = 1.0
    survey = ChannelSurvey(ChannelBounds(0, "M", 0.0, 1.0, 1.0, 0), lowest, highest)
    active = find_active_cores(lattice, [survey], (1.0, 1.0), 0.5)
    bright = Region(20 * BLOCK_PX, 30 * BLOCK_PX, 21 * BLOCK_PX, 31 * BLOCK_PX)
    expected = {i for i in lattice.cores if lattice.patch(*i).intersect(bright) is not None}
    assert {tuple(map(int, i)) for i in np.argwhere(active)} == expected
    assert 0 < len(expected) < len(lattice.cores)
    assert not find_active_cores(lattice, [survey], (1.0, 1.0), np.inf).any()
    assert find_active_cores(lattice, [survey], (1.0, 1.0), -1.0).all()
