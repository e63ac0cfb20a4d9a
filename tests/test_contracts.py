"""Packages are few and say what they are for; the import contracts hold for each, new ones too."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "densebatch"
PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("torch", {"engines", "models", "training"}),
        ("click", {"cli"}),
        ("dask", {"workers"}),
    ],
)
def test_every_other_package_is_forbidden_a_library(library, allowed):
    # The contract of scoring lists modules of one package, and is none of these.
    (contract,) = [
        c for c in CONTRACTS
        if library in c.get("forbidden_modules", ()) and c.get("allow_indirect_imports")
    ]  # fmt: skip
    listed = [module.removeprefix("densebatch.") for module in contract["source_modules"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == PACKAGES - allowed


def test_every_package_has_a_layer():
    (contract,) = [c for c in CONTRACTS if c["type"] == "layers"]
    layers = [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    assert sorted(layers) == sorted(PACKAGES)


def test_a_newcomer_finds_packages_and_nothing_else():
    """Few packages that each say their job, with room in them, and no module that is too long."""
    top = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert top - {path.name for path in packages} == {"__init__.py", "__main__.py", "py.typed"}
    # Eighteen; `segmenters` and `testing` came with the road of label segmenters, `survey` and
    # `upkeep` as parts of `planning` and `run` that had no room for it, `measuring` as that of
    # `cells`, `exporting` with a module for each program that results are for; `compartments` with
    # nuclei within cells; `cohorts` for many slides at once, which `run`, the story of one, has no
    # room for and need not know; `readers` with one for each format of a microscope that a library
    # reads; `regions` for the part of a slide that counts, which plans and tables need;
    # `converting` for slides that are written anew, a run without labels; `remote` for slides by
    # their address, which folders of OME-Zarr and slides need; `sources` with a module or more for
    # each format that is read here, which `slides` has no room for.
    assert len(packages) <= 31
    for package in packages:
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())), package
        assert len(list(package.glob("*.py"))) - 1 <= 14, package
        for module in package.glob("*.py"):
            assert len(module.read_text().splitlines()) <= 450, module


def test_the_package_stays_small():
    """With its weights, below 40 MB."""
    files = [
        path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sum(path.stat().st_size for path in files) < 40e6


def test_paths_reach_zarr_as_paths():
    """zarr takes a string with `::` or `s3:` in it for an address, and a path never."""
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("zarr")), [place, *_]):
                    given = ast.unparse(place)
                    is_text = given.startswith(("str(", "f'", "os.fspath("))
                    assert not is_text, f"{module}:{node.lineno}"
