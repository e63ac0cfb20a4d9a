"""What is known of Cellpose 4's networks without torch: the sizes of one, and why not the other."""

from __future__ import annotations

from typing import NamedTuple

WHY_NO_DINO = "its encoder, DINOv3, is under a licence of its own and no part of densebatch"


class SamSizes(NamedTuple):
    """Sizes of a Cellpose-SAM network, read from the shapes of its weights.

    Attributes
    ----------
    inputs : planes
    width : of a token
    heads : of each attention
    hidden : width within a block's perceptron
    neck : channels after the encoder
    token_px : side of a token
    grid : tokens along a side of the patch, which is fixed
    depth : blocks
    wide : relative positions that blocks with attention over all of SAM's image have
    narrow : those that the others have; stretched to the patch's, as Cellpose does
    every : of so many blocks the last is a wide one
    """

    inputs: int
    width: int
    heads: int
    hidden: int
    neck: int
    token_px: int
    grid: int
    depth: int
    wide: int
    narrow: int
    every: int

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return self.grid * self.token_px

    def count_positions(self, block: int) -> int:
        """Relative positions that a block's weights know, along each axis."""
        return self.wide if (block + 1) % self.every == 0 else self.narrow


FULL_SAM = SamSizes(3, 1024, 16, 4096, 256, 8, 32, 24, 127, 27, 6)
"""Of `cpsam` and `cpsam_v2`: SAM's ViT-L with tokens of 8 px and patches of 256 px."""
