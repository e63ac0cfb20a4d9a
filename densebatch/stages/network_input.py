"""What the network sees of a region: normalised channels at its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.geometry import Region
from densebatch.base.resampling import axis_weights, resample
from densebatch.slides.slide import reopen_slide
from densebatch.survey.normalization import find_bright, normalize, normalize_bright

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from densebatch.planning.plan import FlowPlan
    from densebatch.survey.normalization import ChannelBounds


def list_sources(plan: FlowPlan, region: Region) -> list[tuple[int, Region]]:
    """Channels that the network sees, each with the slide pixels that a region is made from.

    Parameters
    ----------
    plan
        The run.
    region
        Pixels at the network's scale; may reach outside the slide.
    """
    inside = region.clip(*plan.network_shape)
    rows = axis_weights(np.arange(inside.y0, inside.y1), plan.slide.height, plan.network_shape[0])
    cols = axis_weights(np.arange(inside.x0, inside.x1), plan.slide.width, plan.network_shape[1])
    source = Region(rows.start, cols.start, rows.stop, cols.stop)
    return [(b.channel, source.expand(b.reach_px).clip(*plan.shape)) for b in plan.seen_channels]


def read_network_input(
    plan: FlowPlan,
    region: Region,
    read_pixels: Callable[[int, Region], NDArray[Any]] | None = None,
    *,
    bright: bool = False,
) -> NDArray[np.float32]:
    """Normalised channels of a region at the network's scale, zero beyond the slide's edges.

    Parameters
    ----------
    plan
        The run.
    region
        Pixels at the network's scale; may reach outside the slide.
    read_pixels
        Reads a region of a channel; from the plan's slide if it is None.
    bright
        Whether to show rare bright cells, and the tissue as dark as it is beside them.

    Returns
    -------
    ndarray
        `(inputs, h, w)` float32, a plane for each of `plan.inputs`: the maximum of the membrane
        channels, the nuclear channel, and zeros where there is none.

    Notes
    -----
    A cell that the slide's edge cuts has its sink inside the slide, and the network must see where
    the edge is. Zeros tell it: training images are surrounded by them too
    (`training.annotated.EDGE_PX`). A mirror image would be more tissue, to which the cell goes on.
    """
    read_pixels = read_pixels or reopen_slide(plan.slide).read
    show = normalize_bright if bright else normalize
    planes = np.zeros((len(plan.inputs), *region.shape), np.float32)
    membrane = planes[plan.inputs.index("membrane")]
    rest = region.clip(*plan.network_shape).shift(-region.y0, -region.x0).slices
    for place, bounds in enumerate(plan.membrane):
        plane = _read_channel(plan, region, bounds, show, read_pixels)
        membrane[rest] = plane if place == 0 else np.maximum(membrane[rest], plane)
    if plan.nuclei is not None:
        planes[plan.inputs.index("nuclei")][rest] = _read_channel(
            plan, region, plan.nuclei, show, read_pixels
        )
    return planes


def find_bright_cells(
    plan: FlowPlan, region: Region, read_pixels: Callable[[int, Region], NDArray[Any]] | None = None
) -> NDArray[np.bool_]:
    """Where a region, inside the slide, is to be shown as `bright`: `(h, w)`.

    Parameters
    ----------
    plan, region, read_pixels
        As of `read_network_input`.
    """
    found = np.zeros(region.shape, bool)
    for bounds in plan.seen_channels:
        if bounds.bright is not None:
            found |= _read_channel(plan, region, bounds, _show_bright, read_pixels) > 0
    return found


def _show_bright(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    return find_bright(pixels, bounds).astype(np.float32)


def _read_channel(
    plan: FlowPlan,
    region: Region,
    bounds: ChannelBounds,
    show: Callable[[NDArray[np.generic], ChannelBounds], NDArray[np.float32]],
    read_pixels: Callable[[int, Region], NDArray[Any]] | None,
) -> NDArray[np.float32]:
    """What becomes of a channel in the part of a region that is inside the slide."""
    read_pixels = read_pixels or reopen_slide(plan.slide).read
    net_height, net_width = plan.network_shape
    inside = region.clip(net_height, net_width)
    rows = axis_weights(np.arange(inside.y0, inside.y1), plan.slide.height, net_height)
    cols = axis_weights(np.arange(inside.x0, inside.x1), plan.slide.width, net_width)
    source = Region(rows.start, cols.start, rows.stop, cols.stop)
    around = source.expand(bounds.reach_px).clip(plan.slide.height, plan.slide.width)
    shown = show(read_pixels(bounds.channel, around), bounds)
    return resample(shown[source.shift(-around.y0, -around.x0).slices], rows, cols)
