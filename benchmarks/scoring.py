"""Time and memory of scoring, beside the tools of the field and beside only reading the arrays.

    python -m benchmarks.scoring                 # full size: several minutes and 6 GB of memory
    python -m benchmarks.scoring --quick         # small, to see that it runs

Every method runs in a process of its own, on the same arrays, and reports its peak memory. Ours
computes every metric at ten thresholds; the others count matches at IoU 0.5 and nothing else.
Compilation is left out for all: each method first runs on a small image.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from densebatch.cells.read import open_labels
from densebatch.scoring.blocks import Part, count_fields, plan_blocks, run_tasks
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.cells.read import LabelImage

SHARD, CHUNK = 4096, 512
METHODS = ("densebatch", "paper histogram", "cellpose.metrics", "stardist.matching")


@numba.njit(cache=True, nogil=True)
def _noise(a: int, b: int, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    mixed = np.uint64(a * 73_856_093 + b * 19_349_663 + seed * 83_492_791)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return float(mixed >> np.uint64(40)) / float(1 << 24)


@numba.njit(cache=True, nogil=True)
def draw_cells(
    y0: int, x0: int, height: int, width: int, pitch: int, side: int, seed: int, shift: float
) -> NDArray[np.uint32]:
    """Touching cells: pixels go to the nearest of the points of a jittered lattice.

    `shift` moves every point by up to that many pixels and removes one in twenty: the prediction
    of the same tissue. Any rectangle can be drawn by itself.
    """
    columns = -(-side // pitch)
    rows = -(-side // pitch)
    first_row, first_col = y0 // pitch - 1, x0 // pitch - 1
    n_rows, n_cols = height // pitch + 4, width // pitch + 4
    points = np.full((n_rows, n_cols, 3), -1e9)
    for i in range(n_rows):
        for j in range(n_cols):
            r, c = first_row + i, first_col + j
            if 0 <= r < rows and 0 <= c < columns:
                if shift > 0 and _noise(r, c, seed + 7) < 0.05:
                    continue
                dy = shift * (2 * _noise(r, c, seed + 5) - 1)
                dx = shift * (2 * _noise(r, c, seed + 6) - 1)
                points[i, j, 0] = (r + 0.15 + 0.7 * _noise(r, c, seed + 1)) * pitch + dy
                points[i, j, 1] = (c + 0.15 + 0.7 * _noise(r, c, seed + 2)) * pitch + dx
                points[i, j, 2] = ((0.5 + 0.35 * _noise(r, c, seed + 3)) * pitch) ** 2
    labels = np.zeros((height, width), np.uint32)
    for y in range(height):
        i0 = (y0 + y) // pitch - first_row
        for x in range(width):
            j0 = (x0 + x) // pitch - first_col
            nearest, best_i, best_j = 1e18, 0, 0
            for i in range(i0 - 1, i0 + 2):
                for j in range(j0 - 1, j0 + 2):
                    dy, dx = y0 + y - points[i, j, 0], x0 + x - points[i, j, 1]
                    distance = dy * dy + dx * dx
                    if distance < nearest:
                        nearest, best_i, best_j = distance, i, j
            if nearest < points[best_i, best_j, 2]:
                labels[y, x] = (first_row + best_i) * columns + first_col + best_j + 1
    return labels


def peak_gb() -> float:
    """Largest resident memory of this process so far (ru_maxrss would include the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def _count_densebatch(truth: NDArray[Any], pred: NDArray[Any], workers: int) -> list[int]:
    at = score_labels(truth, pred, ScoreSettings(), workers=workers).at("0.50")
    return [at.tp, at.fp, at.fn]


def _count_histogram(truth: NDArray[Any], pred: NDArray[Any], workers: int) -> list[int]:
    """Han et al. 2024 as described: 2-D histogram of the labels, dense IoU, any match."""
    del workers
    truth_edges = np.append(np.unique(truth), np.inf)
    pred_edges = np.append(np.unique(pred), np.inf)
    shared = np.histogram2d(truth.ravel(), pred.ravel(), bins=(truth_edges, pred_edges))[0]
    truth_areas = np.histogram(truth, bins=truth_edges)[0][:, None]
    pred_areas = np.histogram(pred, bins=pred_edges)[0][None]
    matches = (shared / (truth_areas + pred_areas - shared))[1:, 1:] >= 0.5
    found = matches.any(axis=1)
    return [int(found.sum()), int((~matches.any(axis=0)).sum()), int((~found).sum())]


def _count_cellpose(truth: NDArray[Any], pred: NDArray[Any], workers: int) -> list[int]:
    del workers
    metrics = importlib.import_module("cellpose.metrics")
    _, tp, fp, fn = metrics.average_precision(truth, pred, threshold=[0.5])
    return [int(tp[0]), int(fp[0]), int(fn[0])]


def _count_stardist(truth: NDArray[Any], pred: NDArray[Any], workers: int) -> list[int]:
    del workers
    found = importlib.import_module("stardist.matching").matching(truth, pred, thresh=0.5)
    return [int(found.tp), int(found.fp), int(found.fn)]


COUNTERS: dict[str, Callable[[NDArray[Any], NDArray[Any], int], list[int]]] = dict(
    zip(
        METHODS,
        (_count_densebatch, _count_histogram, _count_cellpose, _count_stardist),
        strict=True,
    )
)


def time_image_method(name: str, folder: str, workers: int, repeats: int) -> dict[str, Any]:
    """Best time of one method on the stored pair; runs in a process of its own."""
    try:
        small = draw_cells(0, 0, 128, 128, 32, 128, 1, 0.0).astype(np.int32)
        COUNTERS[name](small, small, workers)
    except ImportError as exc:
        return {"unavailable": str(exc)}
    truth, pred = (np.load(Path(folder) / f"{side}.npy") for side in ("truth", "pred"))
    seconds, counts = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        counts = COUNTERS[name](truth, pred, workers)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds),
        "all_seconds": seconds,
        "peak_gb": peak_gb(),
        "tp_fp_fn": counts,
    }


def apart(function: Callable[..., dict[str, Any]], *args: object) -> dict[str, Any]:
    """Run a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def benchmark_image(folder: Path, side: int, pitch: int, workers: int) -> dict[str, Any]:
    """All methods on one pair in memory."""
    for name, shift in (("truth", 0.0), ("pred", 3.0)):
        labels = draw_cells(0, 0, side, side, pitch, side, 1, shift)
        # The others need ids without gaps, and a type that is not unsigned.
        ids, places = np.unique(labels, return_inverse=True)
        np.save(folder / f"{name}.npy", places.reshape(labels.shape).astype(np.int32))
        print(f"{name}: {ids.size - 1} cells in {side}x{side} px")
    results = {}
    for name in METHODS:
        # The slow ones take long enough to be timed in few runs.
        results[name] = apart(
            time_image_method, name, str(folder), workers, 7 if name == "densebatch" else 2
        )
        print(f"  {name}: {results[name]}")
    ours = results["densebatch"]["seconds"]
    others = [r["seconds"] for n, r in results.items() if n != "densebatch" and "seconds" in r]
    return {
        "side_px": side,
        "cells": int(ids.size - 1),
        "methods": results,
        "times_faster_than_the_fastest": min(others) / ours if others else None,
    }


def write_slide(folder: Path, side: int, pitch: int, workers: int) -> list[Path]:
    """A pair of label arrays stored as densebatch stores them."""
    shard = min(SHARD, side)
    paths = []
    for name, shift in (("truth", 0.0), ("pred", 3.0)):
        path = folder / f"{name}.zarr"
        array = zarr.create_array(
            path,
            shape=(side, side),
            dtype="uint32",
            chunks=(shard, shard),
            serializer=ShardingCodec(
                chunk_shape=(CHUNK, CHUNK), codecs=[BytesCodec(), ZstdCodec(level=3), Crc32cCodec()]
            ),
            compressors=None,
        )

        with ThreadPoolExecutor(workers) as pool:
            futures = [
                pool.submit(_write_shard, array, y, x, shard, pitch, shift)
                for y in range(0, side, shard)
                for x in range(0, side, shard)
            ]
        for future in futures:
            future.result()
        paths.append(path)
    return paths


def _write_shard(array: zarr.Array, y: int, x: int, shard: int, pitch: int, shift: float) -> None:
    side = array.shape[0]
    height, width = min(shard, side - y), min(shard, side - x)
    cells = draw_cells(y, x, height, width, pitch, side, 1, shift)
    array[y : y + height, x : x + width] = cells


def _read_block(truth: LabelImage, pred: LabelImage, block: Region) -> int:
    return Part(truth, block, "truth").read().size + Part(pred, block, "pred").read().size


def time_reading(truth: str, pred: str, workers: int) -> dict[str, Any]:
    """Only read both arrays, in the blocks and threads that scoring uses."""
    images = open_labels(Path(truth)), open_labels(Path(pred))
    blocks = plan_blocks(*images)
    start = time.perf_counter()
    n_px = sum(run_tasks(_read_block, ((*images, blocks[i]) for i in blocks), workers))
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_gb(), "n_px": n_px}


def time_plain_reading(truth: str, pred: str) -> dict[str, Any]:
    """Only read both arrays as anybody would, band after band; zarr uses its own threads."""
    start = time.perf_counter()
    for path in (Path(truth), Path(pred)):
        array = zarr.open_array(path, mode="r")
        for y in range(0, array.shape[0], SHARD):
            array[y : y + SHARD]
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_gb()}


def time_scoring(truth: str, pred: str, workers: int) -> dict[str, Any]:
    """Score the pair: table, and every metric at ten thresholds."""
    small = np.ones((64, 64), np.uint32)
    count_fields(small, small)
    images = open_labels(Path(truth)), open_labels(Path(pred))
    start = time.perf_counter()
    score = score_labels(*images, workers=workers)
    seconds = time.perf_counter() - start
    at = score.at("0.50")
    return {
        "seconds": seconds,
        "peak_gb": peak_gb(),
        "n_truth": score.n_truth,
        "n_pred": score.n_pred,
        "tp_fp_fn": [at.tp, at.fp, at.fn],
        "ari": score.ari,
    }


def benchmark_slide(
    folder: Path, side: int, pitch: int, workers: int, repeats: int
) -> dict[str, Any]:
    """Reading and scoring of one pair on disk, in turns."""
    start = time.perf_counter()
    truth, pred = map(str, write_slide(folder, side, pitch, workers))
    print(f"slide of {side}x{side} px written in {time.perf_counter() - start:.0f} s")
    stored = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    runs: dict[str, list[dict[str, Any]]] = {"read": [], "plain read": [], "score": []}
    # The first reading fills the page cache and is not counted.
    apart(time_reading, truth, pred, workers)
    for _ in range(repeats):
        runs["read"].append(apart(time_reading, truth, pred, workers))
        runs["score"].append(apart(time_scoring, truth, pred, workers))
        runs["plain read"].append(apart(time_plain_reading, truth, pred))
        print("  " + ", ".join(f"{n} {r[-1]['seconds']:.2f} s" for n, r in runs.items()))
    best = {name: min(r["seconds"] for r in results) for name, results in runs.items()}
    return {
        "side_px": side,
        "stored_bytes": stored,
        "runs": runs,
        "best_seconds": best,
        "score_over_read": best["score"] / best["read"],
        "score_over_fastest_read": best["score"] / min(best["read"], best["plain read"]),
        "score_peak_gb": max(r["peak_gb"] for r in runs["score"]),
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("numpy", "numba", "scipy", "zarr", "cellpose", "stardist")
    return {
        "processors": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": {name: _installed(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to put the arrays; a temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/scoring.json")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # 41 px apart make 10 000 cells in 4096², 32 px apart a million in 32768².
        image = benchmark_image(folder, 512 if options.quick else 4096, 41, options.workers)
        slide_folder = folder / "slide"
        slide_folder.mkdir()
        slide = benchmark_slide(
            slide_folder, 2048 if options.quick else 32768, 32, options.workers, options.repeats
        )
    record = {"quick": options.quick, "machine": machine, "image": image, "slide": slide}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{image['times_faster_than_the_fastest']:.0f} times as fast as the fastest other")
    print(
        f"scoring takes {slide['score_over_fastest_read']:.2f} times as long as the fastest "
        f"reading, and {slide['score_peak_gb']:.2f} GB"
    )


if __name__ == "__main__":
    main()
