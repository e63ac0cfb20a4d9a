"""Digests of what densebatch produces, to show that a refactoring moves no bit.

    python -m benchmarks.digests -o before.json
    python -m benchmarks.digests --against before.json

The code is that of the tree this file lies in, and only its command line is used, so that modules
may move. `densebatch segment` runs on four annotated fields, on a mosaic of the four (as a TIFF
for every model, as OME-Zarr for one), on a field whose pixels are of another size and on an
OME-TIFF of several channels, with each bundled model and two backends; `densebatch score` compares
with the truth where there is one; `densebatch train` takes a few seeded steps. Recorded are sha256
of every level of the labels, of their metadata, of the image pyramid beside them, of the cell
table, of counts in run.json, of scores, and of trained weights. The bits hold for one kind of
machine and versions of libraries, which are recorded beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet
import safetensors
import tifffile
import yaml
import zarr

from benchmarks.peers.mosaic import UM_PER_PX, join_fields, write_mosaic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data/hsv-dense"
MODELS = ("dense", "dense-small", "dense-tiny")
BACKENDS = ("torch", "openvino")
LIBRARIES = ("torch", "openvino", "numpy", "numba", "scipy", "zarr", "pyarrow", "tifffile")
COUNTS = ("cells", "rejected_cells", "dropped_px", "max_travel_px", "network_patches", "unread")
# On top of configs/train: small, but simulated tissue, the teacher and the mean all take part.
TRAIN_RECIPE = {
    "steps": 3,
    "warmup_steps": 1,
    "mean_steps": 2,
    "batch": 2,
    "patch_px": 128,
    "train_images": ["M872956_JML_Position9_CD3_train", "M926910_CFL_Position7_CD3_train"],
    "seed": 5,
}
# Name of the run, recipe, options of `densebatch train`, and what its recipe has besides.
TRAININGS = (
    ("train dense-tiny", "dense-tiny", [], {"simulated_steps": 1}),
    ("train dense-small", "dense-small", ["--start", "dense-small", "--teacher", "dense"], {}),
)
Digests = dict[str, str]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Slide:
    """What is segmented.

    Attributes
    ----------
    name : part of the names of its runs
    path : of the slide
    truth : label image of its cells, None if there is none
    options : of `densebatch segment`
    models, backends : it is run with
    """

    name: str
    path: Path
    truth: Path | None
    options: tuple[str, ...] = ()
    models: tuple[str, ...] = MODELS
    backends: tuple[str, ...] = BACKENDS


def digest_bytes(parts: Iterable[bytes]) -> str:
    """The sha256 of parts, each with its length."""
    result = hashlib.sha256()
    for part in parts:
        result.update(f"{len(part)}:".encode())
        result.update(part)
    return result.hexdigest()


def digest_json(document: object) -> str:
    """The sha256 of plain data."""
    return digest_bytes([json.dumps(document, sort_keys=True).encode()])


def _array_parts(array: NDArray[np.generic]) -> Iterator[bytes]:
    yield f"{array.dtype.str} {array.shape}".encode()
    yield array.tobytes()


_LEFT_OUT = ("fingerprint", "properties")


def digest_levels(group: zarr.Group) -> Digests:
    """Digests of the arrays right below a group and of its attributes.

    Fingerprints of runs are left out, which cover the folders of the slide and of the weights, and
    so are the areas of labels (`properties`), which are younger than the record.
    """
    arrays = {name: np.asarray(array[...]) for name, array in sorted(group.arrays())}
    levels = {name: digest_bytes(_array_parts(array)) for name, array in arrays.items()}
    text = json.dumps(group.attrs.asdict())
    told = json.loads(text, object_hook=lambda d: {k: d[k] for k in d if k not in _LEFT_OUT})
    return {**levels, "metadata": digest_json(told)}


# Columns of the table that are in the record, and the means; others are younger.
TABLE = (
    "id", "y_px", "x_px", "y_um", "x_um", "area_px", "y0", "x0", "y1", "x1", "touches_border",
    "touches_missing",
)  # fmt: skip


def digest_table(path: Path) -> str:
    """The digest of a table's columns, in turn: name, dtype and bytes, or texts.

    Columns that are younger than the record are left out.
    """
    table = pyarrow.parquet.read_table(path)
    parts: list[bytes] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name not in TABLE and not name.startswith("mean_"):
            continue
        values = column.to_numpy()
        if name == "touches_missing" and not values.any():
            continue  # younger than the record, and false where nothing is missing
        parts += [name.encode(), str(column.type).encode()]
        if values.dtype.hasobject:
            parts.append(json.dumps(column.to_pylist()).encode())
        else:
            parts += _array_parts(values)
    return digest_bytes(parts)


def digest_weights(path: Path) -> str:
    """The digest of a model's tensors, by name, whatever the card says."""
    parts: list[bytes] = []
    for name, tensor in sorted(safetensors.deserialize(path.read_bytes())):
        parts += [name.encode(), f"{tensor['dtype']} {tensor['shape']}".encode(), tensor["data"]]
    return digest_bytes(parts)


def run_densebatch(scratch: Path, *arguments: str | Path) -> None:
    """Run the command line of this tree; what it remembers of the machine stays in `scratch`."""
    ours = {"PYTHONPATH": str(ROOT), "DENSEBATCH_CACHE": str(scratch / "cache")}
    command = [sys.executable, "-m", "densebatch", *map(str, arguments)]
    environment = os.environ | ours
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if done.returncode:
        told = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}: {told}")


def prepare_slides(data: Path, scratch: Path) -> list[Slide]:
    """The slides, of which the mosaic is written to `scratch`."""
    folder = data / "fields"
    joined = join_fields(folder, 2)
    mosaic = write_mosaic(joined, scratch)
    tiff, truth = scratch / "mosaic.ome.tif", scratch / "mosaic_masks.tif"
    # OME's unit is µm where none is given
    metadata = {"axes": "YX", "PhysicalSizeX": UM_PER_PX, "PhysicalSizeY": UM_PER_PX}
    tifffile.imwrite(tiff, joined.pixels, tile=(256, 256), compression="zlib", metadata=metadata)
    tifffile.imwrite(truth, mosaic.truth.astype(np.uint16))
    names = [name.removesuffix("_img.png") for name in joined.fields]
    images = [folder / f"{name}_img.png" for name in names]
    masks = [folder / f"{name}_masks.png" for name in names]
    channels = ("--membrane", "CD3,CD4,CD8", "--nuclei", "DAPI")
    return [
        *map(Slide, names, images, masks),
        Slide("rescaled", images[0], masks[0], ("--pixel-size", "0.4")),
        Slide("channels", folder / "M872956_JML_Position8.ome.tif", None, channels),
        Slide("mosaic", tiff, truth),
        Slide("store", mosaic.store, truth, ("--ngff", "0.4"), ("dense-tiny",), ("torch",)),
    ]


def segment(slide: Slide, model: str, backend: str, scratch: Path) -> Digests:
    """Digests of one run of `densebatch segment`, and of the scores of its labels."""
    out = scratch / "out"
    options = ("--model", model, "--backend", backend, "--workers", "2", *slide.options)
    run_densebatch(scratch, "segment", slide.path, out, *options)
    image = out / "segmentation.ome.zarr"
    cells = image / "labels/cells"
    labels = digest_levels(zarr.open_group(cells, mode="r"))
    report = json.loads((out / "run.json").read_bytes())
    digests = {
        **{f"labels {name}": digest for name, digest in labels.items()},
        "image": digest_json(digest_levels(zarr.open_group(image, mode="r"))),
        "table": digest_table(out / "cells.parquet"),
        "counts": digest_json({name: report[name] for name in COUNTS}),
    }
    if slide.truth is not None:
        scores = scratch / "scores.json"
        run_densebatch(scratch, "score", cells, slide.truth, "--json", scores)
        # names of files, settings and numbers; neither folders nor times
        digests["scores"] = digest_json(json.loads(scores.read_bytes()))
    shutil.rmtree(out)
    return digests


def train(data: Path, recipe: str, options: list[str], more: Settings, scratch: Path) -> Digests:
    """The digest of the weights after a few steps of `densebatch train`."""
    settings = yaml.safe_load((ROOT / f"configs/train/{recipe}.yaml").read_text())
    config, model = scratch / "recipe.yaml", scratch / "model.safetensors"
    config.write_text(yaml.safe_dump({**settings, **TRAIN_RECIPE, **more}))
    run_densebatch(scratch, "train", data / "train", "-o", model, "-c", config, *options)
    digest = digest_weights(model)
    for path in scratch.glob("model.*"):
        path.unlink()
    return {"weights": digest}


def list_runs(data: Path, scratch: Path) -> dict[str, Callable[[], Digests]]:
    """What produces the digests of each run, by its name."""
    runs = {}
    for slide in prepare_slides(data, scratch):
        for model, backend in product(slide.models, slide.backends):
            name = f"{slide.name} {model} {backend}"
            runs[name] = partial(segment, slide, model, backend, scratch)
    for name, recipe, options, more in TRAININGS:
        runs[name] = partial(train, data, recipe, options, more, scratch)
    return runs


def describe_machine() -> Settings:
    """What the bits depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = (flag for flag in told.get("flags", "").split() if flag.startswith(("avx", "amx")))
    return {
        "processor": told.get("model name", platform.machine()),
        "vector instructions": " ".join(sorted(vectors)),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def compare(found: dict[str, Digests], expected: dict[str, Digests]) -> list[str]:
    """A line for each digest that differs or is on one side only."""
    ours, theirs = (
        {f"{run}: {item}": told for run, digests in runs.items() for item, told in digests.items()}
        for runs in (found, expected)
    )
    missing = [f"{name} is missing here" for name in theirs if name not in ours]
    new = [f"{name} is missing in the record" for name in ours if name not in theirs]
    return missing + new + [f"{k} differs" for k in ours if k in theirs and ours[k] != theirs[k]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder hsv-dense")
    parser.add_argument("-o", "--out", type=Path, help="record to write, JSON")
    parser.add_argument("--against", type=Path, help="record to compare with")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of the names of runs")
    options = parser.parse_args()
    if not (ROOT / "densebatch").is_dir():  # another one would be recorded
        raise SystemExit(f"{ROOT}: has no densebatch")
    before = json.loads(options.against.read_bytes()) if options.against else None
    found: dict[str, Digests] = {}
    with tempfile.TemporaryDirectory() as name:
        for run, produce in list_runs(options.data.resolve(), Path(name).resolve()).items():
            if options.only not in run:
                continue
            begun = time.monotonic()
            found[run] = produce()
            print(f"{run}: {len(found[run])} digests, {time.monotonic() - begun:.1f} s", flush=True)
    if not found:
        raise SystemExit(f"no run has {options.only!r} in its name")
    machine = describe_machine()
    if options.out:
        text = json.dumps({"machine": machine, "digests": found}, indent=1)
        options.out.write_text(text + "\n")
    if before is None:
        return
    for key, value in machine.items():
        if value != (was := before["machine"].get(key)):
            print(f"note: {key} is {value}, was {was}")
    told = compare(found, {k: v for k, v in before["digests"].items() if options.only in k})
    print("\n".join(told) or f"all {sum(map(len, found.values()))} digests are the same")
    if told:
        sys.exit(1)


if __name__ == "__main__":
    main()
