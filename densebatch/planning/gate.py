"""The gate that a backend passes before it may be used: the same flows, and the same cells.

The reference is PyTorch's eager float32 on a CPU. Both evaluate the same simulated tissue, 1000
cells or more, at the model's own scale, on patches of the run's own shape. The sample belongs to
the program (seeded, drawn from integers and float64), so the figures of two machines can be
compared.

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
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.geometry import Region
from densebatch.engines.backend import BACKENDS, evaluate_patches
from densebatch.models.flow_models import get_kind
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.tile import TraceSettings, trace_tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend, PatchShape, Precision
    from densebatch.models.model import Model

_SEED = 2024
# Lost precision tips a few cells in a thousand to either side. With 1200 cells AP moves by 0.002
# because of that, with 5000 by half as much.
_SIDE_DIAMETERS: dict[Precision, int] = {"f32": 32, "bf16": 64, "int8": 64}
_MAX_PATCHES = 100
_FEW_CELLS = 200  # with fewer, the limits on AP and alike cells are finer than one cell


@dataclass(frozen=True)
class Limits:
    """How far a backend may be from the reference.

    Attributes
    ----------
    flow_rms : largest relative RMS of the flows' difference
    ap : largest loss of average precision against the truth
    alike : least average precision of its cells against the reference's
    """

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
    patches : `(n, inputs, h, w)` float32, in raster order
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
    """How a backend compares with the reference on the sample.

    Attributes
    ----------
    flow_rms : RMS of the difference of the flow fields, over that of the reference's
    flow_max : largest difference of a flow component (five times unit length) or logit
    ap, ap_reference : average precision of each against the truth, at IoU 0.5
    alike : average precision of the backend's cells against the reference's, at IoU 0.5
    cells : number that the reference finds
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
        """Figures for run.json and for what is remembered of a machine."""
        return asdict(self)


@lru_cache(maxsize=1)  # one sample serves the comparison of several backends
def draw_sample(
    model: Model, shape: PatchShape, precision: Precision = "f32", seed: int = _SEED
) -> Sample:
    """Simulate tissue as a model's network sees it.

    Parameters
    ----------
    model
        Decides the cells' diameter, the percentiles and whether there are nuclei.
    shape
        Of the patches.
    precision
        To be checked; a lower one needs more cells.
    seed
        Of the tissue.

    Returns
    -------
    Sample
        Of equal arguments the same on every machine.
    """
    step_y, step_x = shape.kept.shape
    diameter = min(max(model.diameter_px, 6.0), 200.0)
    side = _SIDE_DIAMETERS[precision] * diameter
    limit = math.isqrt(_MAX_PATCHES)
    rows, cols = (max(1, min(limit, math.ceil(side / step))) for step in (step_y, step_x))
    height, width = rows * step_y, cols * step_x
    y0, x0 = shape.kept.y0, shape.kept.x0
    # The tissue is larger than what is kept, since it goes on under the margins of the patches.
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
    inputs = get_kind(model.kind).inputs
    seen = np.zeros((len(inputs), *pixels.shape[1:]), np.float32)
    for channel, role in enumerate(("membrane", "nuclei") if model.nuclei else ("membrane",)):
        if role in inputs:
            low, high = np.percentile(pixels[channel], model.percentiles)
            seen[inputs.index(role)] = (pixels[channel] - low) / (high - low)
    patches = np.stack(
        [
            seen[:, y : y + shape.height, x : x + shape.width]
            for y in range(0, height, step_y)
            for x in range(0, width, step_x)
        ]
    )
    return Sample(patches, cols, labels[y0 : y0 + height, x0 : x0 + width], diameter)


def predict_sample(backend: Backend, sample: Sample) -> NDArray[np.float32]:
    """Evaluate the sample's flow field, `(3, h, w)`, rounded to the float16 that a run stores."""
    outputs = evaluate_patches(backend, list(sample.patches))
    n, channels, height, width = outputs.shape
    field = outputs.reshape(n // sample.cols, sample.cols, channels, height, width)
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
    # imported here because a run on the reference has nothing to score
    from densebatch.scoring.score import score_labels

    return float(score_labels(truth, found).at("0.50").ap)


def compare_flows(
    name: str, flows: NDArray[np.float32], reference: NDArray[np.float32], sample: Sample
) -> Parity:
    """Compare a backend's flow field of the sample with the reference's.

    Parameters
    ----------
    name
        A key of `BACKENDS`; its precision decides the limits.
    flows, reference
        `(3, h, w)`, as returned by `predict_sample`.
    sample
        Both were predicted from it.

    Returns
    -------
    Parity
        `refused` names every limit that is exceeded.
    """
    if not np.isfinite(flows).all():
        return Parity(math.inf, math.inf, 0.0, 0.0, 0.0, 0, "flows are not finite")
    expected, found = _trace(reference, sample), _trace(flows, sample)
    difference = flows.astype(np.float64) - reference
    rms = math.sqrt(np.square(difference).mean() / np.square(reference, dtype=np.float64).mean())
    exact = Parity(
        flow_rms=rms,
        flow_max=float(np.abs(difference).max()),
        ap=_score(sample.truth, found),
        ap_reference=_score(sample.truth, expected),
        alike=_score(expected, found),
        cells=int(expected.max()),
        refused=None,
    )
    return replace(
        exact,
        flow_rms=float(f"{exact.flow_rms:.3g}"),
        flow_max=float(f"{exact.flow_max:.3g}"),
        ap=round(exact.ap, 5),
        ap_reference=round(exact.ap_reference, 5),
        alike=round(exact.alike, 5),
        refused="; ".join(_list_reasons(exact, BACKENDS[name].precision)) or None,
    )


def _list_reasons(parity: Parity, precision: Precision) -> list[str]:
    """Tell which limits of a precision are exceeded."""
    limits = LIMITS[precision]
    reasons = []
    if parity.flow_rms > limits.flow_rms:
        reasons.append(
            f"flows differ by {parity.flow_rms:.2g} of their RMS, accepted is {limits.flow_rms:g}"
        )
    if parity.cells >= _FEW_CELLS:
        if parity.ap_reference - parity.ap > limits.ap:
            reasons.append(
                f"AP is {parity.ap:.4f} and not {parity.ap_reference:.4f}, "
                f"accepted is {limits.ap:g} less"
            )
        if parity.alike < limits.alike:
            reasons.append(
                f"{parity.alike:.4f} of the cells are alike, accepted is {limits.alike:g}"
            )
    elif precision != "f32":
        reasons.append(
            f"the model finds {parity.cells} cells there, too few to judge lost precision by"
        )
    return reasons
