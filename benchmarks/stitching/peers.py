"""Merges of other programs, run in their own environment; imports nothing of densebatch.

    python peers.py '{"given": ..., "method": ..., "labels": ...}'

`given` is a file of `np.savez`: `blocks`, labels `(h, w)` int64 of all blocks side by side, ids
unique on the slide; `starts`: rows, and columns as well, where blocks begin; `overlap`, and `0`,
`1`, ...: the labels of each tile, which is a block with half the overlap on every side. The merged
labels are written to `labels`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import types
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np


def merge_dask_image(labels: np.ndarray, rows: list[int], cols: list[int]) -> np.ndarray:
    """The merge of `dask_image.ndmeasure.label`: labels that face each other across a border."""
    import dask.array as da
    from dask_image.ndmeasure._utils import _label

    sizes = [list(np.diff([*starts, n])) for starts, n in zip((rows, cols), labels.shape)]  # noqa: B905
    blocks = da.from_array(labels, chunks=tuple(tuple(int(n) for n in each) for each in sizes))
    graph = _label.label_adjacency_graph(blocks, None, int(labels.max()))
    joined = _label.connected_components_delayed(graph)
    return np.asarray(_label.relabel_blocks(blocks, joined).compute())


def merge_patchworks(
    tiles: list[np.ndarray], starts: list[int], size: int, half: int
) -> np.ndarray:
    """Patchworks' merge by IoU, through its own files."""
    import patchworks
    from patchworks import _merge

    step = starts[1] - starts[0]
    with tempfile.TemporaryDirectory() as name:
        stage, halos = Path(name) / "stage.zarr", Path(name) / "halos"
        halos.mkdir()
        shape = (size, size)
        patchworks.create_stage(stage, shape, (step, step))
        for index, labels in enumerate(tiles):
            patchworks.stage_tile(
                np.zeros(shape, np.uint8),
                lambda _, labels=labels: labels,
                stage,
                index,
                tile_shape=(step, step),
                overlap=half,
                halo_dir=halos,
            )
        merged = _merge.merge_tile_labels(
            stage, Path(name) / "out.zarr", input_component="staged", halo_dir=halos, n_workers=1
        )
        return np.asarray(merged)


def load_cellpose() -> Any:  # noqa: ANN401
    """`cellpose.contrib.distributed_segmentation` without the network, which merging needs not."""
    for name in ("cellpose", "cellpose.io", "cellpose.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["cellpose"].io = sys.modules["cellpose.io"]
    sys.modules["cellpose"].models = sys.modules["cellpose.models"]
    file = distribution("cellpose").locate_file("cellpose/contrib/distributed_segmentation.py")
    spec = importlib.util.spec_from_file_location("distributed_segmentation", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def merge_cellpose(labels: np.ndarray, rows: list[int], cols: list[int], depth: int) -> np.ndarray:
    """The merge of Cellpose's `distributed_eval`, which is made for volumes.

    An image is given to it as a volume of `depth` equal planes.
    """
    distributed = load_cellpose()
    indices, faces = [], []
    for i, y in enumerate(rows):
        for j, x in enumerate(cols):
            y1 = rows[i + 1] if i + 1 < len(rows) else labels.shape[0]
            x1 = cols[j + 1] if j + 1 < len(cols) else labels.shape[1]
            indices.append((0, i, j))
            faces.append(distributed.block_faces(np.stack([labels[y:y1, x:x1]] * depth)))
    used = np.unique(labels)
    return distributed.determine_merge_relabeling(indices, faces, used[used > 0])[labels]


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    given = np.load(job["given"])
    blocks, starts = given["blocks"], given["starts"].tolist()
    if job["method"] == "dask-image":
        merged = merge_dask_image(blocks, starts, starts)
    elif job["method"] == "patchworks":
        tiles = [given[str(k)] for k in range(len(starts) ** 2)]
        merged = merge_patchworks(tiles, starts, blocks.shape[0], int(given["overlap"]) // 2)
    else:
        depth = int(job["method"].rpartition(" ")[2])
        merged = merge_cellpose(blocks, starts, starts, depth)
    np.save(job["labels"], merged)
