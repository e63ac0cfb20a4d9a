"""The whole path against stock Cellpose 3.1.1.3, with the same weights and normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from real_tissue import FIELDS, StockNet, needs_data, read_field, share_matched

import densebatch.plan
from densebatch.dynamics import TraceSettings, trace_tile
from densebatch.geometry import Region
from densebatch.models import find_model, load_network
from densebatch.pipeline import segment
from densebatch.scoring import score_labels

core = pytest.importorskip("cellpose.core")
dynamics = pytest.importorskip("cellpose.dynamics")

pytestmark = [
    needs_data,
    # cellpose builds a sparse tensor the old way
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


@pytest.fixture(scope="module")
def network():
    return load_network(find_model("dense"))


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


@pytest.mark.parametrize("name", FIELDS)
def test_field_agrees_with_stock(name, network, tmp_path, monkeypatch):
    pixels, truth = read_field(name)
    # the same patch as stock's default
    found = densebatch.plan.find_model
    monkeypatch.setattr(densebatch.plan, "find_model", lambda m: replace(found(m), patch_px=224))
    np.save(tmp_path / "pixels.npy", pixels)
    from skimage.io import imsave

    imsave(tmp_path / "field.png", pixels, check_contrast=False)
    result = segment(tmp_path / "field.png", tmp_path / "out", workers=0, image="none")
    ours = np.asarray(zarr.open_array(str(result.labels / "0"), mode="r")).astype(np.int32)
    bounds = result.report["plan"]["membrane"][0]
    flows = _stock_flows(network, pixels, bounds["low"], bounds["high"])
    theirs = _stock_masks(flows)

    # given stock's own flow field, our tracing finds stock's cells
    whole = Region(0, 0, *pixels.shape)
    traced = trace_tile(flows, whole, whole, pixels.shape, TraceSettings()).labels.astype(np.int32)
    assert share_matched(theirs, traced, 0.9) >= 0.99

    ap_ours = score_labels(truth, ours).at("0.50").ap
    ap_theirs = score_labels(truth, theirs).at("0.50").ap
    matched = share_matched(theirs, ours, 0.8)
    assert abs(ap_ours - ap_theirs) <= 0.01, (ap_ours, ap_theirs)
    assert matched >= 0.95, matched
