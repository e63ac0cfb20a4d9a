"""StarDist: options, which need no package, and a network where its extra is installed."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from densebatch.segmenters.stardist import NAME, StarDist
from tests.helpers.slide_facts import tell

IS_INSTALLED = importlib.util.find_spec("stardist") is not None
SEGMENTER = StarDist(NAME, NAME, "1", {}, 1)


def write_model(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"n_dim": 2, "n_channel_in": 1} | config))
    (folder / "weights_best.h5").write_bytes(b"weights")
    return {"model": str(folder)}


def refusal(given, planes=1):
    with pytest.raises(InputError) as caught:
        SEGMENTER.complete_options(given, tell(*[0.5] * planes))
    return str(caught.value)


@pytest.mark.skipif(IS_INSTALLED, reason="stardist is installed")
def test_what_to_install_is_told():
    with pytest.raises(InputError) as caught:
        find_segmenter("stardist")
    assert str(caught.value).startswith("segmenter 'stardist': needs stardist")
    assert str(caught.value).endswith("not installed here; pip install 'densebatch[stardist]'")


def test_thresholds_are_the_models_unless_given(tmp_path):
    given = write_model(tmp_path / "model")
    complete = SEGMENTER.complete_options(given, tell(0.5))
    assert (complete["prob_threshold"], complete["nms_threshold"]) == (0.5, 0.4)
    (tmp_path / "model/thresholds.json").write_text('{"prob": 0.47, "nms": 0.3}')
    complete = SEGMENTER.complete_options(given | {"nms_threshold": 0.2}, tell(0.5))
    assert (complete["prob_threshold"], complete["nms_threshold"]) == (0.47, 0.2)
    (tmp_path / "model/thresholds.json").write_text("{}")
    assert refusal(given).endswith("thresholds.json: is not as StarDist writes it")


def test_other_weights_are_another_model(tmp_path):
    given = write_model(tmp_path / "model")
    first = SEGMENTER.complete_options(given, tell(0.5))["model_sha256"]
    (tmp_path / "model/weights_best.h5").write_bytes(b"others")
    assert SEGMENTER.complete_options(given, tell(0.5))["model_sha256"] != first


def test_models_that_cannot_see_the_planes_are_refused(tmp_path):
    folder = tmp_path / "model"
    three = write_model(folder, n_channel_in=3)
    what = f"options of the segmenter stardist: the model {folder} takes 3 channels; accepted is 1"
    assert refusal(three) == f"{what}, which is nuclei"
    assert refusal(three, planes=2) == f"{what}, which is nuclei, or 2"
    two = write_model(folder, n_channel_in=2)
    assert SEGMENTER.complete_options(two, tell(0.5, 0.5))["planes"] == 2
    no_model = "is no model; accepted is a folder with config.json and weights of a 2D model"
    assert no_model in refusal(write_model(folder, n_dim=3))
    assert no_model in refusal({"model": str(tmp_path)})
    assert no_model in refusal({"model": "2D_versatile_fluo"})


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")  # those of TensorFlow and Keras are theirs
@pytest.mark.skipif(not IS_INSTALLED, reason="needs stardist")
def test_a_network_labels_a_tile(tmp_path):
    from stardist.models import Config2D, StarDist2D

    config = Config2D(n_rays=8, grid=(2, 2), unet_n_depth=1, unet_n_filter_base=4)
    StarDist2D(config, "model", str(tmp_path)).keras_model.save_weights(
        str(tmp_path / "model/weights_best.h5")
    )
    segmenter = find_segmenter("stardist")
    image = np.random.default_rng(0).random((1, 70, 51)).astype(np.float32)
    given = {"model": str(tmp_path / "model"), "prob_threshold": 0.01, "um_per_px": 0.7}
    tile = Tile(image, ("DAPI",), 0.5, segmenter.complete_options(given, tell(0.5, um_per_px=0.5)))
    np.testing.assert_array_equal(label_tile(segmenter, tile), label_tile(segmenter, tile))
