"""Flows to cells for one tile, with a result that does not depend on the tile.

The steps are Cellpose's (Stringer et al. 2021; cellpose 3.1.1.3 `dynamics.compute_masks`): follow
the flow from each foreground pixel, find sinks in the histogram of end points, grow each sink,
give every pixel to the sink it ended in, then drop cells whose flows disagree with their shape and
fill holes. Five things differ, each because stock's result depends on the image's extent:

- positions are an integer start plus a float32 displacement (absolute float32 coordinates round
  differently at different offsets);
- sinks are ordered by (count, position), never by an unstable sort;
- the size cap is absolute, and quality control runs as many rounds as the cell itself needs;
- a hole is filled with its cell only where no other kept cell is;
- a pixel that travels beyond a hard limit is left unassigned and counted.

How much halo makes the core exact
----------------------------------
Let T bound the travel of every pixel (Chebyshev distance from its start, at any time). A window's
edge is unknown ground: a trajectory that touches it is dropped, and it could have ended up to 2T
inside; a pixel outside the window ends at most T inside. So the end-point histogram is exact 2T
from the edge, seeds (5x5 maxima) 2 px further, claims of seeds (11x11 windows) 5 px + 5 px
further. A core pixel's cell has its seed within T + 5 px of the pixel, also if the pixel lies in a
hole of the cell, and the cell's pixels are the sources of its claim. Hence `halo = 3 T + 24`.
T is not an assumption: every tile reports the largest travel in its core, and a run traces again,
with a larger T, the tiles near a core that exceeded it. Where flows are unknown, T bounds as well
how far the known flow leads on from there; `unknown` says what follows for the cells around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.tracing.candidates import Verdict
from densebatch.tracing.dynamics import choose_dynamics
from densebatch.tracing.follow_plain import Bounds
from densebatch.tracing.foreground import mask_flows
from densebatch.tracing.quality import check_errors, check_sizes, fill_holes
from densebatch.tracing.seeds import gather_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.tracing.candidates import Candidates
    from densebatch.tracing.foreground import Unknown


def halo_for_travel(travel_px: int) -> int:
    """Halo in pixels that makes a core exact when no pixel travels further than `travel_px`."""
    return 3 * travel_px + 24


@dataclass(frozen=True)
class TraceSettings:
    """What decides which cells are found; nothing here depends on tiles or workers.

    Attributes
    ----------
    cellprob_threshold : pixels with a larger cell-probability logit are foreground
    flow_threshold : cells with a larger mean squared flow error are dropped; 0 keeps all
    min_size_px : cells with fewer pixels are dropped
    max_size_px : cells with more pixels are dropped (before quality control)
    iterations : Euler steps of flow following
    travel_limit_px : a pixel that goes further from its start is left unassigned
    """

    cellprob_threshold: float = 0.0
    flow_threshold: float = 0.4
    min_size_px: int = 15
    max_size_px: int = 20_000
    iterations: int = 200
    travel_limit_px: int = 256


@dataclass(frozen=True)
class TracedTile:
    """Cells of one tile.

    Attributes
    ----------
    labels : `(h, w)` uint32 of the core; 0 background, else index into `keys` plus one
    keys : int64, ascending; global linear index of each cell's seed pixel in the slide
    max_travel_px : largest travel of a core pixel, and of what unknown flows may send on from there
    dropped_px : core pixels beyond the travel limit
    n_rejected : cells with their seed in the core that quality control or size limits dropped
    missing : `(h, w)` bool of the core: pixels whose cells depend on unknown flows, which have
        label 0; None if all flows are known
    """

    labels: NDArray[np.uint32]
    keys: NDArray[np.int64]
    max_travel_px: float
    dropped_px: int
    n_rejected: int
    missing: NDArray[np.bool_] | None = None


def trace_tile(
    flows: NDArray[np.float16 | np.float32],
    window: Region,
    core: Region,
    slide_shape: tuple[int, int],
    settings: TraceSettings,
    device: str = "cpu",
    unknown: Unknown | None = None,
) -> TracedTile:
    """Cells of a tile's core from the flow field of its window.

    Parameters
    ----------
    flows
        `(3, h, w)` float16 or float32 over `window`: dy, dx at five times unit length, and the
        logit.
    window
        The core with its halo, cut at the slide's borders; global pixels.
    core
        The part whose labels are wanted; global pixels.
    slide_shape
        Height and width of the slide.
    settings
        Thresholds and limits.
    device
        Where pixels are followed and flow errors measured: `cpu`, or a device of PyTorch; no bit of
        the result depends on it.
    unknown
        Where in the window the flow is unknown; whatever finite values it has there do not count.

    Returns
    -------
    TracedTile
        Exact for the whole slide as long as no pixel travels further than the halo allows, see
        the module's notes.

    Raises
    ------
    ValueError
        If a flow or a logit is not finite.
    MemoryError
        If the device has too little memory left.
    """
    height, width = slide_shape
    inner = core.shift(-window.y0, -window.x0)
    try:
        foreground, unit = mask_flows(flows, settings.cellprob_threshold)
    except ValueError as error:
        raise ValueError(f"{error} in {window}") from error
    if unknown is not None:
        foreground &= ~unknown.pixels
        unit[unknown.pixels] = 0
    bounds = Bounds(-window.y0, -window.x0, height - 1 - window.y0, width - 1 - window.x0)
    dynamics = choose_dynamics(unit, device)
    ends, travel = dynamics.follow(
        foreground, bounds, settings.iterations, settings.travel_limit_px
    )
    core_travel = travel[inner.slices]  # of background it is 0
    furthest = float(core_travel.max(initial=0.0))
    if unknown is None:
        labels, cells = gather_cells(ends)
        cells = check_sizes(cells, inner, settings.min_size_px, settings.max_size_px)
        missing = None
    else:
        # imported here, because most runs do without it
        from densebatch.tracing.unknown import gather_known_cells

        labels, cells, doubt = gather_known_cells(
            unit, unknown, foreground, ends, travel, bounds, settings.iterations
        )
        cells = check_sizes(cells, inner, settings.min_size_px, settings.max_size_px)
        verdict = np.where(doubt.cells, np.int8(Verdict.OUTSIDE), cells.verdict)
        cells = cells._replace(verdict=verdict)
        missing = doubt.missing[inner.slices]
        furthest = max(furthest, float(doubt.furthest[inner.slices].max(initial=0.0)))
    if settings.flow_threshold > 0:
        errors = dynamics.measure_errors(labels, cells)
        cells = check_errors(cells, errors, settings.flow_threshold)
    filled = fill_holes(labels, cells)
    core_filled = filled[inner.slices]
    if missing is not None:
        core_filled[missing] = 0  # a cell beside a hole may have filled a part of it
    named, core_labels = _number_from_one(core_filled, cells.area.size)
    seed_y = cells.seed_y[named].astype(np.int64) + window.y0
    seed_x = cells.seed_x[named].astype(np.int64) + window.x0
    return TracedTile(
        labels=core_labels,
        keys=seed_y * width + seed_x,
        max_travel_px=furthest,
        dropped_px=int(np.count_nonzero(core_travel > settings.travel_limit_px)),
        n_rejected=_count_rejected(cells, inner),
        missing=missing,
    )


def _number_from_one(
    labels: NDArray[np.int32], n_labels: int
) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
    """Rows of the candidates that have a pixel, and the labels that count these from one."""
    present = np.flatnonzero(_mark_present(labels, n_labels))
    numbers = np.zeros(n_labels + 1, np.uint32)
    numbers[present + 1] = np.arange(1, present.size + 1, dtype=np.uint32)
    return present, _rename(labels, numbers)


def _count_rejected(cells: Candidates, core: Region) -> int:
    """How many candidates with their seed in the core were rejected."""
    rows = (cells.seed_y >= core.y0) & (cells.seed_y < core.y1)
    cols = (cells.seed_x >= core.x0) & (cells.seed_x < core.x1)
    return int(np.count_nonzero((cells.verdict == Verdict.REJECTED) & rows & cols))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark_present(labels: NDArray[np.int32], n_labels: int) -> NDArray[np.bool_]:
    """Which of the labels 1..n_labels have a pixel."""
    present = np.zeros(n_labels, np.bool_)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0:
                present[labels[y, x] - 1] = True
    return present


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rename(labels: NDArray[np.int32], names: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """`names[labels]`, in a third of NumPy's time."""
    renamed = np.empty(labels.shape, np.uint32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            renamed[y, x] = names[np.uint32(labels[y, x])]
    return renamed
