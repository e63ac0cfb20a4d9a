"""Tiny slides of a cohort, among them one that is broken and one without the others' channel."""

from __future__ import annotations

import csv
import json

from tests.helpers.run_files import simulate, write_tiff

OPTIONS = ("--membrane", "CD3", "--model", "dense-tiny")


def write_slides(folder, n, side=(96, 110)):
    """So many slides `s0.ome.tif` and so on that can be segmented, each another."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_tiff(
            folder / f"s{k}.ome.tif", simulate(side[0], side[1] + 8 * k, seed=k), ["CD3", "DAPI"]
        )
        for k in range(n)
    ]


def write_broken(folder, whole):
    """A slide whose file is cut short."""
    path = folder / "broken.ome.tif"
    path.write_bytes(whole.read_bytes()[:3000])
    return path


def write_other(folder):
    """A slide that has another channel in place of CD3."""
    return write_tiff(folder / "other.ome.tif", simulate(96, 110, seed=9), ["CD9", "DAPI"])


def write_sheet(path, *rows):
    """A sample sheet; each row is a dict, or a list of cells."""
    with path.open("w", newline="") as file:
        if isinstance(rows[0], dict):
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
        else:
            writer = csv.writer(file)
        writer.writerows(rows)
    return path


def read_samples(out):
    """Rows of `cohort.json` by their samples."""
    samples = json.loads((out / "cohort.json").read_text())["samples"]
    return {row.pop("sample"): row for row in samples}


def states(out):
    return {name: row["state"] for name, row in read_samples(out).items()}
