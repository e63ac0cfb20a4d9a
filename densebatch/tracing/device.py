"""The two parts of tracing that take most of its time, on a GPU: following and flow errors.

The results are those of `dynamics.CpuDynamics` to the bit, so that it does not matter which worker
traces a tile: every operation on a pixel is the one that a CPU does, in the same order. That is why
they are PyTorch's elementwise operations one by one, and not a kernel of our own or a compiled one:
compilers for GPUs make one rounding out of the two of a product and a sum, these operations do not.
Sums over a cell's pixels, whose order a GPU would choose, are left to the CPU.

Here all pixels of a tile advance together, and those that have arrived leave every few steps. The
same code runs on a CPU, slower than `follow`; the tests run it so.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from densebatch.tracing.diffusion import count_rounds
from densebatch.tracing.follow import LEAVE_STEPS, ROUNDING
from densebatch.tracing.follow_plain import DROPPED
from densebatch.tracing.quality import average_errors, keep_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from densebatch.tracing.candidates import Candidates
    from densebatch.tracing.follow_plain import Bounds

_MOST_FLOATS = 2**24  # integers that float32 holds exactly: windows are far smaller


@contextmanager
def _on_device() -> Iterator[None]:
    """Without gradients; for want of device memory a MemoryError, and the cache is emptied."""
    try:
        with torch.inference_mode():
            yield
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from error


class DeviceDynamics:
    """`dynamics.Dynamics` of one window's flows on a device.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32, finite: dy, dx in pixels per step.
    device
        `cuda`; `cpu` in tests.

    Raises
    ------
    MemoryError
        Here or from a method, if the device has too little memory left.
    """

    def __init__(self, flows: NDArray[np.float32], device: str) -> None:
        if max(flows.shape) >= _MOST_FLOATS:
            raise ValueError(f"window {flows.shape[:2]}: sides are to be below {_MOST_FLOATS} px")
        self._device = torch.device(device)
        self._shape = flows.shape[:2]
        with _on_device():
            # One pixel more than the window has, so that the last one has a next one.
            self._flows = torch.zeros((flows.shape[0] * flows.shape[1] + 1, 2), device=device)
            self._flows[:-1] = self._put(flows.reshape(-1, 2))

    def _put(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    @_on_device()
    def follow(
        self,
        foreground: NDArray[np.bool_],
        bounds: Bounds,
        iterations: int,
        limit: float,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `dynamics.Dynamics.follow`."""
        height, width = self._shape
        ends = torch.full((height * width,), DROPPED, dtype=torch.int32, device=self._device)
        travel = torch.zeros(height * width, device=self._device)
        pixel = self._put(foreground).reshape(-1).nonzero()[:, 0]
        start = torch.stack([pixel // width, pixel % width]).float()
        pixels = _Pixels(pixel, start, iterations)
        first, last, edge = (
            torch.tensor(pair, dtype=torch.float32, device=self._device)[:, None]
            for pair in (bounds[:2], bounds[2:], (height - 1, width - 1))
        )
        limit = float(np.float32(limit))
        step, mark = 0, 0
        while pixels.pixel.numel():
            corners = self._gather(pixels, last, edge, step)
            pixels.advance(corners, first, last, limit, step)
            step += 1
            pixels.shorten_cycles(step, mark, iterations)
            if step == max(1, 2 * mark):
                mark = step
                pixels.mark = pixels.moved
            if step % LEAVE_STEPS == 0:
                pixels.stop_caught(corners, last, limit)
                pixels = pixels.drop_arrived(ends, travel, edge)
        return (
            ends.reshape(self._shape).cpu().numpy(),
            travel.reshape(self._shape).cpu().numpy(),
        )

    def _gather(
        self, pixels: _Pixels, last: torch.Tensor, edge: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Flows of the four corners, `(2, 2, 2, n)`: below, right, axis.

        A pixel that needs a corner outside the window is lost.
        """
        upper = pixels.start + pixels.moved.floor()
        lower = torch.minimum(upper + 1.0, last)
        outside = ((upper < 0.0) | (lower > edge)).any(0)
        pixels.lost |= outside & pixels.goes & (step < pixels.end)
        pixels.goes &= ~pixels.lost
        rows = torch.stack([upper[0], lower[0]]).minimum(edge[0]).clamp(min=0.0).long()
        left = upper[1].minimum(edge[1]).clamp(min=0.0).long()
        index = rows * self._shape[1] + left
        # On the slide's last column there is no right neighbour: what stands there has weight 0.
        return self._flows[torch.stack([index, index + 1], dim=1)].movedim(-1, 2)

    def measure_errors(self, labels: NDArray[np.int32], cells: Candidates) -> NDArray[np.float64]:
        """See `dynamics.Dynamics.measure_errors`."""
        kept = keep_cells(labels, cells)
        rounds = count_rounds(cells.y1 - cells.y0, cells.x1 - cells.x0)
        errors: NDArray[np.float64] = average_errors(kept, cells, self._compare(kept, rounds))
        return errors

    @_on_device()
    def _compare(self, labels: NDArray[np.int32], rounds: NDArray[np.int32]) -> NDArray[np.float32]:
        """Squared differences between the flows and those that the cells' shapes ought to have.

        Parameters
        ----------
        labels
            `(h, w)`, of the cells to compare; 0 elsewhere.
        rounds
            Of diffusion, per label, the first for label 1; see `diffusion.diffuse_cell`.

        Returns
        -------
        ndarray
            `(n,)` float32, of the pixels of cells, in raster order.
        """
        height, width = self._shape
        stride = width + 2
        grid = torch.zeros((height + 2, stride), dtype=torch.int32, device=self._device)
        grid[1:-1, 1:-1] = self._put(labels)
        grid = grid.reshape(-1)
        raster = grid.nonzero()[:, 0]
        n = raster.numel()
        if n == 0:
            return np.zeros(0, np.float32)
        cell = grid[raster].long() - 1
        centres = _find_centres(raster, cell, rounds.size, stride)
        # Cells that need more rounds come first, so that those that still diffuse are the first m.
        # Place n, one more than there are pixels, stands for whatever is outside of a cell.
        needed = self._put(rounds)[cell]
        order = torch.sort(needed, descending=True, stable=True).indices
        place = torch.full((grid.numel(),), n, dtype=torch.int64, device=self._device)
        place[raster[order]] = torch.arange(n, device=self._device)
        at = raster[order]
        shifts = [dy * stride + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        around = torch.stack(
            [torch.where(grid[at + s] == grid[at], place[at + s], n) for s in shifts]
        )
        unit = torch.zeros(n, dtype=torch.float64, device=self._device)
        unit[place[centres]] = 1.0
        heat = torch.zeros(n + 1, dtype=torch.float64, device=self._device)
        _diffuse(heat, unit, around, needed[order])
        down = heat[around[7]] - heat[around[1]]
        across = heat[around[5]] - heat[around[3]]
        norm = (down * down + across * across).sqrt() + 1e-60
        shape = torch.stack([down / norm, across / norm], dim=1).float()
        y, x = at // stride - 1, at % stride - 1
        error = shape - self._flows[y * width + x]
        error = error * error
        result = torch.empty(n, device=self._device)
        result[order] = error[:, 0] + error[:, 1]
        return result.cpu().numpy()


def _find_centres(
    raster: torch.Tensor, cell: torch.Tensor, n_cells: int, stride: int
) -> torch.Tensor:
    """Of each cell the pixel nearest to its mean position, the first in raster order on a tie."""
    device = raster.device
    y, x = raster // stride, raster % stride
    far = torch.iinfo(torch.int64).max
    zeros = torch.zeros(n_cells, dtype=torch.int64, device=device)
    count = zeros.index_add(0, cell, torch.ones_like(cell))
    distance = torch.zeros(cell.numel(), dtype=torch.float64, device=device)
    for axis in (x, y):
        least = torch.full((n_cells,), far, dtype=torch.int64, device=device)
        least = least.scatter_reduce(0, cell, axis, "amin")
        inner = axis - least[cell]  # in the cell's own box, as a CPU counts
        mean = (zeros.index_add(0, cell, inner) + count).double() / count.double()
        off = (inner + 1).double() - mean[cell]
        distance = distance + off * off
    nearest = torch.full((n_cells,), torch.inf, dtype=torch.float64, device=device)
    nearest = nearest.scatter_reduce(0, cell, distance, "amin")
    candidate = torch.where(distance == nearest[cell], raster, far)
    centres = torch.full((n_cells,), far, dtype=torch.int64, device=device)
    centres = centres.scatter_reduce(0, cell, candidate, "amin")
    return centres[count > 0]


def _diffuse(
    heat: torch.Tensor, unit: torch.Tensor, around: torch.Tensor, needed: torch.Tensor
) -> None:
    """Rounds of diffusion, as many for each pixel as it needs; these fall along the pixels."""
    values, counts = torch.unique_consecutive(needed, return_counts=True)
    stops = list(zip(values.tolist(), counts.cumsum(0).tolist(), strict=True))
    done = 0
    for last, m in reversed(stops):  # the fewest rounds are what all pixels need
        nine = around[:, :m].contiguous()
        for _ in range(done, last):
            heat[:m] += unit[:m]
            near = heat[nine]
            rows = near[0::3] + near[1::3] + near[2::3]
            heat[:m] = (1.0 / 9.0) * (rows[0] + rows[1] + rows[2])
        done = last


class _Pixels:
    """The pixels that are being followed.

    Attributes
    ----------
    pixel : `(n,)` int64; linear index of the start
    start : `(2, n)` float32; row and column of it
    moved : `(2, n)` float32; displacement from it
    mark : `(2, n)` float32; displacement at the last step that was a power of two
    far : `(n,)` float32; largest displacement along an axis
    end : `(n,)` int64; the step at which a pixel has arrived, whatever it does
    goes, lost : `(n,)` bool; a pixel that has arrived is neither
    cycles : `(n,)` bool; back at the mark since the last step
    """

    def __init__(self, pixel: torch.Tensor, start: torch.Tensor, iterations: int) -> None:
        self.pixel, self.start = pixel, start
        self.moved = torch.zeros_like(start)
        self.mark = torch.zeros_like(start)
        self.far = torch.zeros_like(start[0])
        self.end = torch.full_like(pixel, iterations)
        self.goes = torch.ones_like(pixel, dtype=torch.bool)
        self.lost = torch.zeros_like(self.goes)
        self.cycles = torch.zeros_like(self.goes)

    def advance(
        self,
        corners: torch.Tensor,
        first: torch.Tensor,
        last: torch.Tensor,
        limit: float,
        step: int,
    ) -> None:
        """One step; see `follow`."""
        part = self.moved - self.moved.floor()
        rest = 1.0 - part
        (upper_left, upper_right), (lower_left, lower_right) = corners
        go = upper_left * (rest[0] * rest[1]) + upper_right * (rest[0] * part[1])
        go = go + (lower_left * (part[0] * rest[1]) + lower_right * (part[0] * part[1]))
        moved = torch.minimum(last - self.start, torch.maximum(first - self.start, self.moved + go))
        arrived = self.goes & ((step >= self.end) | (moved == self.moved).all(0))
        moves = self.goes & ~arrived
        far = torch.maximum(self.far, moved.abs().amax(0))
        lost = moves & (far > limit)
        self.cycles = moves & (moved == self.mark).all(0) & ~lost
        self.goes = moves & ~lost
        self.lost = self.lost | lost
        self.far = torch.where(moves, far, self.far)
        self.moved = torch.where(moves, moved, self.moved)

    def shorten_cycles(self, step: int, mark: int, iterations: int) -> None:
        """Pixels that are back at their mark take the other steps modulo the cycle's length."""
        left = step + (iterations - step) % (step - mark)
        self.end = torch.where(self.cycles & (self.end == iterations), left, self.end)

    def stop_caught(self, corners: torch.Tensor, last: torch.Tensor, limit: float) -> None:
        """Pixels that can no longer leave the square between four others have arrived."""
        (upper_left, upper_right), (lower_left, lower_right) = corners
        inwards = torch.stack(
            [
                *(upper_left[0], upper_right[0], -lower_left[0], -lower_right[0]),
                *(upper_left[1], lower_left[1], -upper_right[1], -lower_right[1]),
            ]
        )
        low, high = inwards.amin(0), inwards.amax(0)
        corner = self.moved.floor()
        within = (self.start + corner < last).all(0)
        far = torch.maximum(corner.abs(), (corner + 1.0).abs()).amax(0).maximum(self.far)
        caught = self.goes & (low >= float(ROUNDING)) & (high <= float(1 - ROUNDING))
        caught = caught & within & (far <= limit)
        self.goes = self.goes & ~caught
        self.far = torch.where(caught, far, self.far)

    def drop_arrived(self, ends: torch.Tensor, travel: torch.Tensor, edge: torch.Tensor) -> _Pixels:
        """Write the results of pixels that go no more; returns the others."""
        done = (~self.goes).nonzero()[:, 0]
        at = self.pixel[done]
        travel[at] = self.far[done]
        end = self.start[:, done] + self.moved[:, done].floor()
        inside = ((end >= 0.0) & (end <= edge)).all(0) & ~self.lost[done]
        linear = end[0].int() * (edge[1].int() + 1) + end[1].int()
        ends[at] = torch.where(inside, linear, DROPPED)
        kept = self.goes.nonzero()[:, 0]
        rest = _Pixels(self.pixel[kept], self.start[:, kept], 0)
        rest.moved, rest.mark = self.moved[:, kept], self.mark[:, kept]
        rest.far, rest.end = self.far[kept], self.end[kept]
        return rest
