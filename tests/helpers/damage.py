"""Results of runs, damaged bit by bit, for the tests of `verify`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from densebatch.base.checksums import checksum_file, format_checksums, list_files
from densebatch.cells.kept import read_list
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from tests.helpers.run_files import simulate, write_tiff
from tests.helpers.slide_files import write_zarr

SHAPE = (70, 2200)  # two shards, of which one has two files of 0.4
KINDS = ("0.5", pytest.param("0.4", marks=pytest.mark.slow), "in place")


def make_result(folder, kind, **options):
    """A finished run: OUT, its slide, and the folders that have its files."""
    pixels = simulate(*SHAPE, seed=3)
    options = {"membrane": ("CD3",), "workers": 0, "tile": 512, **options}
    out = folder / "out"
    if kind == "in place":
        slide = folder / "a.ome.zarr"
        write_zarr(slide, pixels, labels=["CD3", "DAPI"], n_levels=2)
        segment(slide, out, in_place=True, **options)
        return out, slide, [out, slide / "labels"]
    slide = write_tiff(folder / "a.ome.tif", pixels, ["CD3", "DAPI"])
    segment(slide, out, ngff=kind, **options)
    return out, slide, [out]


def read_files(tops):
    """Every file of a result and its bytes."""
    return {p: p.read_bytes() for top in tops for p in sorted(top.rglob("*")) if p.is_file()}


def flip(path, rng):
    """Change one bit of a file; returns its bytes as they were."""
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[rng.integers(len(before))] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    return before


def take_records(tasks, foreign, names=None):
    """Put records of another run, and the files that they cover, into the place of a run's own.

    `names` are those of the records; all are taken if it is None.
    """
    for record in sorted((foreign / "journal").glob("*.json")):
        if names is not None and record.stem not in names:
            continue
        for name in (*json.loads(record.read_bytes())["files"], f"journal/{record.name}"):
            (tasks / name).unlink(missing_ok=True)
            if (foreign / name).exists():  # a chunk of background has no file
                (tasks / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(foreign / name, tasks / name)


def draw_files(files, n, seed):
    """Files to change a bit in: each once, then by chance, the larger the more."""
    rng = np.random.default_rng(seed)
    paths = [path for path in files if files[path]]
    sizes = np.array([len(files[path]) for path in paths], float)
    drawn = [*paths, *(paths[k] for k in rng.choice(len(paths), n, p=sizes / sizes.sum()))]
    return drawn[:n], rng


def list_again(out, added=""):
    """Make the lists of a result true of what its files are now, as a faulty run would have.

    Files are those that were listed, and those below the folder `added` of the result.
    """
    folder = OutputFolder(out)
    for tree in folder.trees(folder.read_marker()):
        listed, _ = read_list(tree)
        listed = [*listed, *(n for n in list_files(tree.base) if added and n.startswith(added))]
        for name in listed:
            copy = tree.copy_of(name)
            if copy is not None:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((tree.base / name).read_bytes())
        text = format_checksums({name: checksum_file(tree.base / name) for name in listed})
        for path in tree.lists:
            path.write_bytes(text)
