"""Writes of tasks that fail: one sentence with the path, nothing lost, and the run can go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from densebatch.base.errors import WriteError
from densebatch.run.segment import segment
from densebatch.stages import writing
from tests.helpers.run_files import output_bytes, simulate, tasks_folder, write_tiff
from tests.run.test_slide_changes import Meddler

SHAPE = (300, 1100)
OPTIONS = {"membrane": ("CD3",), "tile": 128, "workers": 0, "model": "dense-tiny"}


GROUP_PX = 250


@pytest.fixture(scope="module", autouse=True)
def _no_pauses():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_PAUSES_S", (0.0, 0.0))
        yield


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.ome.tif"
    return write_tiff(path, simulate(*SHAPE, seed=4), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def clean(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean")
    segment(slide, out, **OPTIONS)
    return output_bytes(out)


CALL = """
import resource, sys
from pathlib import Path
from densebatch.planning import flow_planner
from densebatch.run.segment import segment
from tests.run.test_slide_changes import Meddler
flow_planner._GROUP_PX = 250
def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
meddler = Meddler(sys.argv[3], limit)
from densebatch.base.errors import DensebatchError
try:
    segment(sys.argv[1], sys.argv[2], membrane=("CD3",), tile=128, workers=0, model="dense-tiny",
            progress=meddler)
except DensebatchError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    ("stage", "n_bytes", "file"),
    [
        ("predict", 4096, "flows.zarr"),
        pytest.param("trace", 600, "trace-128", marks=pytest.mark.slow),
        pytest.param("predict", 100, "trace-128", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_may_not_grow(slide, clean, tmp_path, stage, n_bytes, file):
    """As on a full disk: the system writes a part of it and refuses the rest."""
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(slide), str(tmp_path), stage, str(n_bytes)],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    told = done.stderr.splitlines()[-1]
    assert told.startswith(f"WriteError: {tmp_path}/work/")
    assert file in told
    assert told.endswith(
        "cannot be written (File too large); nothing that was done is lost, and the same command "
        "continues once it can be"
    )
    result = segment(slide, tmp_path, **OPTIONS)
    assert result.report["tasks_kept"] > 0
    assert output_bytes(tmp_path) == clean


def find_flows(out):
    return tasks_folder(out) / "flows.zarr" / "c" / "0" / "0"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_any_more(slide, clean, tmp_path):
    try:
        meddler = Meddler("predict", lambda: find_flows(tmp_path).chmod(0o500))
        with pytest.raises(WriteError, match=r"flows\.zarr: cannot be written \(Permission denied"):
            segment(slide, tmp_path, progress=meddler, **OPTIONS)
    finally:
        find_flows(tmp_path).chmod(0o700)
    segment(slide, tmp_path, **OPTIONS)
    assert output_bytes(tmp_path) == clean


def test_a_folder_that_became_a_file(slide, clean, tmp_path):
    """Nobody may write there, whoever he is."""

    def meddle():
        flows = find_flows(tmp_path)
        flows.rename(tmp_path / "kept")
        flows.write_text("in the way")

    with pytest.raises(WriteError, match=r"flows\.zarr: cannot be written \("):
        segment(slide, tmp_path, progress=Meddler("predict", meddle), **OPTIONS)
    flows = find_flows(tmp_path)
    flows.unlink()
    (tmp_path / "kept").rename(flows)
    segment(slide, tmp_path, **OPTIONS)
    assert output_bytes(tmp_path) == clean


def test_a_write_that_fails_once_is_tried_again(tmp_path):
    tries = []

    def write():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(5, "Input/output error")
        return "done"

    assert writing.write_patiently(tmp_path / "a", write) == "done"

    def fail():
        raise OSError(5, "Input/output error")

    with pytest.raises(WriteError, match=r"/a: cannot be written \(Input/output error\)"):
        writing.write_patiently(tmp_path / "a", fail)
