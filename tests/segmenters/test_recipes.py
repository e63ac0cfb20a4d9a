"""Recipes of `configs/segmenters`: what they name is there, and our scripts do their part.

The tools themselves are not here. Those stand-ins that the scripts are run with have the interface
of the tool and find the bright pixels.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import ndimage

from densebatch.base.settings import read_settings
from densebatch.planning.settings import SegmentSettings
from densebatch.segmenters.command import CommandOptions
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from tests.helpers.slide_facts import tell

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "configs/segmenters").glob("*.yaml"))}
TOOLS = {
    "tensorflow.py": "class keras:\n    class models:\n        load_model = staticmethod(open)\n",
    "deepcell/__init__.py": "",
    "deepcell/applications.py": """
from scipy import ndimage
class Mesmer:
    def __init__(self, model):
        pass
    def predict(self, image, image_mpp, preprocess_kwargs, compartment):
        assert (image.shape[0], image.shape[3], image_mpp) == (1, 2, 0.5)
        return ndimage.label(image[..., 0] > 0.5)[0][..., None]
""",
    "src/__init__.py": "",
    "src/cvsegmenter.py": """
from scipy import ndimage
class CVSegmenter:
    def __init__(self, shape, path, overlap, increase_factor, threshold):
        assert path.endswith("src/modelFiles/final_weights.h5")
    def segment_image(self, image):
        assert image.shape[2] == 3 and image.dtype == "uint8"
        return [ndimage.label(image[..., 0] > 127)[0]], 1, 1
""",
    "src/cvstitch.py": "class CVMaskStitcher:\n    pass\n",
    "mrcnn/__init__.py": "",
    "mrcnn/model.py": """
import numpy as np
from scipy import ndimage
class MaskRCNN:
    def __init__(self, mode, config, model_dir):
        assert mode == "inference"
    def load_weights(self, path, by_name):
        pass
    def detect(self, images, verbose):
        labels, n = ndimage.label(images[0][..., 0] > 127)
        masks = np.stack([labels == k for k in range(1, n + 1)], -1)
        return [{"masks": masks, "scores": np.linspace(1, 0, n)}]
""",
    "my_config.py": "class InferenceConfig:\n    pass\n",
    "run_ilastik.sh": """#!/bin/sh
for last; do :; done
for each; do case $each in --output_filename_format=*) out=${each#*=};; esac; done
case "$*" in *"--export_source Object Identities"*) ;; *) exit 9;; esac
exec "$PYTHON" -c '
import sys, tifffile
from scipy import ndimage
tifffile.imwrite(sys.argv[2], ndimage.label(tifffile.imread(sys.argv[1]) > 32767)[0])
' "$last" "$out"
""",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_settings_that_are_accepted(name):
    recipe = yaml.safe_load(RECIPES[name].read_text())
    read_settings(SegmentSettings, RECIPES[name], {"membrane": ("DAPI",)})
    assert recipe.keys() == {"segmenter", "segmenter_options", "tile", "overlap"}
    segmenter = find_segmenter(recipe["segmenter"])
    CommandOptions(**recipe["segmenter_options"])
    assert 0 < recipe["overlap"] < recipe["tile"]
    for word in segmenter.words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"qupath"}))
def test_what_a_recipe_calls_reads_the_tile_and_writes_labels(tmp_path, monkeypatch, name):
    for file, text in TOOLS.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.chdir(ROOT)
    recipe = yaml.safe_load(RECIPES[name].read_text())
    spec = recipe["segmenter"]
    for path in ("/opt/deepcell/bin", "/opt/cellseg/bin", "/opt/mask-rcnn/bin"):
        spec = spec.replace(f"{path}/python", sys.executable)
    spec = spec.replace("/opt/deepcell/models/MultiplexSegmentation", os.devnull)
    for path in ("/opt/CellSeg", "/opt/ilastik-1.4.0-Linux"):
        spec = spec.replace(path, str(tmp_path))
    spec = spec.replace("PYTHONPATH=/opt/jacs", f"PYTHONPATH={tmp_path}")
    segmenter = find_segmenter(spec)
    noise = ndimage.gaussian_filter(np.random.default_rng(2).random((61, 47)), 3)
    image = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    options = segmenter.complete_options(recipe["segmenter_options"], tell(0.5))
    labels = label_tile(segmenter, Tile(image[None], ("DAPI",), 0.5, options))
    expected, n = ndimage.label(image > 0.5)
    assert n > 3
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == n + 1 == len(set(pairs[0]))
