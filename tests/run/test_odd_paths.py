"""Paths that zarr, pyarrow or a shell would take for something else are paths like any other."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers.run_files import call_main, read_result, run_command, simulate
from tests.helpers.slide_files import write_zarr

NAMES = ["a::b", "s3:", "memory:", "#x?y=*[1]{z}", "~ 50%20 é", "c.zip"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A slide under an ordinary name, and the labels of it."""
    folder = tmp_path_factory.mktemp("plain")
    slide = write_zarr(folder / "slide.zarr", simulate(130, 150), n_levels=2, labels=["M", "N"])
    code, _, err = run_command("segment", slide, folder / "out", "--membrane", "M", "--workers", 0)
    assert code == 0, err
    return slide, read_result(folder / "out")[0]


def copy_slide(plain, folder, name):
    """The slide and a neighbouring folder that nobody may write into."""
    (folder / name).mkdir()
    for part in name.split(":"):
        (folder / (part or "empty")).mkdir(exist_ok=True)
    slide = folder / name / f"{name} slide.zarr"
    shutil.copytree(plain[0], slide)
    return slide


def list_outside(folder, name):
    return sorted(path for path in folder.rglob("*") if (folder / name) not in path.parents)


@pytest.mark.parametrize("name", NAMES)
def test_segment_and_score(plain, tmp_path, capsys, name):
    slide = copy_slide(plain, tmp_path, name)
    before = list_outside(tmp_path, name)
    out = tmp_path / name / f"out {name}"
    arguments = ("segment", slide, out, "--membrane", "M", "--workers", 0)
    code, _, err = call_main(capsys, *arguments)
    assert code == 0, err
    np.testing.assert_array_equal(read_result(out)[0], plain[1])
    code, _, err = call_main(capsys, *arguments)  # it is complete and seen to be
    assert code == 0, err
    inside = ("segment", slide, tmp_path / name / "inside", "--membrane", "M", "--in-place")
    code, _, err = call_main(capsys, *inside, "--workers", 0)
    assert code == 0, err
    capsys.readouterr()
    code, told, err = call_main(capsys, "score", slide, out, "--json", "-")
    assert code == 0, err
    assert json.loads(told)["images"][0]["mean_ap"] == 1
    assert list_outside(tmp_path, name) == before


@pytest.mark.slow
def test_two_workers(plain, tmp_path):
    name = "a::b"
    slide = copy_slide(plain, tmp_path, name)
    before = list_outside(tmp_path, name)
    out = tmp_path / name / f"out {name}"
    arguments = ("segment", slide, out, "--membrane", "M", "--workers", 2, "--tile", 64)
    code, _, err = run_command(*arguments)
    assert code == 0, err
    np.testing.assert_array_equal(read_result(out)[0], plain[1])
    assert list_outside(tmp_path, name) == before


@pytest.mark.parametrize("name", ["s3:", "file:", "~nobody here.zarr"])
def test_relative_paths(plain, tmp_path, monkeypatch, capsys, name):
    shutil.copytree(plain[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    arguments = ("segment", name, f"{name} out", "--membrane", "M", "--workers", 0)
    code, _, err = call_main(capsys, *arguments)
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name} out"])
