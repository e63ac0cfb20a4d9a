"""Label segmenters that show what the road of label segmenters holds; see `label_road.py`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from densebatch.base.geometry import Lattice, Region, fit_axis
from densebatch.engines.backend import evaluate_patches, patch_shape
from densebatch.engines.make import make_backend
from densebatch.models.flow_models import get_kind
from densebatch.models.model import find_model, load_network
from densebatch.tracing.tile import TraceSettings, trace_tile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend


def label_by_surroundings(
    image: NDArray[np.float32], *, um_per_px: float | None, options: Mapping[str, Any]
) -> NDArray[np.int64]:
    """Touching cells whose pixels depend on what lies within 1.75 `diameter_px`, under random ids.

    A pixel is of a cell if it is brighter than the mean around it, and goes to the nearest summit.
    Beyond the tile everything is dark, so that near its border cells are lost, invented, cut
    otherwise or joined. Which ids there are depends on all pixels of the tile.

    Parameters
    ----------
    image
        `(planes, y, x)`, of which the first is used.
    um_per_px
        Not used.
    options
        `diameter_px`.
    """
    del um_per_px
    side = int(options["diameter_px"])
    # A quarter of a diameter, half of one, a quarter, and three quarters to the nearest summit.
    rule = _Rule(side / 12, side // 2, side // 2, 0.75 * side, brighter=1.1, offset=0.02, least=0.1)
    return _label(image[0], rule)


def label_within_reach(
    image: NDArray[np.float32], *, um_per_px: float | None, options: Mapping[str, Any]
) -> NDArray[np.int64]:
    """As `label_by_surroundings`; a pixel depends on what lies within `reach_px`, not further.

    Parameters
    ----------
    image
        `(planes, y, x)`, of which the first is used.
    um_per_px
        Not used.
    options
        `reach_px`, and `brighter`: than how many times the mean around it a pixel of a cell is.
    """
    del um_per_px
    reach = int(options["reach_px"])
    # A sixth to smooth, a third to the mean, a sixth to the summit's rivals, the rest to it.
    sixth, third = round(reach / 6), round(reach / 3)
    rule = _Rule(
        sixth / 3, third, 2 * sixth + 1, reach - 2 * sixth - third,
        brighter=float(options["brighter"]), offset=0.0, least=0.05,
    )  # fmt: skip
    return _label(image[0], rule)


@dataclass(frozen=True)
class _Rule:
    """Lengths in px: of a Gaussian of three sigma, a mean, a maximum's window, to the summit."""

    sigma: float
    around: int
    window: int
    nearest: float
    brighter: float
    offset: float
    least: float


def _label(light: NDArray[np.float32], rule: _Rule) -> NDArray[np.int64]:
    smooth = ndimage.gaussian_filter(light, rule.sigma, mode="constant", truncate=3.0)
    around = ndimage.uniform_filter(smooth, 2 * rule.around + 1, mode="constant")
    inside = (smooth > rule.brighter * around + rule.offset) & (smooth > rule.least)
    summit = inside & (smooth == ndimage.maximum_filter(smooth, rule.window, mode="constant"))
    marks, n = ndimage.label(summit, np.ones((3, 3)))
    if n == 0:
        return np.zeros(smooth.shape, np.int64)
    distance, (rows, cols) = ndimage.distance_transform_edt(marks == 0, return_indices=True)
    labels = np.where(inside & (distance <= rule.nearest), marks[rows, cols], 0)
    seed = hashlib.sha256(np.ascontiguousarray(light).data).digest()
    rng = np.random.default_rng(list(seed))
    ids = np.concatenate([[0], rng.choice(2**40, n, replace=False) + 1])
    scattered: NDArray[np.int64] = ids[labels]
    return scattered


def label_by_flows(
    image: NDArray[np.float32], *, um_per_px: float | None, options: Mapping[str, Any]
) -> NDArray[np.uint32]:
    """A bundled network and the tracing of its flows, called for a tile as other models are.

    Parameters
    ----------
    image
        `(planes, y, x)`, of which the first is used.
    um_per_px
        Not used: the network sees the pixels as they are.
    options
        `model`: name of a bundled network.
    """
    del um_per_px
    network = _load(str(options["model"]), image.shape[1], image.shape[2])
    lattice = network.lattice
    margin = max(lattice.y.patch, lattice.x.patch)
    padded = np.zeros((network.planes, *(n + 2 * margin for n in image.shape[1:])), np.float32)
    padded[0, margin:-margin, margin:-margin] = image[0]
    cores = lattice.cores
    seen = [padded[:, *lattice.patch(*index).shift(margin, margin).slices] for index in cores]
    flows = np.zeros((3, *image.shape[1:]), np.float16)
    for index, output in zip(cores, evaluate_patches(network.backend, seen), strict=True):
        core = cores[index]
        flows[:, *core.slices] = output[:, : core.height, : core.width]
    whole = Region(0, 0, *image.shape[1:])
    return trace_tile(flows, whole, whole, whole.shape, network.trace).labels


@dataclass(frozen=True)
class _Network:
    backend: Backend
    planes: int
    lattice: Lattice
    trace: TraceSettings


@lru_cache(maxsize=4)
def _load(name: str, height: int, width: int) -> _Network:
    """A network for tiles of a shape, which decides its patches."""
    model = find_model(name)
    kind = get_kind(model.kind)
    axes = [
        fit_axis(n, model.patch_px, model.margin_px, kind.multiple, stretches=kind.stretches)
        for n in (height, width)
    ]
    lattice = Lattice(*axes)
    backend = make_backend(
        "torch", "cpu", load_network(model), patch_shape(lattice), batch=1, lanes=1
    )
    trace = TraceSettings(
        cellprob_threshold=0.0, flow_threshold=0.4, min_size_px=15,
        max_size_px=round(np.pi / 4 * (10 * model.diameter_px) ** 2), iterations=200,
        travel_limit_px=256,
    )  # fmt: skip
    return _Network(backend, len(kind.inputs), lattice, trace)
