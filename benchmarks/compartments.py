"""How many nuclei find their own cell: on true masks, and on what the models find.

    python -m benchmarks.compartments -o compartments.json    # some minutes
    python -m benchmarks.compartments --quick                 # small, to see that it runs

Simulated tissue has exact masks of stained cells and of all nuclei, with one id for both; nuclei of
dark cells have no cell. Matched as the program does it, a nucleus is right if its cell has its id,
or if it is an orphan and there is no such cell. Then the slide is segmented with `--compartments`.
A pair counts as found if a predicted cell has an IoU of 0.5 or more with a true one and what it has
of its nucleus the same with that cell's; of the cells that are found alone, the share whose nucleus
is the true one's tells what matching and nuclei cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import densebatch
from densebatch.base.geometry import Region
from densebatch.compartments.masks import find_ring, split_cells
from densebatch.compartments.matching import match_nuclei
from densebatch.scoring.contingency import Contingency
from densebatch.simulation.tissue import Tissue, render_with_nuclei

RING_PX = 2.0


def score_truth(cells: np.ndarray, nuclei: np.ndarray) -> dict[str, Any]:
    """Match true nuclei with true cells."""
    table = Contingency.from_arrays(nuclei, cells)
    match = match_nuclei(table.truth, table.pred, table.count, int(nuclei.max()))
    there = np.unique(nuclei[nuclei > 0])
    has_cell = np.isin(there, cells)
    found = match.cells[there - 1]
    owners = np.concatenate([np.zeros(1, np.uint32), match.cells])[nuclei]
    masks = split_cells(cells, owners, find_ring(cells, RING_PX))
    overlap = sum((mask > 0).astype(np.uint8) for mask in masks.values())
    return {
        "cells": int(np.unique(cells).size - 1),
        "nuclei": int(there.size),
        "pairs": int(has_cell.sum()),
        "pairs_matched": float(np.mean(found[has_cell] == there[has_cell])),
        "nuclei_of_dark_cells": int((~has_cell).sum()),
        "of_these_orphans": float(np.mean(found[~has_cell] == 0)) if (~has_cell).any() else None,
        "px_of_cells_in_one_mask": float(np.mean(overlap[cells > 0] == 1)),
        "px_in_masks_outside_cells": int(overlap[cells == 0].sum()),
    }


def find_partners(truth: np.ndarray, found: np.ndarray) -> dict[int, int]:
    """The label of `found` with an IoU of 0.5 or more, for each of `truth` that has one."""
    table = Contingency.from_arrays(truth, found)
    areas = [np.bincount(image.ravel()) for image in (truth, found)]
    real = (table.truth > 0) & (table.pred > 0)
    a, b, shared = table.truth[real], table.pred[real], table.count[real]
    good = 3 * shared >= areas[0][a] + areas[1][b]  # shared / union >= 1 / 2
    return dict(zip(a[good].tolist(), b[good].tolist(), strict=True))


def score_prediction(cells: np.ndarray, nuclei: np.ndarray, out: Path) -> dict[str, Any]:
    """Compare what a run has found with the truth."""
    images = {
        name: np.asarray(zarr.open_array(out / f"segmentation.ome.zarr/labels/{name}/0", mode="r"))
        for name in ("cells", "nuclei", "cytoplasm", "membrane")
    }
    of_cells = find_partners(cells, images["cells"])
    of_nuclei = find_partners(np.where(np.isin(nuclei, cells), nuclei, 0), images["nuclei"])
    pairs = np.intersect1d(np.unique(cells), np.unique(nuclei[nuclei > 0])).tolist()
    both = [p for p in pairs if p in of_cells and of_nuclei.get(p) == of_cells[p]]
    found = [p for p in pairs if p in of_cells]
    parts = images["nuclei"] + images["cytoplasm"] + images["membrane"]
    return {
        "cells_found": len(found) / len(pairs),
        "pairs_found": len(both) / len(pairs),
        "of_found_cells_with_their_nucleus": len(both) / max(1, len(found)),
        "px_where_masks_are_not_the_cell": int((parts != images["cells"]).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    side = 512 if given.quick else 3072
    record: dict[str, Any] = {
        "quick": given.quick,
        "side_px": side,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("densebatch", "numpy", "torch")},
    }
    image, cells, nuclei = render_with_nuclei(Tissue(side, side, seed=1), Region(0, 0, side, side))
    record["truth"] = score_truth(cells, nuclei)
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.ome.tif"
        import tifffile

        pixel = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        metadata = {"axes": "CYX", "Channel": {"Name": ["membrane", "nuclei"]}, **pixel}
        tifffile.imwrite(slide, image, tile=(512, 512), metadata=metadata)
        result = densebatch.segment(
            slide, Path(folder) / "out", membrane=("membrane",), nuclei="nuclei",
            compartments=True, model="dense-tiny" if given.quick else "dense-small",
            workers=given.workers,
        )  # fmt: skip
        inner = {
            role: json.loads((result.out / "runs" / role / "run.json").read_text())["seconds"]
            for role in ("cells", "nuclei")
        }
        record["prediction"] = {
            **score_prediction(cells, nuclei, result.out),
            "counts": result.report["compartments"],
            "seconds": {**{role: told["total"] for role, told in inner.items()},
                        "match_join_number": sum(result.report["seconds"][name]
                                                 for name in ("match", "join", "number"))},
        }  # fmt: skip
    text = json.dumps(record, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
