"""The Snakemake rule, by Snakemake itself in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.run_files import (
    assert_same_output,
    output_bytes,
    run_command,
    simulate,
    write_tiff,
)

ROOT = Path(__file__).parents[2]
RULES = ROOT / "integrations" / "snakemake"
OPTIONS = "  options:\n    membrane: CD3\n    nuclei: DAPI\n    model: dense-tiny\n    tile: 128\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    """Its program; DENSEBATCH_TEST_SNAKEMAKE names one that is installed already."""
    if (given := os.environ.get("DENSEBATCH_TEST_SNAKEMAKE")) is not None:
        return given
    folder = tmp_path_factory.mktemp("snakemake") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = subprocess.run(
        [folder / "bin" / "pip", "install", "-q", "snakemake>=9"], capture_output=True, text=True
    )
    if install.returncode != 0:
        pytest.skip(f"Snakemake cannot be installed: {install.stderr[-200:]}")
    return str(folder / "bin" / "snakemake")


@pytest.fixture
def project(tmp_path):
    """The example, with two small slides, of which one is named by other channels."""
    for file in RULES.iterdir():
        shutil.copy(file, tmp_path)
    config = (tmp_path / "config.yaml").read_text()
    start, end = config.index("  options:"), config.index("  threads:")
    settings = config[:start] + OPTIONS + config[end:].replace("threads: 8", "threads: 1")
    (tmp_path / "config.yaml").write_text(settings)
    (tmp_path / "slides").mkdir()
    for name, seed, channels in (("s01", 3, ["CD3", "DAPI"]), ("s02", 4, ["CD20", "DAPI"])):
        pixels = simulate(300, 280, seed=seed)
        write_tiff(tmp_path / "slides" / f"{name}.ome.tif", pixels, channels)
    sheet = (tmp_path / "samples.csv").read_text()
    (tmp_path / "samples.csv").write_text(sheet.replace('"CD3,CD20"', "CD20"))
    return tmp_path


def start(snakemake, project, **options):
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [snakemake, "--cores", "2", "--configfile", "config.yaml", "--nocolor"]
    return subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
        env={**os.environ, "PATH": paths, "PYTHONPATH": python, "HOME": str(project)}, **options,
    )  # fmt: skip


def test_slides_of_a_sheet_and_an_interruption(snakemake, project):
    """The runs that were interrupted go on; each slide ends with the bytes of a run by itself."""
    first = start(snakemake, project)
    results = project / "results"
    while len(list(results.glob("*/work/*/journal/trace-*"))) < 2:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (results / "counts.tsv").exists()

    subprocess.run([snakemake, "--unlock", "--configfile", "config.yaml"], cwd=project, check=True,
                   capture_output=True, env={**os.environ, "HOME": str(project)})  # fmt: skip
    again = start(snakemake, project)
    text, _ = again.communicate(timeout=300)
    logs = "\n".join(path.read_text() for path in results.glob("*.log"))
    assert again.returncode == 0, text + logs
    kept = [json.loads((results / f"{name}.json").read_text())["tasks_kept"] for name in
            ("s01", "s02")]  # fmt: skip
    assert sum(kept) >= 2
    for name, channel in (("s01", "CD3"), ("s02", "CD20")):
        code, _, err = run_command(
            "segment", project / "slides" / f"{name}.ome.tif", project / "alone" / name,
            "--membrane", channel, "--nuclei", "DAPI", "--model", "dense-tiny", "--tile", 128,
            "--workers", 0,
        )  # fmt: skip
        assert code == 0, err
        assert_same_output(results / name, output_bytes(project / "alone" / name))
    counts = [line.split("\t") for line in (results / "counts.tsv").read_text().splitlines()]
    assert [(name, int(failed)) for name, _, failed in counts] == [("s01", 0), ("s02", 0)]
    assert all(int(cells) > 50 for _, cells, _ in counts)


def test_a_slide_without_its_channel_fails_its_job_alone(snakemake, project):
    pixels = simulate(300, 280, seed=4)
    write_tiff(project / "slides" / "s02.ome.tif", pixels, ["CD4", "DAPI"])
    run = start(snakemake, project)
    run.communicate(timeout=300)
    assert run.returncode == 1
    assert "no channel 'CD20'" in (project / "results" / "s02.log").read_text()
    assert not (project / "results" / "s02.json").exists()
