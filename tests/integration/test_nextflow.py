"""The Nextflow module, whose scripts run by hand: PyPI and Debian do not have Nextflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.run_files import read_result, simulate, write_tiff

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "integrations" / "nextflow"
MODULE = FOLDER / "densebatch" / "segment"
META = {"meta.id": "batch", "task.process": "DENSEBATCH_SEGMENT", "task.cpus": "0",
        "prefix": "batch", "device": "cpu", "sheet": "sheet.csv"}  # fmt: skip


def fill(section, **values):
    """What bash gets of a section of the module, as Groovy fills its string."""
    text = (MODULE / "main.nf").read_text().split(f"    {section}:")[1]
    text = re.search(r'"""\n(.*?)"""', text, re.DOTALL)[1]
    known = {**META, **values}
    text = re.sub(
        r"(?<!\\)\$(?:\{([\w.]+)\}|([\w.]*\w))", lambda match: known[match[1] or match[2]], text
    )
    return re.sub(r"\\(.)", r"\1", "\n".join(line[4:] for line in text.splitlines()))


def run_task(folder, text):
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, capture_output=True, text=True,
        timeout=300, env={**os.environ, "PATH": paths, "PYTHONPATH": python},
    )  # fmt: skip


def list_outputs(folder):
    """By the names of the module's channels, what its patterns match."""
    text = (MODULE / "main.nf").read_text()
    found = re.findall(r'path\(?\s*"([^"]+)"\)?\s*,\s*emit: (\w+)', text)
    return {
        name: [str(path.relative_to(folder)) for path in folder.glob(
            pattern.replace("${prefix}", "batch"))]
        for pattern, name in found
    }  # fmt: skip


def test_its_description_names_its_inputs_and_outputs():
    facts = yaml.safe_load((MODULE / "meta.yml").read_text())
    text = (MODULE / "main.nf").read_text()
    emitted = set(re.findall(r"emit: (\w+)", text))
    assert set(facts["output"]) == emitted == set(list_outputs(MODULE))
    (inputs,) = facts["input"]
    assert [name for one in inputs for name in one] == ["meta", "sheet", "slides"]
    environment = yaml.safe_load((MODULE / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": ["densebatch==0.1.0"]}


@pytest.mark.slow
def test_the_stub_gives_all_outputs(tmp_path):
    run = run_task(tmp_path, fill("stub"))
    assert run.returncode == 0, run.stderr
    assert all(len(files) == 1 for files in list_outputs(tmp_path).values())
    versions = yaml.safe_load((tmp_path / "versions.yml").read_text())
    assert list(versions["DENSEBATCH_SEGMENT"]) == ["densebatch"]


@pytest.mark.slow
def test_a_sheet_of_which_one_slide_fails(tmp_path):
    """The task fails with 3, unless `ext.partial` says that what is done is a result."""
    slide = tmp_path / "a.ome.tif"
    write_tiff(slide, simulate(300, 280, seed=3), ["CD3", "DAPI"])
    (tmp_path / "bad.ome.tif").write_bytes(slide.read_bytes()[:9000])
    (tmp_path / "sheet.csv").write_text("sample,slide\none,a.ome.tif\ntwo,bad.ome.tif\n")
    args = "--membrane CD3 --model dense-tiny"
    run = run_task(tmp_path, fill("script", args=args, partial=""))
    assert run.returncode == 3, run.stderr
    run = run_task(tmp_path, fill("script", args=args, partial="|| [ $? -eq 3 ]"))
    assert run.returncode == 0, run.stderr
    found = list_outputs(tmp_path)
    assert found["labels"] == ["batch/one/segmentation.ome.zarr"]
    assert found["table"] == ["batch/one/cells.parquet"]
    assert found["versions"] == ["versions.yml"]
    states = json.loads((tmp_path / "batch" / "cohort.json").read_text())["samples"]
    assert [(one["sample"], one["state"]) for one in states] == [("one", "done"), ("two", "failed")]
    assert read_result(tmp_path / "batch" / "one")[0].max() > 50


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("groovy") is None, reason="needs Debian's package groovy")
def test_all_files_are_groovy(tmp_path):
    """Nextflow's language is one of Groovy's."""
    parse = tmp_path / "parse.groovy"
    parse.write_text(
        "import org.codehaus.groovy.control.*\n"
        "args.each { name -> def unit = new CompilationUnit(); unit.addSource(new File(name))\n"
        "            unit.compile(Phases.CONVERSION) }\n"
    )
    files = [p for p in FOLDER.rglob("*") if p.suffix in (".nf", ".config", ".test")]
    assert len(files) == 4
    java = Path(shutil.which("java") or "/usr/bin/java").resolve().parents[1]
    run = subprocess.run(["groovy", parse, *files], capture_output=True, text=True,
                         env={"JAVA_HOME": str(java), **os.environ})  # fmt: skip
    assert run.returncode == 0, run.stderr
