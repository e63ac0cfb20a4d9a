"""What segmenters are told of a slide, for tests that have none."""

from __future__ import annotations

from densebatch.segmenters.segmenter import SlideFacts


def tell(*levels, diameter_px=20.0, um_per_px=None):
    return SlideFacts(tuple(map(float, levels)), diameter_px, um_per_px)
