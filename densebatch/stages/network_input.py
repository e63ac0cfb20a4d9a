"""What the network sees of a region: normalised channels at its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.geometry import Region
from densebatch.base.resampling import axis_weights, resample
from densebatch.planning.normalization import normalize
from densebatch.slides.slide import reopen_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.planning.normalization import ChannelBounds
    from densebatch.planning.plan import Plan


def read_network_input(plan: Plan, region: Region) -> NDArray[np.float32]:
    """Normalised channels of a region at the network's scale, zero beyond the slide's edges.

    Parameters
    ----------
    plan
        The run.
    region
        Pixels at the network's scale; may reach outside the slide.

    Returns
    -------
    ndarray
        `(2, h, w)` float32: the maximum of the membrane channels, and the nuclear channel or
        zeros.

    Notes
    -----
    A cell that the slide's edge cuts has its sink inside the slide, and the network must see where
    the edge is. Zeros tell it: training images are surrounded by them too
    (`training.annotated.EDGE_PX`). A mirror image would be more tissue, to which the cell goes on.
    """
    slide = reopen_slide(plan.slide)
    net_height, net_width = plan.network_shape
    inside = region.clip(net_height, net_width)
    rows = axis_weights(np.arange(inside.y0, inside.y1), plan.slide.height, net_height)
    cols = axis_weights(np.arange(inside.x0, inside.x1), plan.slide.width, net_width)
    source = Region(rows.start, cols.start, rows.stop, cols.stop)

    def read(bounds: ChannelBounds) -> NDArray[np.float32]:
        around = source.expand(bounds.reach_px).clip(plan.slide.height, plan.slide.width)
        scaled = normalize(slide.read(bounds.channel, around), bounds)
        part = source.shift(-around.y0, -around.x0).slices
        return resample(scaled[part], rows, cols)

    planes = np.zeros((2, *region.shape), np.float32)
    rest = inside.shift(-region.y0, -region.x0).slices
    for place, bounds in enumerate(plan.membrane):
        plane = read(bounds)
        planes[0][rest] = plane if place == 0 else np.maximum(planes[0][rest], plane)
    if plan.nuclei is not None:
        planes[1][rest] = read(plan.nuclei)
    return planes
