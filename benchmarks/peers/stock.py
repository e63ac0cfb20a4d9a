"""Stock Cellpose 3.1.1.3, run in its own environment; imports nothing of densebatch.

    python stock.py eval '{"image": ..., "labels": ..., "checkpoint": ..., "diameter": ...}'
    python stock.py distributed '{..., "block": ..., "workers": ..., "scratch": ..., "facts": ...}'

And `segment`, the function that patchworks calls for each tile.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_models: dict[str, Any] = {}


def segment(tile: Any, checkpoint: str = "", diameter: float = 30.0) -> np.ndarray:  # noqa: ANN401
    """Labels of one tile, `(h, w)` int32; the model is loaded once per process."""
    from cellpose.models import CellposeModel

    if checkpoint not in _models:
        _models[checkpoint] = CellposeModel(gpu=False, pretrained_model=checkpoint)
    masks = _models[checkpoint].eval(np.asarray(tile), channels=[0, 0], diameter=diameter)[0]
    return masks.astype(np.int32)


def run_eval(image: str, labels: str, checkpoint: str, diameter: float) -> None:
    """`CellposeModel.eval` on the whole image, at its defaults."""
    np.save(labels, segment(np.load(image), checkpoint, diameter))


def run_distributed(
    image: str,
    labels: str,
    checkpoint: str,
    diameter: float,
    block: int,
    workers: int,
    scratch: str,
    facts: str,
) -> None:
    """`distributed_eval` up to its merge, which fails on an image without depth.

    What the blocks hold when the merge begins is kept as the labels, and the time as a fact.
    """
    from cellpose.contrib import distributed_segmentation as distributed

    pixels = np.load(image)
    folder = Path(scratch)
    blocks = (min(block, pixels.shape[0]), min(block, pixels.shape[1]))
    source = distributed.numpy_array_to_zarr(str(folder / "image.zarr"), pixels, blocks)
    told: dict[str, Any] = {}
    merge = distributed.determine_merge_relabeling

    def note_merge(*arguments: Any) -> Any:  # noqa: ANN401
        told["merge_at"] = time.time()
        found = next(folder.glob(".*_distributed_cellpose_tempdir/segmentation_unstitched.zarr"))
        np.save(labels, distributed.zarr.open(str(found), "r")[:])
        return merge(*arguments)

    distributed.determine_merge_relabeling = note_merge
    try:
        distributed.distributed_eval(
            input_zarr=source,
            blocksize=blocks,
            write_path=str(folder / "merged.zarr"),
            model_kwargs={"gpu": False, "pretrained_model": checkpoint},
            eval_kwargs={"channels": [0, 0], "diameter": int(diameter)},
            cluster_kwargs={
                "n_workers": workers,
                "ncpus": 1,
                "threads_per_worker": 1,
                "host": "127.0.0.1",
                "dashboard_address": "127.0.0.1:0",
            },
            temporary_directory=str(folder),
        )
    except Exception as error:
        if "merge_at" not in told:
            raise
        told["merge_error"] = f"{type(error).__name__}: {error}"
    Path(facts).write_text(json.dumps(told))


if __name__ == "__main__":
    run = {"eval": run_eval, "distributed": run_distributed}[sys.argv[1]]
    run(**json.loads(sys.argv[2]))
