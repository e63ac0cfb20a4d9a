"""Every file in configs/ loads with the loader of its command, and says what its name says."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from densebatch.planning.settings import load_settings
from densebatch.studies.sweep_settings import load_sweep
from densebatch.training.recipe import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(p for p in CONFIGS.rglob("*.yaml") if "clusters" not in p.parts)
SEGMENT = [path for path in FILES if path.parent.name in ("segment", "segmenters")]
SWEEP = [path for path in FILES if path.name.startswith("sweep-")]
TRAIN = [path for path in FILES if path not in SEGMENT and path not in SWEEP]
PAPER = [path for path in TRAIN if path.parent.name == "paper"]


def name(path):
    return str(path.relative_to(CONFIGS))


def test_each_kind_is_there():
    assert SEGMENT
    assert len(SWEEP) >= 2
    assert len(PAPER) >= 12


@pytest.mark.parametrize("path", SEGMENT, ids=name)
def test_segmentation(path):
    assert load_settings(path) != load_settings(None)


@pytest.mark.parametrize("path", SWEEP, ids=name)
def test_sweep(path):
    settings = load_sweep(path)
    assert settings.segment.min_size == 15
    assert settings.iou == (0.5,)
    assert 0.4 in settings.flow_threshold
    assert 0 in settings.cellprob_threshold


def test_sweeps_try_what_the_paper_tried():
    thresholds = load_sweep(CONFIGS / "paper" / "sweep-thresholds.yaml")
    assert thresholds.flow_threshold == (0.3, 0.4, 0.5)
    assert thresholds.cellprob_threshold == (-1, 0, 1)
    assert load_sweep(CONFIGS / "paper" / "sweep-min-size.yaml").min_size == (0, 50, 100, 200)


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_training(path):
    recipe = load_recipe(path)
    written = yaml.safe_load(path.read_text())
    for key, value in written.items():
        found = getattr(recipe, key)
        assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_paper_rows_differ_in_what_they_are_named_for(path):
    values, base = (
        yaml.safe_load(p.read_text()) for p in (path, CONFIGS / "paper" / "images-7.yaml")
    )
    changed = {key: values[key] for key in values if values[key] != base[key]}
    assert values.keys() == base.keys()
    kind, _, number = path.stem.partition("-")
    if kind == "images":
        images = changed.pop("train_images", [None] * 7)
        assert len(images) == changed.pop("batch", 7) == int(number)
        assert changed == {}
        return
    expected = {
        "patch-56": {"patch_px": 56},
        "patch-112": {"patch_px": 112},
        "patch-448": {"patch_px": 448},
        "no-rotation": {"patch_px": 448, "rotation": False},
        "no-rotation-224": {"rotation": False},
        "no-flip": {"patch_px": 448, "flips": False},
        "no-scaling": {"patch_px": 448, "scaling": 0.0},
        "collation": {"patch_px": 448, "rotation": False, "collation": True},
    }
    assert changed == expected[path.stem]


def test_training_images_are_added_in_the_papers_order():
    chosen = [
        yaml.safe_load((CONFIGS / "paper" / f"images-{k}.yaml").read_text())["train_images"]
        for k in range(1, 7)
    ]
    for fewer, more in pairwise(chosen):
        assert more[:-1] == fewer
