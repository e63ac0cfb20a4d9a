"""The same label tiles through several ways to join them: cells cut, merged and counted twice.

    python benchmarks/stitching/run.py --work SCRATCH

A simulated slide, whose cells are known, is cut into tiles that share two diameters of the median
cell, from end to end, and each tile is labelled by itself in two ways, with ids that mean nothing:

- right: the true cells, as far as the tile shows them;
- ragged: outlines are ragged within two diameters of the tile's border, and cells that the border
  cuts are dropped or split, as a segmenter does that looks at what is around.

A tile is a block of a regular grid with half the overlap on every side. Most peers join what lies
side by side, so they get the blocks without what is around them, as `distributed_eval` cuts them:

- none: nothing is joined;
- touch: labels that face each other across a border are one cell;
- dask-image 2026.5.0: the merge of `ndmeasure.label`;
- cellpose 3.1.1.3: the merge of `contrib.distributed_segmentation`. It is made for volumes, and an
  image of two axes fails there, so it is given as a volume of one plane, and of five equal ones;
- patchworks 3.3.0: its merge by IoU, which compares what is around blocks.

The last three run in virtual environments in SCRATCH with the versions pinned beside this file. No
time is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from faults import count_faults
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from densebatch.base.geometry import Grid, Region
from densebatch.merging.in_memory import merge_tiles
from densebatch.merging.layout import Layout
from densebatch.simulation.tissue import Tissue, render
from densebatch.studies.benchmark_record import describe_machine, describe_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent
RESULT = HERE.parent / "results/stitching.json"
CELLPOSE = "cellpose==3.1.1.3"
# The environment and the method of each peer.
PEERS = {
    "dask-image": ("cellpose", "dask-image"),
    "cellpose, one plane": ("cellpose", "cellpose 1"),
    "cellpose, five planes": ("cellpose", "cellpose 5"),
    "patchworks": ("patchworks", "patchworks"),
}
SHRUNK_PX = 2  # so near to a border cells lose most of their outline
_TAIL = 300


def read_pins(name: str) -> list[str]:
    """Packages and versions of one environment, those that come without what they ask for last."""
    lines = (HERE / f"requirements-{name}.txt").read_text().splitlines()[1:]
    return [*lines, CELLPOSE] if name == "cellpose" else lines


def build_environment(name: str, work: Path) -> Path:
    """An environment of peers; its Python."""
    folder = work / f"env-{name}"
    python, mark = folder / "bin/python", folder / "installed.txt"
    pins = "\n".join(read_pins(name))
    if not mark.exists() or mark.read_text() != pins:
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        requirements = str(HERE / f"requirements-{name}.txt")
        subprocess.run([*install, "-r", requirements], check=True)
        if name == "cellpose":
            subprocess.run([*install, "--no-deps", CELLPOSE], check=True)
        mark.write_text(pins)
    return python


def draw_truth(size: int, diameter: float) -> NDArray[np.int64]:
    """Cells of a slide, 1..N."""
    tissue = Tissue(size, size, seed=11, cell_diameter_px=diameter, stained_fraction=0.8)
    ids, which = np.unique(render(tissue, Region(0, 0, size, size))[1], return_inverse=True)
    return which.reshape(size, size) + (0 if ids[0] == 0 else 1)


def median_extent(truth: NDArray[np.int64]) -> int:
    """Of the cells, from end to end along rows or columns."""
    boxes = ndimage.find_objects(truth)
    return round(float(np.median([max(s.stop - s.start for s in box) for box in boxes if box])))


def cut_slide(size: int, tile: int, overlap: int) -> tuple[Grid, Layout]:
    """Blocks of a regular grid, and the tiles: blocks with half the overlap on every side."""
    blocks = Grid(size, size, tile - overlap, tile - overlap)
    tiles = [blocks[index].expand(overlap // 2).clip(size, size) for index in blocks]
    return blocks, Layout(tuple(tiles))


def label_tile(
    truth: NDArray[np.int64], layout: Layout, tile: int, kind: str, diameter: int
) -> NDArray[np.int64]:
    """Labels of a tile, under random ids."""
    region = layout.regions[tile]
    rng = np.random.default_rng((region.y0, region.x0))
    ids, labels = np.unique(truth[region.slices], return_inverse=True)
    labels = labels.reshape(region.shape) + (0 if ids[0] == 0 else 1)
    n = int(labels.max())
    if kind == "ragged":
        boxes = ndimage.find_objects(labels)
        box = np.array([(b[0].start, b[1].start, b[0].stop, b[1].stop) for b in boxes])
        far = layout.distances(tile, box + np.array([region.y0, region.x0] * 2))
        rough = np.select([far < SHRUNK_PX, far < 2 * diameter], [0.7, 0.05], 0.0)
        rough = np.concatenate([[0.0], rough])
        edge = ndimage.grey_erosion(labels, 3, mode="nearest") != labels
        labels[edge & (rng.random(labels.shape) < rough[labels])] = 0
        for cell in np.flatnonzero(far == 0) + 1:
            at, fate = boxes[cell - 1], rng.random()
            rows, cols = np.nonzero(labels[at] == cell)
            if fate < 0.2:
                labels[at][rows, cols] = 0
            elif fate < 0.5 and rows.size:
                half = rows + cols > np.median(rows + cols)
                labels[at][rows[half], cols[half]] = n + cell
        n *= 2
    new = np.concatenate([[0], rng.choice(10**6, n, replace=False) + 1])
    return new[labels]


def lay_side_by_side(
    grid: Grid, layout: Layout, tiles: list[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Labels of all blocks, ids unique on the slide."""
    side_by_side = np.zeros((grid.height, grid.width), np.int64)
    used = 0
    for index, region, labels in zip(grid, layout.regions, tiles, strict=True):
        block = labels[grid[index].shift(-region.y0, -region.x0).slices]
        ids, which = np.unique(block, return_inverse=True)
        numbers = np.zeros(ids.size, np.int64)
        numbers[ids > 0] = np.arange(1, (ids > 0).sum() + 1) + used
        used += int((ids > 0).sum())
        side_by_side[grid[index].slices] = numbers[which].reshape(block.shape)
    return side_by_side


def merge_touching(blocks: NDArray[np.int64], starts: list[int]) -> NDArray[np.int64]:
    """Labels that face each other across a border become one."""
    pairs = []
    for image in (blocks, blocks.T):
        for line in starts[1:]:
            facing = np.stack([image[line - 1], image[line]])
            pairs.append(facing[:, (facing > 0).all(axis=0)])
    a, b = np.concatenate(pairs, axis=1)
    n = int(blocks.max()) + 1
    graph = coo_array((np.ones(a.size, bool), (a, b)), shape=(n, n))
    joined = connected_components(graph, directed=False)[1] + 1
    joined[0] = 0
    return np.asarray(joined[blocks])


def merge_by_peer(
    python: Path, method: str, arrays: dict[str, Any], work: Path
) -> NDArray[np.int64] | str:
    """Labels, or what the peer said when it failed."""
    given, made = work / "given.npz", work / "labels.npy"
    np.savez(given, **arrays)
    job = {"given": str(given), "method": method, "labels": str(made)}
    done = subprocess.run(
        [str(python), str(HERE / "peers.py"), json.dumps(job)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:_TAIL]
    return np.asarray(np.load(made))


def compact(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels without gaps."""
    ids, which = np.unique(labels, return_inverse=True)
    return which.reshape(labels.shape) + (0 if ids[0] == 0 else 1)


def compare(
    truth: NDArray[np.int64],
    side: int,
    kind: str,
    diameter: int,
    pythons: dict[str, Path],
    work: Path,
) -> list[dict[str, Any]]:
    """A row for each way to join tiles of a side, labelled in one way."""
    size = truth.shape[0]
    grid, layout = cut_slide(size, side, 2 * diameter)
    tiles = [label_tile(truth, layout, k, kind, diameter) for k in range(len(layout.regions))]
    merged = merge_tiles(
        [(r.y0, r.x0, labels) for r, labels in zip(layout.regions, tiles, strict=True)],
        (size, size),
    )
    counted = {
        "candidate_pairs": merged.decision.candidate_pairs,
        "merged": merged.decision.merged,
        "resolved_px": merged.resolved_px,
        "larger_than_overlap": len(merged.decision.larger),
        "dropped_pieces": len(merged.decision.dropped),
    }
    rows: list[dict[str, Any]] = [
        {"name": "densebatch", **count_faults(truth, merged.labels), "merging": counted}
    ]
    blocks = lay_side_by_side(grid, layout, tiles)
    starts = [grid[0, col].x0 for col in range(grid.cols)]
    found: dict[str, NDArray[np.int64] | str] = {
        "none": blocks,
        "touch": merge_touching(blocks, starts),
    }
    arrays = {"blocks": blocks, "starts": starts, "overlap": 2 * diameter}
    arrays |= {str(k): labels for k, labels in enumerate(tiles)}
    for name, (environment, method) in PEERS.items():
        if environment in pythons:
            found[name] = merge_by_peer(pythons[environment], method, arrays, work)
    for name, labels in found.items():
        failed = isinstance(labels, str)
        told = {"failed": labels} if failed else count_faults(truth, compact(labels))
        rows.append({"name": name, **told})
    return rows


def format_table(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| tiles | labelled | joined by | labels | IoU ≥ 0.9 | cut | merges | duplicates |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in record["runs"]:
        for row in run["rows"]:
            numbers = (
                f"{row['labels']} | {row['good']:.4f} | {row['cut']} | {row['merges']} "
                f"| {row['duplicates']} |"
                if "labels" in row
                else f"failed: {row['failed']} | | | | |"
            )
            lines.append(f"| {run['tile']} | {run['labelled']} | {row['name']} | {numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, kept")
    parser.add_argument("--size", type=int, default=2048, help="side of the slide, px")
    parser.add_argument(
        "--diameter", type=float, default=16, help="of a cell as the simulator says"
    )
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--no-peers", action="store_true", help="build no environment")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    names = () if options.no_peers else ("cellpose", "patchworks")
    pythons = {name: build_environment(name, work) for name in names}
    truth = draw_truth(options.size, options.diameter)
    diameter = median_extent(truth)
    runs = []
    for tile in options.tiles:
        for kind in ("right", "ragged"):
            rows = compare(truth, tile, kind, diameter, pythons, work)
            runs.append({"tile": tile, "labelled": kind, "rows": rows})
            print(json.dumps(runs[-1]), flush=True)
    record = {
        "command": "python benchmarks/stitching/run.py --work SCRATCH",
        "machine": describe_machine(),
        "versions": {"densebatch": describe_versions(),
                     **{name: read_pins(name) for name in names}},
        "settings": {"size": options.size, "cells": int(truth.max()), "overlap_px": 2 * diameter,
                     "median_extent_px": diameter},
        "runs": runs,
    }  # fmt: skip
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    table = format_table(record)
    options.out.with_suffix(".md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
