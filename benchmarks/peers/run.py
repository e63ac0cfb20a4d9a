"""densebatch beside its peers: same mosaic, same checkpoint, same diameter, same processors.

    python benchmarks/peers/run.py FIELDS --checkpoint MODEL --work SCRATCH

FIELDS holds annotated images (`*_img.png` with `*_masks.png`), of which the first four become a
mosaic of two by two, or of more with `--side`, in which they come again: the larger it is, the less
does the time that programs take to start weigh. MODEL is of full width (stock cannot run another)
and trained at the resolution of the fields: a bundled model, which everybody then runs as a
Cellpose checkpoint with its diameter rounded to a whole pixel, or the file of a Cellpose 1-3
checkpoint. Its own diameter is the cells' diameter, so that nobody rescales, except in the row of
the paper's protocol (Han et al. 2024), which enlarges twice.

The peers are installed into virtual environments in SCRATCH, with the versions pinned beside this
file, and run as programs, each repeat in a process of its own:

- stock: cellpose 3.1.1.3, `CellposeModel.eval` on the whole image;
- distributed: its `contrib.distributed_segmentation.distributed_eval`, up to the merge, in which it
  fails on an image without depth; labels are those of the blocks, not joined;
- patchworks 3.3.0 with `--method custom` around the same stock model and `--stitch iou`;
- densebatch, and variants of it given as `--variant NAME="OPTIONS OF densebatch segment"`.

Wall time is from the start of a process to its end, imports included. Every number is the median
of the repeats. Needs Linux: processors are limited by affinity.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from borders import interior_lines, report_borders
from mosaic import UM_PER_PX, Mosaic, build_mosaic

from densebatch.models.model import find_model, load_network
from densebatch.scoring.score import score_labels
from densebatch.studies.benchmark_record import describe_machine, describe_versions
from densebatch.studies.watch import watch_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

HERE = Path(__file__).parent
_TAIL = 3000  # characters of what a failed contestant said


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes
    ----------
    name : of the row
    command : from the folder of one repeat, the program and its arguments
    labels : from that folder, the label image
    lines : from that folder, rows and columns before which a tile begins
    note : what a reader must know
    env : added to the environment
    """

    name: str
    command: Callable[[Path], list[str]]
    labels: Callable[[Path], NDArray[Any]]
    lines: Callable[[Path], tuple[list[int], list[int]]]
    note: str = ""
    env: dict[str, str] = field(default_factory=dict)


def read_pins(name: str) -> list[str]:
    """Packages and versions of one peer's environment."""
    lines = (HERE / f"requirements-{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def build_environment(name: str, work: Path) -> Path:
    """A virtual environment with the pinned versions of one peer; its folder of programs."""
    folder = work / f"env-{name}"
    pins = (HERE / f"requirements-{name}.txt").read_text()
    mark = folder / "installed.txt"
    if not mark.exists() or mark.read_text() != pins:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"building {folder}", flush=True)
        venv.create(folder, with_pip=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "-r"]
        subprocess.run([*install, str(HERE / f"requirements-{name}.txt")], check=True)
        mark.write_text(pins)
    return folder / "bin"


def as_checkpoint(model: str, work: Path) -> Path:
    """The file of a model that stock Cellpose can load; its diameter is a whole number of pixels.

    `distributed_eval` takes no other diameter.
    """
    found = find_model(model)
    if found.path.endswith(".safetensors"):
        state = load_network(found).state_dict()
        for name in ("diam_mean", "diam_labels"):
            state[name] = torch.full((1,), float(round(found.diameter_px)))
        path = work / f"{found.name}-cellpose"
        torch.save(state, path)
        return path
    if found.diameter_px != int(found.diameter_px):
        raise SystemExit(
            f"{model}: diameter {found.diameter_px}; distributed_eval takes whole pixels"
        )
    return Path(found.path).absolute()


def list_contestants(options: argparse.Namespace, mosaic: Mosaic) -> list[Contestant]:
    """Everybody who takes part, with their environments built."""
    shape = mosaic.truth.shape
    checkpoint = str(as_checkpoint(options.checkpoint, options.work))
    diameter = find_model(checkpoint).diameter_px
    common = {"image": str(mosaic.npy), "checkpoint": checkpoint}

    def no_lines(_: Path) -> tuple[list[int], list[int]]:
        return [], []

    def grid(step: int) -> Callable[[Path], tuple[list[int], list[int]]]:
        return lambda _: (interior_lines(shape[0], step), interior_lines(shape[1], step))

    def saved(out: Path) -> NDArray[Any]:
        return np.load(out / "labels.npy")

    def stock(kind: str, at: float, **more: Any) -> Callable[[Path], list[str]]:  # noqa: ANN401
        def command(out: Path) -> list[str]:
            arguments = {**common, "labels": str(out / "labels.npy"), "diameter": at, **more}
            if kind == "distributed":
                arguments |= {"scratch": str(out), "facts": str(out / "facts.json")}
            python = str(options.work / "env-stock/bin/python")
            return [python, str(HERE / "stock.py"), kind, json.dumps(arguments)]

        return command

    def patchworks(tile: int) -> Callable[[Path], list[str]]:
        arguments = json.dumps({"checkpoint": checkpoint, "diameter": diameter})
        more = ["--workers", str(options.patchworks_workers)] if options.patchworks_workers else []
        return lambda out: [
            str(options.work / "env-patchworks/bin/patchworks"),
            *("segment", str(mosaic.store), "--method", "custom", "--fn", "stock:segment"),
            *("--fn-kwargs", arguments, "--stitch", "iou", "--tile-shape", f"{tile},{tile}"),
            *("--overlap", str(options.overlap), "--output", str(out / "labels.zarr"), *more),
        ]

    def densebatch(arguments: list[str]) -> Callable[[Path], list[str]]:
        workers = ["--workers", str(options.threads)]
        start = [sys.executable, "-m", "densebatch", "segment", str(mosaic.store)]
        return lambda out: [*start, str(out / "out"), *workers, *arguments]

    def ours(out: Path) -> NDArray[Any]:
        report = json.loads((out / "out/run.json").read_text())
        return zarr.open_array(Path(report["labels"]) / "0", mode="r")[:]

    def our_lines(out: Path) -> tuple[list[int], list[int]]:
        """Of tracing tiles and of the cores of network patches."""
        report = json.loads((out / "out/run.json").read_text())
        tile, scale = report["settings"]["tile"], report["plan"]["rescale"]
        both = []
        for length, axis in zip(shape, ("y", "x"), strict=True):
            part = report["plan"]["lattice"][axis]
            cores = interior_lines(part["length"], part["patch"] - 2 * part["margin"])
            inside = {round(line / scale) for line in cores} | set(interior_lines(length, tile))
            both.append(sorted(inside))
        return both[0], both[1]

    threads = {"OMP_NUM_THREADS": str(options.threads)}
    found = [
        Contestant(
            "stock as the paper runs it",
            stock("eval", diameter / 2),
            saved,
            no_lines,
            f"diameter {diameter / 2:g}: the image is enlarged twice; for the time, since the "
            "checkpoint is trained for the image as it is",
            threads,
        ),
        Contestant("stock", stock("eval", diameter), saved, no_lines, "whole image", threads),
        Contestant(
            "distributed",
            stock("distributed", diameter, block=options.block, workers=options.threads),
            saved,
            grid(options.block),
            f"blocks of {options.block}; time up to the merge, in which it fails; cells not joined",
        ),
        *(
            Contestant(
                f"patchworks {tile}",
                patchworks(tile),
                lambda out: zarr.open_array(out / "labels.zarr/labels", mode="r")[:],
                grid(tile),
                f"tiles of {tile}, overlap {options.overlap}",
                {**threads, "PYTHONPATH": str(HERE)},
            )
            for tile in options.tiles
        ),
        Contestant(
            "densebatch",
            densebatch(["--model", checkpoint, "--diameter", f"{diameter:g}"]),
            ours,
            our_lines,
            "same checkpoint; borders of tiles and of network patches",
        ),
        *(
            Contestant(f"densebatch {name}", densebatch(shlex.split(arguments)), ours, our_lines,
                       arguments)
            for name, _, arguments in (variant.partition("=") for variant in options.variant)
        ),
    ]  # fmt: skip
    if options.only:
        unknown = set(options.only) - {contestant.name for contestant in found}
        if unknown:
            raise SystemExit(f"no contestant {unknown.pop()!r}: {[c.name for c in found]}")
        found = [contestant for contestant in found if contestant.name in options.only]
    names = {contestant.name.split()[0] for contestant in found}
    for name in ("stock", "patchworks"):
        if name in names or (name == "stock" and "distributed" in names):
            build_environment(name, options.work)
    return found


def run_once(contestant: Contestant, mosaic: Mosaic, out: Path, threads: int) -> dict[str, Any]:
    """One repeat, measured and scored; its folder is removed."""
    shutil.rmtree(out, ignore_errors=True)
    home = out / "home"
    (home / ".config/dask").mkdir(parents=True)  # distributed_eval writes there, and needs it
    # what a machine is found out to be is found out once, not once a run
    cache = {"DENSEBATCH_CACHE": str(out.parent / "cache")}
    env = {**os.environ, "HOME": str(home), **cache, **contestant.env}
    watched = watch_command(contestant.command(out), cores=threads, env=env, cwd=out)
    if watched.returncode:
        raise SystemExit(
            f"{contestant.name} ended with {watched.returncode}:\n{watched.output[-_TAIL:]}"
        )
    wall_s, facts = watched.wall_s, {}
    if (out / "facts.json").exists():
        facts = json.loads((out / "facts.json").read_text())
        wall_s = facts.pop("merge_at") - watched.started
    labels = np.asarray(contestant.labels(out))
    if labels.shape != mosaic.truth.shape:
        raise SystemExit(f"{contestant.name}: labels of {labels.shape}, not {mosaic.truth.shape}")
    row = {
        "wall_s": round(wall_s, 2),
        "s_per_mpx": round(wall_s / labels.size * 1e6, 3),
        "peak_mb": watched.peak_mb,
        "ap": round(score_labels(mosaic.truth, labels).at("0.50").ap, 4),
        "cells": int(np.count_nonzero(np.unique(labels))),
        **report_borders(labels, contestant.lines(out), mosaic.seams),
        **facts,
    }
    report = out / "out/run.json"
    if report.exists():
        told = json.loads(report.read_text())
        row |= {key: told[key] for key in ("network_seconds", "wall_over_network")}
    shutil.rmtree(out)
    return row


def summarize(contestant: Contestant, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what are numbers; everything else as the first repeat told it."""
    row: dict[str, Any] = {"name": contestant.name}
    for key, value in runs[0].items():
        values = [run[key] for run in runs]
        is_number = all(isinstance(v, int | float) for v in values)
        row[key] = median(values) if is_number else value
    return {**row, "note": contestant.note, "repeats": runs}


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with how many times as long as densebatch each takes."""
    ours = next((row["wall_s"] for row in rows if row["name"] == "densebatch"), None)
    head = (
        "| | wall s | s/Mpx | times densebatch | peak MB | AP at IoU 0.5 | cells "
        "| cut at borders (by chance) | |\n| --- " + "| ---: " * 7 + "| --- |"
    )
    lines = []
    for row in rows:
        times = f"{row['wall_s'] / ours:.2f}" if ours else "-"
        cut = f"{row['cut_pairs']:.0f} ({row['cut_pairs_by_chance']:.1f})"
        lines.append(
            f"| {row['name']} | {row['wall_s']:.1f} | {row['s_per_mpx']:.2f} | {times} "
            f"| {row['peak_mb']:.0f} | {row['ap']:.3f} | {row['cells']:.0f} "
            f"| {cut if row['lines'] else 'no tiles'} | {row['note']} |"
        )
    return "\n".join([head, *lines])


def build_parser(description: str | None, out: Path) -> argparse.ArgumentParser:
    """Options of who takes part, on which mosaic, and where the record goes, by default `out`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fields", type=Path)
    parser.add_argument("--checkpoint", required=True, metavar="MODEL")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, kept")
    parser.add_argument("--threads", type=int, default=2, help="processors for everybody")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 1392])
    parser.add_argument("--overlap", type=int, default=60, help="of patchworks' tiles, px")
    parser.add_argument("--patchworks-workers", type=int, help="its --workers; its own choice")
    parser.add_argument("--block", type=int, default=1024, help="of distributed_eval, px")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=OPTIONS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants by their row's name")
    parser.add_argument("--side", type=int, default=2, help="fields along each side, 2 or more")
    parser.add_argument("--out", type=Path, default=out)
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Options of the command line, checked, with their folders made."""
    options = parser.parse_args()
    if options.side < 2:
        parser.error(f"--side {options.side}: accepted are 2 fields or more")
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


def describe_all_versions() -> dict[str, Any]:
    """Of densebatch's environment, and what is pinned for the peers'."""
    pins = {name: read_pins(name) for name in ("stock", "patchworks")}
    return {"densebatch": describe_versions(), **pins}


def begin_record(
    options: argparse.Namespace, fields: list[str], shape: tuple[int, ...]
) -> dict[str, Any]:
    """What a record says of a run before it has rows."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(),
        "versions": describe_all_versions(),
        "settings": {
            "fields": fields,
            "shape": list(shape),
            "um_per_px": UM_PER_PX,
            "checkpoint_sha256": find_model(options.checkpoint).sha256,
            "threads": options.threads,
        },
    }


def main() -> None:
    parser = build_parser(__doc__, HERE.parent / "results/peers.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--crop", type=int, help="a middle piece of the mosaic, for a trial")
    options = read_options(parser)
    mosaic = build_mosaic(options.fields, options.work, options.side, options.crop)
    record = begin_record(options, mosaic.fields, mosaic.truth.shape)
    record["settings"] |= {"truth_cells": int(mosaic.truth.max()), "repeats": options.repeats}
    contestants = list_contestants(options, mosaic)
    for contestant in contestants:
        # code is compiled, and a backend judged, once per installation and not once per run
        if contestant.name.startswith("densebatch"):
            run_once(contestant, mosaic, options.work / "warm", options.threads)
    runs: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in contestants}
    # in turns, so that a slow quarter of an hour of the machine meets everybody
    for _ in range(options.repeats):
        for contestant in contestants:
            row = run_once(contestant, mosaic, options.work / "run", options.threads)
            runs[contestant.name].append(row)
            print(f"{contestant.name}: {json.dumps(row)}", flush=True)
    rows = [summarize(contestant, runs[contestant.name]) for contestant in contestants]
    record["rows"] = rows
    table = format_table(rows)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
