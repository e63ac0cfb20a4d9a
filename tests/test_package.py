"""What `import densebatch` offers, and that it costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import densebatch


@pytest.mark.parametrize("name", densebatch.__all__)
def test_public_names_are_found(name):
    found = getattr(densebatch, name)
    assert found.__name__ == name
    assert found.__module__.startswith("densebatch.")


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'densebatch' has no attribute 'segmet'"):
        _ = densebatch.segmet


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import densebatch, densebatch.scoring\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} \n"
        "      - sys.stdlib_module_names)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60
    )
    assert run.stdout.split() == ["densebatch"]
