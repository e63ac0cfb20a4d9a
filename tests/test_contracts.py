"""The contracts of imports hold for every package, also for one that is new."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {path.parent.name for path in (ROOT / "densebatch").glob("*/__init__.py")}
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
