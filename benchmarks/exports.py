"""Exports of a million cells: seconds, and whether memory is bounded; and other programs' readers.

    python -m benchmarks.exports                       # seconds and peaks, results/exports.json
    python -m benchmarks.exports --squidpy PYTHON --scimap PYTHON   # adds what these two read

Simulates OUT, as `densebatch merge` would leave it: labels of blobs that cross shards and tiles,
and a table with the means of 40 channels. Each export runs in a process of its own; the same is
done with a sixteenth of the cells, and peaks that differ little say that memory does not grow with
the slide. `--squidpy` and `--scimap` are the Pythons of environments of their own, for the two want
other versions of zarr (`pip install squidpy "setuptools<81"`, `pip install scimap
"numcodecs<0.16"`). They open exports of a small result; squidpy computes on it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import ndimage

from densebatch.cells import labels
from densebatch.studies.benchmark_record import describe_machine
from densebatch.studies.watch import watch_command

PITCH_PX = 16
N_FORMS = 64
N_CHANNELS = 40
KINDS = ("geojson", "anndata")
LIBRARIES = ("densebatch", "numpy", "numba", "pyarrow", "h5py", "shapely", "zarr")


def make_forms(rng: np.random.Generator) -> list[np.ndarray]:
    """Masks of irregular blobs that fit into the pitch."""
    y, x = np.mgrid[:PITCH_PX, :PITCH_PX] - (PITCH_PX - 1) / 2
    forms = []
    for _ in range(N_FORMS):
        angle, wave = np.arctan2(y, x), rng.uniform(-1, 1, 4)
        radius = 6 + wave[0] * np.cos(2 * angle + wave[1] * 3) + wave[2] * np.cos(3 * angle)
        mask = np.hypot(y, x) < radius
        pieces, _ = ndimage.label(mask)
        forms.append(pieces == pieces[PITCH_PX // 2, PITCH_PX // 2])
    return forms


def make_result(out: Path, per_side: int) -> None:
    """An OUT of `per_side` squared cells, half a pitch away from the corner."""
    rng = np.random.default_rng(1)
    forms = make_forms(rng)
    side = PITCH_PX * (per_side + 1)
    spec = labels.PyramidSpec(
        str(out / "segmentation.ome.zarr"), "0.5", side, side, labels.count_levels(side, side)
    )
    labels.create(spec, label_attrs={"content": "simulated"})
    form = rng.integers(N_FORMS, size=(per_side, per_side))
    stack = np.stack(forms)
    for level in range(spec.n_levels):
        grid = labels.shard_grid(spec, level)
        for index in grid:
            region = grid[index]
            if level:
                labels.downsample_labels(spec, level, region)
                continue
            painted = np.zeros(region.shape, np.uint32)
            y, x = np.ogrid[region.y0 : region.y1, region.x0 : region.x1]
            y, x = y - PITCH_PX // 2, x - PITCH_PX // 2
            row, col = y // PITCH_PX, x // PITCH_PX
            inside = (row >= 0) & (row < per_side) & (col >= 0) & (col < per_side)
            row, col = np.clip(row, 0, per_side - 1), np.clip(col, 0, per_side - 1)
            is_cell = stack[form[row, col], y % PITCH_PX, x % PITCH_PX] & inside
            painted[is_cell] = (row * per_side + col + 1)[is_cell]
            labels.write_label_shard(spec, 0, region, painted)
    labels.finalize(spec, n_cells=per_side**2, provenance={})
    write_table(out / "cells.parquet", forms, form, rng)
    report = {"cells": per_side**2, "um_per_px": 0.5, "versions": {}}
    (out / "merge.json").write_text(json.dumps(report))


def write_table(
    path: Path, forms: list[np.ndarray], form: np.ndarray, rng: np.random.Generator
) -> None:
    """The table of these cells."""
    per_side = len(form)
    facts = []
    for mask in forms:
        y, x = np.nonzero(mask)
        facts.append([y.mean(), x.mean(), y.size, y.min(), x.min(), y.max() + 1, x.max() + 1])
    row, col = (index.ravel() * PITCH_PX + PITCH_PX // 2 for index in np.indices(form.shape))
    local = np.array(facts)[form.ravel()]
    columns: dict[str, Any] = {
        "id": np.arange(1, per_side**2 + 1, dtype=np.uint32),
        "y_px": local[:, 0] + row,
        "x_px": local[:, 1] + col,
        "area_px": local[:, 2].astype(np.int64),
        "y0": local[:, 3].astype(np.int64) + row,
        "x0": local[:, 4].astype(np.int64) + col,
        "y1": local[:, 5].astype(np.int64) + row,
        "x1": local[:, 6].astype(np.int64) + col,
        "touches_border": np.zeros(per_side**2, bool),
    }
    for channel in range(N_CHANNELS):
        columns[f"mean_marker{channel}"] = rng.gamma(2.0, 300.0, per_side**2)
    pq.write_table(pa.table(columns), path, compression="zstd", write_page_checksum=True)


def measure(out: Path, kind: str) -> dict[str, Any]:
    """One export in a process of its own; the export is removed."""
    path = out / f"export{'.h5ad' if kind == 'anndata' else '.geojson'}"
    command = [sys.executable, "-m", "densebatch", "export", str(out), "--to", kind]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    watched = watch_command([*command, "-o", str(path)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {
        "kind": kind,
        "cells": pq.read_metadata(out / "cells.parquet").num_rows,
        "channels": N_CHANNELS,
        "seconds": round(watched.wall_s, 1),
        "processor_seconds": round(processor, 1),
        "peak_mb": round(watched.peak_mb),
        "export_mb": round(path.stat().st_size / 1e6),
    }
    path.unlink()
    return row


# Runs in the environment of the peers: what each reads, and that it can compute with it.
_SQUIDPY = """
import json, sys, warnings
warnings.simplefilter("ignore")
import anndata, squidpy
from importlib.metadata import version
cells = anndata.read_h5ad(sys.argv[1])
squidpy.gr.spatial_neighbors(cells, coord_type="generic", n_neighs=6)
cells.obs["group"] = (cells.X[:, 0] > 500).astype(str)
cells.obs["group"] = cells.obs["group"].astype("category")
squidpy.gr.nhood_enrichment(cells, cluster_key="group", n_perms=20, show_progress_bar=False)
print(json.dumps({
    "squidpy": version("squidpy"), "anndata": version("anndata"), "cells": cells.n_obs,
    "markers": cells.n_vars, "area_px": float(cells.obs["area_px"].sum()),
    "neighbours": int(cells.obsp["spatial_connectivities"].nnz),
}))
"""
_SCIMAP = """
import json, sys, warnings
warnings.simplefilter("ignore")
import scimap
from importlib.metadata import version
cells = scimap.pp.mcmicro_to_scimap([sys.argv[1]], remove_dna=False, log=False)
print(json.dumps({
    "scimap": version("scimap"), "cells": cells.n_obs, "markers": list(cells.var_names),
    "area_px": float(cells.obs["Area"].sum()), "obs": list(cells.obs.columns),
    "first_ids": [int(i) for i in cells.obs["CellID"][:3]],
}))
"""


def read_by_peers(pythons: dict[str, str | None], folder: Path) -> dict[str, Any]:
    """What squidpy and scimap say of exports of a small result."""
    out = folder / "small"
    make_result(out, 40)
    told: dict[str, Any] = {}
    for name, kind, file, script in (
        ("squidpy", "anndata", "a.h5ad", _SQUIDPY), ("scimap", "mcmicro-csv", "a.csv", _SCIMAP),
    ):  # fmt: skip
        command = [sys.executable, "-m", "densebatch", "export", str(out), "--to", kind]
        subprocess.run([*command, "-o", str(out / file)], check=True, capture_output=True)
        run = subprocess.run(
            [str(pythons[name]), "-c", script, str(out / file)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = run.stdout.strip().splitlines() or [""]
        told[name] = (
            json.loads(lines[-1]) if run.returncode == 0 else {"failed": run.stderr.strip()[-300:]}
        )
    table = pq.read_table(out / "cells.parquet")
    told["table"] = {
        "cells": table.num_rows, "markers": N_CHANNELS,
        "area_px": float(np.sum(table["area_px"].to_numpy())),
    }  # fmt: skip
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-side", type=int, default=1000, help="cells along a side")
    parser.add_argument("--squidpy", metavar="PYTHON", help="of an environment with squidpy")
    parser.add_argument("--scimap", metavar="PYTHON", help="of an environment with scimap")
    parser.add_argument("--folder", type=Path, help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/exports.json")
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        if arguments.squidpy and arguments.scimap:
            pythons = {"squidpy": arguments.squidpy, "scimap": arguments.scimap}
            record["peers"] = read_by_peers(pythons, Path(scratch))
        else:
            record["machine"] = describe_machine()
            record["versions"] = {name: version(name) for name in LIBRARIES}
            rows = []
            for per_side in (40, arguments.per_side // 4, arguments.per_side):
                out = Path(scratch) / str(per_side)
                make_result(out, per_side)
                found = [measure(out, kind) for kind in KINDS]
                if per_side > 40:  # the first run compiles what is compiled once
                    rows += found
                shutil.rmtree(out)
                print(json.dumps(found), flush=True)
            record["rows"] = rows
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
