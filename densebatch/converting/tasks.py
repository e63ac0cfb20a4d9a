"""What a task of a conversion does, on a worker: copy a shard of the slide, or reduce one.

Each reads back what it has written, and compares it with what was to be there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xxhash

from densebatch.base.errors import DensebatchError
from densebatch.base.process import Meter
from densebatch.cells.labels import (
    checksum_unit,
    digest_pixels,
    digest_unit,
    downsample_image,
    shard_grid,
    write_image_shard,
)
from densebatch.stages.output import levels_with, output_spec
from densebatch.stages.work import Task
from densebatch.stages.writing import write_patiently

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.cells.pyramid_spec import PyramidSpec


@dataclass(frozen=True)
class _Shard(Task):
    """A task that writes a shard of all channels.

    Attributes
    ----------
    level, row, col : shard; of several levels that one task writes, the first
    root : OME-Zarr image group that is written
    """

    level: int
    row: int
    col: int
    root: str = field(compare=False)
    stage: ClassVar[str] = "copy"

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return f"copy-{self.level}-{self.row}-{self.col}"

    @property
    def spec(self) -> PyramidSpec:
        """Of the image that is written."""
        return output_spec(self.work.plan, self.root)

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether the files of the shard are as they were written."""
        return bool(facts["files"] == self.list_files())

    def list_files(self) -> dict[str, str]:
        """Checksums of its files as they are now, by name."""
        spec = self.spec
        return {
            name: checksum
            for channel in range(len(spec.channels))
            for level in levels_with(spec, self.level)
            for name, checksum in checksum_unit(
                spec, level, shard_grid(spec, level)[self.row, self.col], channel
            ).items()
        }

    def compare(
        self, spec: PyramidSpec, channel: int, level: int, region: Region, pixels: NDArray[Any]
    ) -> None:
        """Read a shard back.

        Raises
        ------
        DensebatchError
            If it is not what was written.
        """
        if digest_unit(spec, level, region, channel) != digest_pixels(pixels):
            raise DensebatchError(
                f"{self.root}: what was read back of channel {channel}, level {level}, at "
                f"{list(region.slices)} is not what was written"
            )


@dataclass(frozen=True)
class CopyShard(_Shard):
    """Copy a shard of the slide at full resolution."""

    def run(self) -> dict[str, Any]:
        """Facts: checksums of files, a digest of the slide's pixels, and costs."""
        meter, spec, plan = Meter(), self.spec, self.work.plan
        region = shard_grid(spec, 0)[self.row, self.col]
        seen = xxhash.xxh3_128()
        for channel in range(len(spec.channels)) if plan.counts_in(region) else ():
            with meter.timed("read"):
                pixels = self.work.read_slide(channel, region)
                if plan.region is not None:
                    inside = plan.region.find_inside(region)
                    pixels = np.where(inside, pixels, np.zeros((), pixels.dtype))
            with meter.timed("write"):
                write = partial(write_image_shard, spec, channel, 0, region, pixels)
                write_patiently(Path(self.root), write)
            with meter.timed("compare"):
                self.compare(spec, channel, 0, region, pixels)
                seen.update(digest_pixels(pixels).encode())
        facts = {"files": self.list_files(), "pixels": seen.hexdigest(), **meter.read()}
        return self.work.record(self.name, [], facts)


@dataclass(frozen=True)
class ReduceShard(_Shard):
    """Make a shard of a level from the level below, and of those that `group_levels` adds.

    Attributes
    ----------
    inputs : digest of what it is made from, kept in its record
    """

    inputs: str = field(compare=False)

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether it was made from what there is now, and is as it was written."""
        return facts["inputs"] == self.inputs and super().is_current(facts)

    def run(self) -> dict[str, Any]:
        """Facts: checksums of files, and costs."""
        meter, spec = Meter(), self.spec
        for channel in range(len(spec.channels)):
            below = None
            for level in levels_with(spec, self.level):
                region = shard_grid(spec, level)[self.row, self.col]
                with meter.timed("pyramid"):
                    reduce = partial(downsample_image, spec, channel, level, region, below)
                    below = write_patiently(Path(self.root), reduce)
                with meter.timed("compare"):
                    self.compare(spec, channel, level, region, below)
        facts = {"inputs": self.inputs, "files": self.list_files(), **meter.read()}
        return self.work.record(self.name, [], facts)
