"""What tests know of simulated slides and no user asks for."""

from __future__ import annotations

from dataclasses import replace

from densebatch.simulation.tissue import render


def find_tissue(tissue, region):
    """Where a region of a slide is tissue rather than empty, bool.

    Of the same slide with a bright background, without cells' light and without noise: the
    background fades at the outline of the tissue, and an empty pixel has none at all.
    """
    bare = replace(
        tissue, background=2**15, brightness=0.0, offset=0.0, read_noise=0.0, shot_gain=0.0
    )
    return render(bare, region)[0][0] > 0
