"""Walk over two label images block by block, and count them field by field.

*Blocks* are what is read at once: their size follows the chunks of both images, so that a chunk is
decoded once and memory stays bounded. *Fields* are what is reported: a fixed grid of squares,
whatever the chunks. The same integers come out for any blocks, order and executor.
"""

from __future__ import annotations

import math
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.cells.pixels import as_labels
from densebatch.scoring.contingency import Contingency, check_same_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from densebatch.cells.pixels import PixelSource

T = TypeVar("T")


class DaskClient(Protocol):
    """As much of `distributed.Client` as is used here, where Dask is not imported."""

    def get_executor(self) -> Executor:
        """A `concurrent.futures` executor that runs on the cluster."""

    def nthreads(self) -> Mapping[str, int]:
        """Threads by worker."""


Workers = int | Executor | DaskClient

# A block is small enough for several workers to hold two arrays and a decoder's copies, and large
# enough that a chunk which straddles two blocks is the exception.
BLOCK_PX = 2048
FIELD_PX = 1024


@dataclass(frozen=True)
class FieldCounts:
    """One contingency table for each field of an image.

    Attributes
    ----------
    grid
        The fields.
    tables
        A table for each field, in raster order.
    """

    grid: Grid
    tables: tuple[Contingency, ...]

    @cached_property
    def total(self) -> Contingency:
        """The table of the whole image."""
        return Contingency.sum(self.tables)

    def region(self, field: int) -> Region:
        """Pixels of the field with the given place in raster order."""
        return self.grid[divmod(field, self.grid.cols)]


def _find_unit(source: PixelSource) -> tuple[int, int]:
    """Rows and columns that are decoded at once: a shard, a chunk, or one pixel of an array."""
    unit = getattr(source, "shards", None) or getattr(source, "chunks", None) or (1, 1)
    return int(unit[-2]), int(unit[-1])


def plan_blocks(truth: PixelSource, pred: PixelSource, block_px: int = BLOCK_PX) -> Grid:
    """Choose the grid of blocks in which two images are read.

    Where a common multiple of both chunk lengths fits, no chunk is read twice. Otherwise blocks
    follow the larger chunk, and chunks of the other image that straddle blocks are read again.

    Parameters
    ----------
    truth, pred
        Images of the same shape.
    block_px
        Edge of a block; the area of a block is about its square, more where a chunk is larger.

    Returns
    -------
    Grid
        Blocks that cover the images.

    Examples
    --------
    >>> from types import SimpleNamespace as Image
    >>> a, b = (Image(shape=(9000, 9000), chunks=(n, n)) for n in (512, 1024))
    >>> plan_blocks(a, b)
    Grid(height=9000, width=9000, step_y=2048, step_x=2048)
    """
    (truth_y, truth_x), (pred_y, pred_x) = _find_unit(truth), _find_unit(pred)
    height, width = truth.shape
    if isinstance(truth, np.ndarray) and isinstance(pred, np.ndarray):
        # Whole rows of an array in memory need no copy.
        return Grid(height, width, min(height, max(1, block_px * block_px // width)), width)

    def choose_step(length: int, units: tuple[int, int], target: int) -> int:
        common = math.lcm(*units)
        unit = common if common <= target else max(units)
        return min(length, unit * max(1, target // unit))

    step_x = choose_step(width, (truth_x, pred_x), block_px)
    # Strips of a TIFF are as wide as the slide and few rows high: the area is what is bounded.
    step_y = choose_step(height, (truth_y, pred_y), max(1, block_px * block_px // step_x))
    return Grid(height, width, step_y, step_x)


@contextmanager
def open_workers(workers: Workers) -> Iterator[tuple[Executor | None, int]]:
    """Turn a number of threads, an executor or a Dask client into an executor and its width.

    Parameters
    ----------
    workers
        Threads of this process (0 or 1: none beside the caller), a `concurrent.futures` executor
        of threads or processes, or a `distributed.Client`. Neither Dask nor anything else is
        imported for it.

    Yields
    ------
    tuple
        The executor, None for the caller's own thread, and how many tasks it runs at once.
    """
    if isinstance(workers, int):
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                yield pool, workers
        else:
            yield None, 1
    elif isinstance(workers, Executor):
        yield workers, int(getattr(workers, "_max_workers", 4))
    else:
        yield workers.get_executor(), max(1, sum(workers.nthreads().values()))


def run_tasks(
    task: Callable[..., T], arguments: Iterable[tuple[Any, ...]], workers: Workers
) -> Iterator[T]:
    """Yield results in whatever order they come, with twice as many tasks waiting as workers.

    The window bounds the memory of results that nobody has taken yet, and what a scheduler loses
    when a worker dies. The first failure stops the rest.

    Parameters
    ----------
    task
        Function that an executor can send to where it runs.
    arguments
        Arguments of each task.
    workers
        See `open_workers`.

    Yields
    ------
    T
        What each task returned.
    """
    with open_workers(workers) as (executor, width):
        if executor is None:
            for args in arguments:
                yield task(*args)
            return
        pending: set[Future[T]] = set()
        try:
            for args in arguments:
                if len(pending) >= 2 * width:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
                pending.add(executor.submit(task, *args))
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


@dataclass(frozen=True)
class Part:
    """A rectangle of an image, as it is sent to whoever reads it.

    Attributes
    ----------
    source
        The image, or the rectangle alone where it is in memory.
    region
        Pixels of the source.
    role
        What the image is called where it has no name of its own.
    is_region
        Whether booleans are read, as 0 and 1.
    """

    source: PixelSource
    region: Region
    role: str
    is_region: bool = False

    @classmethod
    def cut(cls, source: PixelSource, region: Region, role: str, is_region: bool = False) -> Part:
        """A rectangle, without the rest of an array in memory."""
        if isinstance(source, np.ndarray):
            return cls(source[region.slices], Region(0, 0, *region.shape), role, is_region)
        return cls(source, region, role, is_region)

    def read(self) -> NDArray[np.uint32]:
        """The labels, contiguous.

        Raises
        ------
        InputError
            For pixels that are no labels or cannot be read.
        """
        where = getattr(self.source, "where", self.role)
        labels = as_labels(self.source[self.region.slices], where, masks=self.is_region)
        if labels.shape != self.region.shape:
            raise InputError(f"{where} returned {labels.shape} px for {self.region}")
        return labels


def check_images(truth: PixelSource, pred: PixelSource) -> None:
    """Refuse images of different shapes, and what is not two-dimensional or empty.

    Raises
    ------
    InputError
        With both shapes.
    """
    check_same_shape(truth, pred)
    if len(truth.shape) != 2 or 0 in truth.shape:
        where = getattr(truth, "where", "the truth")
        raise InputError(f"{where} has shape {truth.shape}; a label image has rows and columns")


def count_fields(
    truth: PixelSource,
    pred: PixelSource,
    *,
    field_px: int = FIELD_PX,
    block_px: int = BLOCK_PX,
    truth_is_region: bool = False,
    workers: Workers = 1,
) -> FieldCounts:
    """Count the pairs of labels of two images, field by field.

    Parameters
    ----------
    truth, pred
        Two-dimensional label images of the same shape: NumPy arrays, zarr arrays, or anything
        that slices to an array. Their chunks may differ.
    field_px
        Edge of a field.
    block_px
        Edge of what is read at once, rounded to chunks. Changes no number.
    truth_is_region
        Whether `truth` is a region to be ignored, which may be of booleans, and no label image.
    workers
        Threads, an executor or a Dask client; see `open_workers`.

    Returns
    -------
    FieldCounts
        A table for each field.

    Raises
    ------
    InputError
        For different shapes, and for pixels that are no labels or cannot be read.
    """
    check_images(truth, pred)
    role = "the ignored region" if truth_is_region else "the truth"
    height, width = truth.shape
    fields = Grid(height, width, field_px, field_px)
    blocks = plan_blocks(truth, pred, block_px)
    arguments = (
        (
            Part.cut(truth, blocks[i], role, truth_is_region),
            Part.cut(pred, blocks[i], "the prediction"),
            blocks[i],
            fields,
        )
        for i in blocks
    )
    parts: list[list[Contingency]] = [[] for _ in range(len(fields))]
    for counted in run_tasks(_count_block, arguments, workers):
        for field, table in counted:
            parts[field].append(table)
            # Tables of many small blocks of one field would hold the same pairs over and over.
            if len(parts[field]) > 16:
                parts[field] = [Contingency.sum(parts[field])]
    return FieldCounts(fields, tuple(Contingency.sum(tables) for tables in parts))


def _count_block(
    truth: Part, pred: Part, block: Region, fields: Grid
) -> list[tuple[int, Contingency]]:
    """Tables of a block's share of each field, with the field's place in raster order."""
    truth_labels, pred_labels = truth.read(), pred.read()
    counted = []
    for row, col in fields.overlapping(block):
        inside = fields[row, col].intersect(block)
        if inside is not None:
            part = inside.shift(-block.y0, -block.x0)
            table = Contingency.count_part(truth_labels, pred_labels, part)
            counted.append((row * fields.cols + col, table))
    return counted
