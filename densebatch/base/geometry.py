"""Regions, tiles and the patch lattice: integer arithmetic only.

Two grids cover a slide. The *lattice* is where the network is evaluated: it depends on the slide
and the model alone, so that no setting of a run can change a flow. *Tiles* divide the work of
tracing and may be of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, order=True)
class Region:
    """A half-open rectangle of pixels, rows `y0..y1` and columns `x0..x1`.

    Examples
    --------
    >>> Region(0, 0, 4, 6).expand(2).clip(5, 5)
    Region(y0=0, x0=0, y1=5, x1=5)
    >>> Region(2, 2, 4, 6).shift(-2, -2).slices
    (slice(0, 2, None), slice(0, 4, None))
    """

    y0: int
    x0: int
    y1: int
    x1: int

    def __post_init__(self) -> None:
        if self.y1 < self.y0 or self.x1 < self.x0:
            raise ValueError(f"region ends before it begins: {self}")

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def expand(self, margin: int) -> Region:
        """Grow by `margin` pixels on every side (the result may leave the slide)."""
        return Region(self.y0 - margin, self.x0 - margin, self.y1 + margin, self.x1 + margin)

    def clip(self, height: int, width: int) -> Region:
        """The part inside an image of `height` by `width` pixels; empty if there is none."""
        y0, x0 = min(max(self.y0, 0), height), min(max(self.x0, 0), width)
        return Region(y0, x0, max(y0, min(self.y1, height)), max(x0, min(self.x1, width)))

    def slices_in(self, whole: Region) -> tuple[slice, slice]:
        """Where the region lies in the pixels of another; nowhere, if they have none in common.

        Examples
        --------
        >>> Region(2, 2, 9, 9).slices_in(Region(4, 0, 8, 5))
        (slice(0, 4, None), slice(2, 5, None))
        """
        return self.shift(-whole.y0, -whole.x0).clip(*whole.shape).slices

    def shift(self, dy: int, dx: int) -> Region:
        return Region(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def intersect(self, other: Region) -> Region | None:
        """The common part, or None if there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Region(y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None


@dataclass(frozen=True)
class Grid:
    """A partition of `height` by `width` pixels into rectangles of one size, the last ones cut.

    Examples
    --------
    >>> grid = Grid(10, 7, 4, 4)
    >>> grid.rows, grid.cols, grid[1, 1]
    (3, 2, Region(y0=4, x0=4, y1=8, x1=7))
    >>> list(grid.overlapping(Region(3, 0, 5, 2)))
    [(0, 0), (1, 0)]
    """

    height: int
    width: int
    step_y: int
    step_x: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.step_y, self.step_x) < 1:
            raise ValueError(f"a grid has positive sizes, not {self}")

    @property
    def rows(self) -> int:
        return -(-self.height // self.step_y)

    @property
    def cols(self) -> int:
        return -(-self.width // self.step_x)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __getitem__(self, index: tuple[int, int]) -> Region:
        row, col = index
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"{index} is outside a grid of {self.rows}x{self.cols}")
        y0, x0 = row * self.step_y, col * self.step_x
        return Region(y0, x0, min(y0 + self.step_y, self.height), min(x0 + self.step_x, self.width))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((row, col) for row in range(self.rows) for col in range(self.cols))

    def overlapping(self, region: Region) -> Iterator[tuple[int, int]]:
        """Indices of the rectangles that share a pixel with `region`, in raster order."""
        inside = region.clip(self.height, self.width)
        if inside.area == 0:
            return
        for row in range(inside.y0 // self.step_y, -(-inside.y1 // self.step_y)):
            for col in range(inside.x0 // self.step_x, -(-inside.x1 // self.step_x)):
                yield row, col


@dataclass(frozen=True)
class Axis:
    """The lattice along one axis: `n` patches of `patch` pixels whose cores are `step` apart.

    Patch `k` covers `[k step - margin, k step - margin + patch)` and its trusted core is
    `[k step, (k + 1) step)`; what lies outside the slide is padding.
    """

    length: int
    patch: int
    margin: int
    n: int

    @property
    def step(self) -> int:
        return self.patch - 2 * self.margin


_MAX_EVALUATED = 1.072  # of an axis; its square, of an area, is just below 1.15
_MAX_STRETCH = 3


def fit_axis(
    length: int, patch: int, margin: int, multiple: int, *, stretches: bool = True
) -> Axis:
    """Choose the patch length with which the lattice covers an axis without much waste.

    A lattice of one fixed patch wastes up to a whole patch at the far edge, 20 % of a field of
    1400 px. So the patch may be longer than the model's own, as little as is needed; never
    shorter, for the style is a mean over the patch and becomes noisier with fewer pixels. The
    choice depends on the slide's length and the model only.

    Parameters
    ----------
    length
        Pixels of the slide along the axis, at the network's scale.
    patch
        The model's patch length.
    margin
        Pixels at each end of a patch that are not trusted.
    multiple
        Patch lengths are multiples of this (the network's stride).
    stretches
        Whether the patch may be longer; a transformer knows places in patches of one size only.

    Returns
    -------
    Axis
        With the shortest patch, from the model's own to three times that, that evaluates at most
        1.072 times the axis; if there is none, as on an axis of a few patches, with the patch that
        evaluates the fewest pixels, of equal ones the shortest.

    Raises
    ------
    ValueError
        If the axis is empty or no patch length is allowed.

    Examples
    --------
    >>> fit_axis(1040, 224, 8, 16)
    Axis(length=1040, patch=368, margin=8, n=3)
    >>> fit_axis(1392, 224, 8, 16)
    Axis(length=1392, patch=368, margin=8, n=4)
    """
    if length < 1:
        raise ValueError(f"an axis has at least one pixel, not {length}")
    first = -(-patch // multiple) * multiple
    candidates = [
        Axis(length, size, margin, -(-length // (size - 2 * margin)))
        for size in range(first, (_MAX_STRETCH if stretches else 1) * patch + 1, multiple)
        if size > 2 * margin
    ]
    if not candidates:
        raise ValueError(
            f"no multiple of {multiple} px from {patch} to {_MAX_STRETCH * patch} px exceeds twice "
            f"the margin of {margin} px"
        )
    for axis in candidates:
        if axis.n * axis.patch <= _MAX_EVALUATED * length:
            return axis
    return min(candidates, key=lambda axis: (axis.n * axis.patch, axis.patch))


@dataclass(frozen=True)
class Lattice:
    """Network patches of a whole slide, at the network's scale."""

    y: Axis
    x: Axis

    @property
    def cores(self) -> Grid:
        """The trusted parts: a partition of the slide."""
        return Grid(self.y.length, self.x.length, self.y.step, self.x.step)

    @property
    def patch_area(self) -> int:
        return self.y.patch * self.x.patch

    def patch(self, row: int, col: int) -> Region:
        """Pixels that the network sees for a core; may reach outside the slide."""
        y0, x0 = row * self.y.step - self.y.margin, col * self.x.step - self.x.margin
        return Region(y0, x0, y0 + self.y.patch, x0 + self.x.patch)
