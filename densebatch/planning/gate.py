"""The gate that a backend passes before it may be used: the same flows, and the same cells.

The reference is PyTorch's eager float32. Both evaluate the same simulated tissue, 1000 cells
or more, at the model's own scale, on patches of the run's
own shape. The sample belongs to the program (seeded, drawn from integers and float64), so the
figures of two machines can be compared.

Limits, by precision (relative RMS: of the difference, over that of the reference's flow field):

========= ================= ======================== ======================
precision relative RMS      AP against the truth     cells that are alike
========= ================= ======================== ======================
f32       at most 0.0001    at most 0.002 lower      at least 0.998
bf16      at most 0.01      at most 0.002 lower      at least 0.97
int8      at most 0.2       at most 0.01 lower       at least 0.9
========= ================= ======================== ======================

AP is at IoU 0.5; cells are alike by AP between the two. The flow field is stored as float16, whose
rounding alone is 0.0002.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.geometry import Region
from densebatch.engines.backend import BACKENDS, evaluate_patches
from densebatch.slides.simulated import Tissue, render
from densebatch.tracing.tile import TraceSettings, trace_tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend, PatchShape, Precision
    from densebatch.models.model import ModelSpec

_SEED = 2024
# Lost precision tips a few cells in a thousand to either side: with 1200 cells AP then moves by
# 0.002 of itself, with 5000 by half of that.
_SIDE_DIAMETERS: dict[Precision, int] = {"f32": 32, "bf16": 64, "int8": 64}
_MAX_PATCHES = 100
_FEW_CELLS = 200  # with fewer, half a percent of the cells is no cell at all


@dataclass(frozen=True)
class Limits:
    """How far a backend may be from the reference."""

    flow_rms: float
    ap: float
    alike: float


LIMITS: dict[Precision, Limits] = {
    "f32": Limits(1e-4, 0.002, 0.998),
    "bf16": Limits(1e-2, 0.002, 0.97),
    "int8": Limits(2e-1, 0.01, 0.9),
}


@dataclass(frozen=True)
class Sample:
    """Simulated tissue as the network sees it.

    Attributes
    ----------
    patches : `(n, 2, h, w)` float32, in raster order
    cols : patches in a row
    truth : uint32 ids of the cells, over the trusted parts put together
    diameter_px : of the cells
    """

    patches: NDArray[np.float32]
    cols: int
    truth: NDArray[np.uint32]
    diameter_px: float


@dataclass(frozen=True)
class Parity:
    """A backend beside the reference, on the sample.

    Attributes
    ----------
    flow_rms : of the difference of the flow fields, over the reference's own
    flow_max : largest difference of a flow component (five times unit length) or logit
    ap, ap_reference : average precision against the truth at IoU 0.5
    alike : average precision of the one's cells against the other's
    cells : that the reference finds
    refused : why the backend may not be used; None if it may
    """

    flow_rms: float
    flow_max: float
    ap: float
    ap_reference: float
    alike: float
    cells: int
    refused: str | None

    def to_dict(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)


@lru_cache(maxsize=1)  # several backends are compared on one
def draw_sample(
    model: ModelSpec, shape: PatchShape, precision: Precision = "f32", seed: int = _SEED
) -> Sample:
    """The sample for a model, a shape of patches and the precision that is to be judged."""
    step_y, step_x = shape.kept.shape
    diameter = min(max(model.diameter_px, 6.0), 200.0)
    side = _SIDE_DIAMETERS[precision] * diameter
    limit = math.isqrt(_MAX_PATCHES)
    rows, cols = (max(1, min(limit, math.ceil(side / step))) for step in (step_y, step_x))
    height, width = rows * step_y, cols * step_x
    y0, x0 = shape.kept.y0, shape.kept.x0
    # tissue goes on under the margins
    tissue = Tissue(
        rows * step_y + shape.height,
        cols * step_x + shape.width,
        seed=seed,
        cell_diameter_px=diameter,
        stained_fraction=0.8,
        clustering=0.5,
        min_area_px=max(1, round(0.15 * diameter**2)),
    )
    pixels, labels = render(tissue, Region(0, 0, tissue.height, tissue.width))
    seen = np.zeros(pixels.shape, np.float32)
    for channel in range(2 if model.nuclei else 1):
        low, high = np.percentile(pixels[channel], model.percentiles)
        seen[channel] = (pixels[channel] - low) / (high - low)
    patches = np.stack(
        [
            seen[:, y : y + shape.height, x : x + shape.width]
            for y in range(0, height, step_y)
            for x in range(0, width, step_x)
        ]
    )
    return Sample(patches, cols, labels[y0 : y0 + height, x0 : x0 + width], diameter)


def predict_sample(backend: Backend, sample: Sample) -> NDArray[np.float32]:
    """The sample's flow field, `(3, h, w)`, through the float16 that a run stores."""
    cores = evaluate_patches(backend, list(sample.patches))
    n, channels, height, width = cores.shape
    field = cores.reshape(n // sample.cols, sample.cols, channels, height, width)
    return np.ascontiguousarray(
        field.transpose(2, 0, 3, 1, 4).reshape(channels, *sample.truth.shape), np.float32
    )


def _trace(flows: NDArray[np.float32], sample: Sample) -> NDArray[np.uint32]:
    height, width = sample.truth.shape
    whole = Region(0, 0, height, width)
    largest = math.ceil(math.pi / 4 * (10 * sample.diameter_px) ** 2)
    limit = max(256, math.ceil(16 * sample.diameter_px))
    settings = TraceSettings(max_size_px=largest, travel_limit_px=limit)
    return trace_tile(flows, whole, whole, (height, width), settings).labels


def _score(truth: NDArray[np.uint32], found: NDArray[np.uint32]) -> float:
    from densebatch.scoring.score import score_labels  # not needed by runs that judge nothing

    return float(score_labels(truth, found).at("0.50").ap)


def compare(
    name: str, flows: NDArray[np.float32], reference: NDArray[np.float32], sample: Sample
) -> Parity:
    """Compare a backend's flow field of the sample with the reference's.

    Parameters
    ----------
    name
        A key of `BACKENDS`; its precision decides the limits.
    flows, reference
        As returned by `predict_sample`.
    sample
        That they were predicted from.
    """
    limits = LIMITS[BACKENDS[name].precision]
    if not np.isfinite(flows).all():
        return Parity(math.inf, math.inf, 0.0, 0.0, 0.0, 0, "flows are not finite")
    expected, found = _trace(reference, sample), _trace(flows, sample)
    difference = flows.astype(np.float64) - reference
    rms = math.sqrt(np.square(difference).mean() / np.square(reference, dtype=np.float64).mean())
    cells = int(expected.max())
    ap, ap_reference = _score(sample.truth, found), _score(sample.truth, expected)
    alike = _score(expected, found)
    parity = Parity(
        float(f"{rms:.3g}"), float(f"{np.abs(difference).max():.3g}"), round(ap, 5),
        round(ap_reference, 5), round(alike, 5), cells, None,
    )  # fmt: skip
    reasons = []
    if rms > limits.flow_rms:
        reasons.append(f"flows differ by {rms:.2g} of their RMS, accepted is {limits.flow_rms:g}")
    if cells >= _FEW_CELLS:
        if ap_reference - ap > limits.ap:
            reasons.append(
                f"AP is {ap:.4f} and not {ap_reference:.4f}, accepted is {limits.ap:g} less"
            )
        if alike < limits.alike:
            reasons.append(f"{alike:.4f} of the cells are alike, accepted is {limits.alike:g}")
    elif BACKENDS[name].precision != "f32":
        reasons.append(f"the model finds {cells} cells there, too few to judge lost precision by")
    return Parity(**{**asdict(parity), "refused": "; ".join(reasons) or None})
