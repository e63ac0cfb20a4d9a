"""Real annotated tissue and stock Cellpose around it, for tests that need either."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread

DATA = Path(
    os.environ.get("DENSEBATCH_TEST_DATA", Path(__file__).parents[3] / "shared/data/hsv-dense")
)
FIELDS = (
    "M872956_JML_Position8_CD3",
    "M872956_JML_Position8_CD8",
    "M872956_JML_Position9_CD3",
    "M926910_CFL_Position13_CD3",
)
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the test data are not here (DENSEBATCH_TEST_DATA)"
)


def read_field(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of one plane and masks with consecutive ids."""
    pixels = imread(DATA / "fields" / f"{name}_img.png")
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(axis=-1)
    masks = imread(DATA / "fields" / f"{name}_masks.png")
    return pixels, consecutive(masks)


def consecutive(labels: np.ndarray) -> np.ndarray:
    """Renumber 1..n; stock Cellpose's metrics are wrong on gaps."""
    ids, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape).astype(np.int32)
    return compact if ids[0] == 0 else compact + 1


class StockNet(torch.nn.Module):
    """Our network in the shape stock Cellpose's `core.run_net` expects.

    Stock allots 256 style values, so it cannot run a network of half the width; the style it
    returns plays no part in the masks.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.nout = 3
        self.mkldnn = False
        self.device = torch.device("cpu")

    def forward(self, x):
        return self.network(x), torch.ones(len(x), 256), None


def share_matched(reference: np.ndarray, found: np.ndarray, iou: float) -> float:
    """Share of the reference's cells that have a partner of at least this IoU."""
    n = int(found.max()) + 1
    pairs, counts = np.unique(reference.astype(np.int64) * n + found, return_counts=True)
    a, b = np.divmod(pairs, n)
    area_a = np.bincount(reference.ravel())
    area_b = np.bincount(found.ravel())
    both = (a > 0) & (b > 0)
    a, b, counts = a[both], b[both], counts[both]
    value = counts / (area_a[a] + area_b[b] - counts)
    best = np.zeros(area_a.size)
    np.maximum.at(best, a, value)
    return float((best[1:][area_a[1:] > 0] >= iou).mean())
