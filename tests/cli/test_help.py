"""The help of every command, which must not wait for what only the command itself needs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import click
import pytest

from densebatch.cli.main import cli

HEAVY = {
    "torch", "dask", "distributed", "numba", "zarr", "pandas", "pyarrow", "skimage", "scipy",
    "cellpose", "numpy", "rich", "requests", "pooch", "tifffile", "imagecodecs", "PIL", "jinja2",
    "openvino", "safetensors",
}  # fmt: skip
PRINT_HELP = """
import json, sys
from densebatch.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def list_commands(command, *path):
    """The words that name a command, and those of all commands below it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from list_commands(command.get_command(context, name), *path, name)


COMMANDS = list(list_commands(cli))


def test_commands_within_commands_are_found():
    assert {(), ("segment",), ("models", "import"), ("benchmark", "scaling")} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command):
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_HELP, *command, "--help"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert printed.stderr == ""
    text, _, modules = printed.stdout.rstrip().rpartition("\n")
    assert f"{' '.join(command)} [OPTIONS]" in text.splitlines()[0]
    assert "--verbose " in text
    assert "--log-json FILE " in text
    assert not HEAVY & set(json.loads(modules))


def test_the_version_is_one_bare_number():
    """Pipelines take what is printed as it is."""
    command = [sys.executable, "-m", "densebatch", "--version"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stdout == version("densebatch") + "\n"
