"""Profiles of `configs/clusters` that need no queue, or a stand-in for its one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.run_files import (
    assert_same_output,
    output_bytes,
    run_command,
    simulate,
    write_tiff,
)

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "configs" / "clusters"
OPTIONS = ("--membrane", "CD3", "--model", "dense-tiny", "--tile", "128")
SCRIPTS = sorted(path for path in CLUSTERS.glob("*/*") if path.suffix in (".sh", ".sbatch", ".lsf"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_scripts_can_be_read_by_bash(script):
    assert script.stat().st_size > 500
    subprocess.run(["bash", "-n", script], check=True)


def test_the_manifests_of_kubernetes_fit_together():
    """Labels select the pods they are meant for, and nobody may write to a container."""
    text = (CLUSTERS / "kubernetes" / "densebatch.yaml").read_text()
    objects = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(text)}
    assert len(objects) == 5
    pods = {
        name: o["spec"]["template"] for (_, name), o in objects.items() if "template" in o["spec"]
    }
    for (kind, name), o in objects.items():
        selector = o["spec"].get("selector") or o["spec"].get("podSelector")
        if selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        chosen = [n for n, p in pods.items() if wanted.items() <= p["metadata"]["labels"].items()]
        assert chosen == ([name] if kind != "NetworkPolicy" else list(pods))
    for pod in pods.values():
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {m["mountPath"] for m in container["volumeMounts"]} >= {"/tmp"}
    address = "tcp://densebatch-scheduler:8786"
    assert ("Service", "densebatch-scheduler") in objects
    for name in ("densebatch-workers", "densebatch-segment"):
        assert address in " ".join(pods[name]["spec"]["containers"][0]["command"])


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(300, 280, seed=3), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def alone(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    code, _, err = run_command("segment", slide, out, *OPTIONS, "--workers", 0)
    assert code == 0, err
    return output_bytes(out)


def run_script(script, folder, *arguments, **env):
    paths = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    python = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["bash", script, *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        timeout=300, env={**os.environ, "PATH": paths, "PYTHONPATH": python, **env},
    )  # fmt: skip


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.slow
def test_local(slide, alone, tmp_path):
    run = run_script(CLUSTERS / "local" / "segment.sh", tmp_path, slide, "out", *OPTIONS,
                     WORKERS="2", TMPDIR=str(tmp_path))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert_same_output(tmp_path / "out", alone)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_multi_gpu_gives_each_worker_its_own_device(slide, tmp_path):
    """What the workers are started with; without a GPU, none is found to take part."""
    write_program(tmp_path / "dask", '[ "$1" = cuda ] && echo "$@" > cuda.txt || exec "$REAL" "$@"')
    run = run_script(
        CLUSTERS / "multi-gpu" / "segment.sh", tmp_path, slide, "out", *OPTIONS, "--patience", "2",
        REAL=str(Path(sys.executable).parent / "dask"), THREADS="3",
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert "no worker has joined it" in run.stderr
    assert "cuda worker --scheduler-file" in (tmp_path / "cuda.txt").read_text()
    assert "--nthreads 3" in (tmp_path / "cuda.txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils")
def test_lsf_with_two_hosts_that_are_this_one(slide, alone, tmp_path):
    """LSF cannot be had; the script's body runs with its variables and a stand-in for blaunch."""
    write_program(tmp_path / "blaunch", 'shift 2; exec "$@"')
    run = run_script(
        CLUSTERS / "lsf" / "segment.lsf", tmp_path, LSB_JOBID="7",
        LSB_MCPU_HOSTS="one 1 two 1", ARGUMENTS=" ".join(map(str, (slide, "out", *OPTIONS))),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert_same_output(tmp_path / "out", alone)
    assert not list(tmp_path.glob("densebatch-*.json"))
