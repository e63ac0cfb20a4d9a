"""How the survey of a slide grows with the workers, where reading is what takes time.

    python -m benchmarks.survey -o survey.json    # about two minutes
    python -m benchmarks.survey --quick           # small, to see that it runs

A slide of 65 536 by 2048 px is surveyed by 1, 2, 4 and 8 worker processes of this machine, of which
each read of a block of 512² px takes 50 ms more than it does, as on a slow network: so a few cores
stand for many machines. Beside it the same in this process, by its threads. Bounds must be the
same, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.slides.slide import Slide, open_slide
from densebatch.survey.channel import survey_channel
from densebatch.workers.cluster import open_executor
from densebatch.workers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from densebatch.survey.passes import PackedPart
    from densebatch.workers.executors import Executor

    Pixels = NDArray[Any]

BLOCK_PX = 512
DELAY_S = 0.05
WIDTH = 2048
_READ = Slide.read


def read_slowly(slide: Slide, channel: int, region: Region) -> Pixels:
    """As `Slide.read`, but for the time it takes."""
    blocks = -(-region.height // BLOCK_PX) * -(-region.width // BLOCK_PX)
    time.sleep(DELAY_S * blocks)
    return _READ(slide, channel, region)


def call_slowly(function: Callable[..., PackedPart], arguments: tuple[Any, ...]) -> PackedPart:
    """Call a function in a process whose reads are slow from then on."""
    Slide.read = read_slowly  # type: ignore[method-assign]
    return function(*arguments)


def do_bands(
    executor: Executor,
    sent: list[int],
    function: Callable[..., PackedPart],
    items: Sequence[tuple[Any, ...]],
) -> list[PackedPart]:
    """Have workers do the bands of a pass; notes how many bytes come back."""
    jobs = [Job(f"survey-{k}", call_slowly, (function, item)) for k, item in enumerate(items)]
    outcomes = {outcome.job.name: outcome for outcome in executor.run(jobs)}
    found = [outcomes[job.name].result for job in jobs]
    sent.extend(len(part.places) + len(part.values) for part in found)
    return found


def write_slide(path: Path, height: int) -> None:
    """One simulated field over and over, in OME-Zarr."""
    field = render(Tissue(WIDTH, WIDTH, seed=1), Region(0, 0, WIDTH, WIDTH))[0][:1]
    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array(
        "0", shape=(1, height, WIDTH), chunks=(1, BLOCK_PX, BLOCK_PX), dtype=field.dtype
    )
    for y in range(0, height, WIDTH):
        array[:, y : y + WIDTH] = np.roll(field, y // WIDTH, axis=2)
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = {"type": "scale", "scale": [1, 0.5, 0.5]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    height, counts = (4 * WIDTH, [1]) if given.quick else (32 * WIDTH, [1, 2, 4, 8])
    record: dict[str, Any] = {
        "quick": given.quick, "height_px": height, "width_px": WIDTH, "delay_s": DELAY_S,
        "cores": os.cpu_count(), "densebatch": version("densebatch"), "seconds": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.ome.zarr"
        write_slide(path, height)
        slide = open_slide(path)
        Slide.read = read_slowly  # type: ignore[method-assign]
        began = time.monotonic()
        expected = survey_channel(slide, 0, (1.0, 99.0))
        record["seconds"]["threads of this process"] = round(time.monotonic() - began, 2)
        Slide.read = _READ  # type: ignore[method-assign]
        for workers in counts:
            with open_executor(workers) as executor:
                sent: list[int] = []
                do_all = partial(do_bands, executor, sent)
                survey_channel(slide, 0, (1.0, 99.0), elsewhere=do_all)  # compiles
                del sent[:]
                began = time.monotonic()
                found = survey_channel(slide, 0, (1.0, 99.0), elsewhere=do_all)
                record["seconds"][f"{workers} workers"] = round(time.monotonic() - began, 2)
                record["bytes_of_histograms_a_band"] = round(sum(sent) / len(sent))
            if found.bounds != expected.bounds:
                raise SystemExit("the bounds differ")
    text = json.dumps(record, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
