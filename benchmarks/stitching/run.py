"""The same label tiles through several ways to join them: cells cut, merged and counted twice.

    python benchmarks/stitching/run.py --work SCRATCH

A simulated slide, whose cells are known, is cut into tiles that share two diameters of the median
cell, from end to end, and each tile is labelled by itself in two ways, with ids that mean nothing:

- right: the true cells, as far as the tile shows them;
- ragged: outlines are ragged within two diameters of the tile's border, and cells that the border
  cuts are dropped or split, as a segmenter does that looks at what is around.

The peers join what lies side by side, so they get the blocks between the middles of the overlaps,
as Cellpose's `distributed_eval` makes them:

- none: nothing is joined;
- touch: labels that face each other across a border are one cell;
- dask-image 2026.5.0: the merge of `ndmeasure.label`;
- cellpose 3.1.1.3: the merge of `contrib.distributed_segmentation`. It is made for volumes, and an
  image of two axes fails there, so it is given as a volume of one plane, and of five equal ones.

The last two run in a virtual environment in SCRATCH with the versions pinned beside this file. No
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

from densebatch.base.geometry import Region
from densebatch.merging.in_memory import merge_tiles
from densebatch.merging.layout import Layout
from densebatch.simulation.tissue import Tissue, render
from densebatch.studies.benchmark_record import describe_machine, describe_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent
RESULT = HERE.parent / "results/stitching.json"
CELLPOSE = "cellpose==3.1.1.3"
PEERS = {
    "dask-image": "dask-image",
    "cellpose, one plane": "cellpose 1",
    "cellpose, five planes": "cellpose 5",
}
SHRUNK_PX = 2  # so near to a border cells lose most of their outline
_TAIL = 300


def build_environment(work: Path) -> Path:
    """The peers' environment; its Python."""
    python = work / "env/bin/python"
    pins = (HERE / "requirements.txt").read_text()
    mark = work / "env/installed.txt"
    if not mark.exists() or mark.read_text() != pins:
        venv.create(work / "env", with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*install, "-r", str(HERE / "requirements.txt")], check=True)
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


def cut_slide(size: int, tile: int, overlap: int) -> Layout:
    """Tiles that share `overlap` px; the last ones end with the slide."""
    starts = sorted({min(s, size - tile) for s in range(0, size - overlap, tile - overlap)})
    return Layout(tuple(Region(y, x, y + tile, x + tile) for y in starts for x in starts))


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
    new = np.concatenate([[0], rng.choice(10**9, n, replace=False) + 1])
    return new[labels]


def lay_side_by_side(
    layout: Layout, tiles: list[NDArray[np.int64]], size: int
) -> tuple[NDArray[np.int64], list[int]]:
    """Blocks between the middles of overlaps, ids unique on the slide, and where they begin."""
    starts = sorted({region.x0 for region in layout.regions})
    ends = [start + layout.regions[0].width for start in starts]
    lines = [0, *((end + start) // 2 for end, start in zip(ends, starts[1:], strict=False))]
    blocks = np.zeros((size, size), np.int64)
    used = 0
    for region, labels in zip(layout.regions, tiles, strict=True):
        spans = []
        for begin in (region.y0, region.x0):
            k = starts.index(begin)
            spans.append(slice(lines[k], lines[k + 1] if k + 1 < len(lines) else size))
        block = labels[spans[0].start - region.y0 : spans[0].stop - region.y0,
                       spans[1].start - region.x0 : spans[1].stop - region.x0]  # fmt: skip
        ids, which = np.unique(block, return_inverse=True)
        numbers = np.zeros(ids.size, np.int64)
        numbers[ids > 0] = np.arange(1, (ids > 0).sum() + 1) + used
        used += int((ids > 0).sum())
        blocks[tuple(spans)] = numbers[which].reshape(block.shape)
    return blocks, lines


def merge_touching(blocks: NDArray[np.int64], lines: list[int]) -> NDArray[np.int64]:
    """Labels that face each other across a border become one."""
    pairs = []
    for image in (blocks, blocks.T):
        for line in lines[1:]:
            facing = np.stack([image[line - 1], image[line]])
            pairs.append(facing[:, (facing > 0).all(axis=0)])
    a, b = np.concatenate(pairs, axis=1)
    n = int(blocks.max()) + 1
    graph = coo_array((np.ones(a.size, bool), (a, b)), shape=(n, n))
    joined = connected_components(graph, directed=False)[1] + 1
    joined[0] = 0
    return np.asarray(joined[blocks])


def merge_by_peer(
    python: Path, method: str, blocks: NDArray[np.int64], lines: list[int], work: Path
) -> NDArray[np.int64] | str:
    """Labels, or what the peer said when it failed."""
    given, made = work / "blocks.npz", work / "labels.npy"
    np.savez(given, labels=blocks, rows=lines, cols=lines)
    job = {"blocks": str(given), "method": method, "labels": str(made)}
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
    truth: NDArray[np.int64], layout: Layout, kind: str, diameter: int, python: Path | None,
    work: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each way to join the tiles."""
    size = truth.shape[0]
    tiles = [label_tile(truth, layout, k, kind, diameter) for k in range(len(layout.regions))]
    given = [(r.y0, r.x0, labels) for r, labels in zip(layout.regions, tiles, strict=True)]
    merged = merge_tiles(given, (size, size))
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
    blocks, lines = lay_side_by_side(layout, tiles, size)
    found: dict[str, NDArray[np.int64] | str] = {
        "none": blocks,
        "touch": merge_touching(blocks, lines),
    }
    if python is not None:
        for name, method in PEERS.items():
            found[name] = merge_by_peer(python, method, blocks, lines, work)
    for name, labels in found.items():
        told = {"failed": labels} if isinstance(labels, str) else count_faults(
            truth, compact(labels)
        )  # fmt: skip
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
    python = None if options.no_peers else build_environment(work)
    truth = draw_truth(options.size, options.diameter)
    diameter = median_extent(truth)
    runs = []
    for tile in options.tiles:
        layout = cut_slide(options.size, tile, 2 * diameter)
        for kind in ("right", "ragged"):
            rows = compare(truth, layout, kind, diameter, python, work)
            runs.append({"tile": tile, "labelled": kind, "rows": rows})
            print(json.dumps(runs[-1]), flush=True)
    record = {
        "command": "python benchmarks/stitching/run.py --work SCRATCH",
        "machine": describe_machine(),
        "versions": {"densebatch": describe_versions(),
                     "peers": [*(HERE / "requirements.txt").read_text().splitlines()[1:],
                               CELLPOSE]},
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
