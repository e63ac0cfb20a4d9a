"""The whole path against stock Cellpose 3.1.1.3, with the same weights and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from skimage.io import imsave

from densebatch.base.geometry import Region
from densebatch.models.model import find_model, load_network
from densebatch.planning.settings import DEFAULT_MODEL
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.tracing.tile import TraceSettings, trace_tile
from tests.helpers.real_tissue import FIELDS, StockNet, needs_data, read_field, share_matched

core = pytest.importorskip("cellpose.core")
dynamics = pytest.importorskip("cellpose.dynamics")

pytestmark = [
    needs_data,
    # cellpose builds a sparse tensor the old way
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


MODELS = ("dense", DEFAULT_MODEL)


def _stock_flows(network, pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Flow field of stock's tiler with patch 224, `(3, h, w)`."""
    image = (pixels.astype(np.float32) - low) / (high - low)
    stack = np.stack([image, np.zeros_like(image)], axis=-1)[None]
    flows, _ = core.run_net(StockNet(network), stack, bsize=224)
    return np.ascontiguousarray(flows[0].transpose(2, 0, 1))


def _stock_masks(flows: np.ndarray) -> np.ndarray:
    """Exactly what `CellposeModel.eval` does with a flow field at its defaults."""
    masks = dynamics.resize_and_compute_masks(
        flows[:2], flows[2], niter=200, device=torch.device("cpu")
    )
    return masks.astype(np.int32)


def list_cases():
    """Models and fields. Stock takes a minute for each, so one stands for all in a quick run."""
    for model in MODELS:
        for place, name in enumerate(FIELDS):
            quick = place == 0 and model == DEFAULT_MODEL
            yield pytest.param((model, name), marks=() if quick else pytest.mark.slow)


@pytest.fixture(scope="module", params=list_cases())
def case(request):
    """Model and field."""
    return request.param


@pytest.fixture(scope="module")
def compared(case, tmp_path_factory):
    """Truth, ours and stock's of a field, and stock's flow field."""
    model, name = case
    pixels, truth = read_field(name)
    folder = tmp_path_factory.mktemp("field")
    imsave(folder / "field.png", pixels, check_contrast=False)
    result = segment(folder / "field.png", folder / "out", model=model, workers=0, image="none")
    ours = np.asarray(zarr.open_array(str(result.labels / "0"), mode="r")).astype(np.int32)
    bounds = result.report["plan"]["membrane"][0]
    network = load_network(find_model(model))
    flows = _stock_flows(network, pixels, bounds["low"], bounds["high"])
    return truth, ours, _stock_masks(flows), flows


def test_tracing_finds_stocks_cells_in_stocks_flows(compared):
    truth, _, theirs, flows = compared
    whole = Region(0, 0, *truth.shape)
    traced = trace_tile(flows, whole, whole, truth.shape, TraceSettings()).labels.astype(np.int32)
    assert share_matched(theirs, traced, 0.9) >= 0.99


def test_ap_is_stocks_within_a_hundredth(compared):
    truth, ours, theirs, _ = compared
    ap_ours = score_labels(truth, ours).at("0.50").ap
    ap_theirs = score_labels(truth, theirs).at("0.50").ap
    assert abs(ap_ours - ap_theirs) <= 0.01, (ap_ours, ap_theirs)


def test_95_percent_of_stocks_cells_have_a_close_partner(compared):
    _, ours, theirs, _ = compared
    share = share_matched(theirs, ours, 0.8)
    assert share >= 0.95


def test_nearly_all_of_stocks_cells_have_a_partner(compared):
    _, ours, theirs, _ = compared
    assert share_matched(theirs, ours, 0.5) >= 0.95
