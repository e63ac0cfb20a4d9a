"""The container recipe, and densebatch as an unknown user whose root is read-only, without network.

`buildah` builds the recipe where the base image can be had. DENSEBATCH_TEST_BASE names another
one, such as Debian with python3-venv, and DENSEBATCH_TEST_BUILD are more options of `buildah bud`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.other_users import open_folder
from tests.helpers.run_files import read_result, run_command, simulate, write_tiff

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "integrations" / "container" / "Containerfile"
RUN_IN_ROOT = Path(__file__).parent / "run_in_root"
OPTIONS = ("--membrane", "CD3", "--model", "dense-tiny", "--tile", "128")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount"),
]


def run_in_root(root, work, environment, *command):
    run = subprocess.run(
        [RUN_IN_ROOT, root, work, *environment, "--", *map(str, command)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if run.returncode == 99 or "unshare" in run.stderr:
        pytest.skip(f"nothing can be mounted here: {run.stderr[-200:]}")
    return run


@pytest.fixture
def work():
    with open_folder() as folder:
        write_tiff(folder / "a.ome.tif", simulate(300, 280, seed=3), ["CD3", "DAPI"])
        yield folder


def assert_same_result(work, folder):
    alone = folder / "alone"
    code, _, err = run_command("segment", work / "a.ome.tif", alone, *OPTIONS, "--workers", 0)
    assert code == 0, err
    np.testing.assert_array_equal(read_result(work / "out")[0], read_result(alone)[0])


def test_an_unknown_user_without_a_home_writes_to_the_working_folder_alone(work, tmp_path):
    """All else is read-only, and what the user has left in memory's own file system is nothing."""
    (work / "tmp").mkdir()
    environment = (
        f"PATH={Path(sys.executable).parent}:/usr/bin:/bin",
        f"PYTHONPATH={os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}",
        f"TMPDIR={work / 'tmp'}",
    )
    run = run_in_root("/", work, environment, "densebatch", "segment", "a.ome.tif", "out",
                      *OPTIONS, "--workers", 2)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in work.iterdir()) == ["a.ome.tif", "out", "tmp"]
    shared = Path("/dev/shm")  # is not read-only there
    assert [path for path in shared.iterdir() if path.stat().st_uid == 12345] == []
    assert_same_result(work, tmp_path)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_the_recipe_has_no_faults_that_hadolint_knows():
    subprocess.run(["hadolint", RECIPE], check=True)


@pytest.mark.skipif(shutil.which("buildah") is None, reason="needs buildah")
def test_the_image_runs_read_only_without_network_as_any_user(work, tmp_path):
    store = ("--root", tmp_path / "store", "--runroot", tmp_path / "state",
             "--storage-driver", "vfs")  # fmt: skip
    if (place := os.environ.get("DENSEBATCH_TEST_STORE")) is not None:  # that has the base image
        store = ("--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs")

    def buildah(*arguments, check=True):
        return subprocess.run(
            ["buildah", *map(str, (*store, *arguments))], capture_output=True, text=True,
            timeout=1800, check=check,
        )  # fmt: skip

    base = os.environ.get("DENSEBATCH_TEST_BASE")
    built = buildah(
        "bud", "--isolation", "chroot", "--network", "host", "-f", RECIPE, "-t", "densebatch:test",
        *(("--build-arg", f"BASE={base}") if base else ()),
        *shlex.split(os.environ.get("DENSEBATCH_TEST_BUILD", "")), ROOT, check=False,
    )  # fmt: skip
    if built.returncode != 0 and base is None and "pull" in built.stderr + built.stdout:
        pytest.skip("the base image cannot be had here")
    assert built.returncode == 0, built.stderr[-2000:]
    image = json.loads(buildah("inspect", "--type", "image", "densebatch:test").stdout)
    facts = image["OCIv1"]["config"]
    assert facts["User"] == "1000:1000"
    container = buildah("from", "--pull-never", "densebatch:test").stdout.strip()
    try:
        root = buildah("mount", container).stdout.strip()
        version = run_in_root(root, work, facts["Env"], "densebatch", "--version")
        assert version.stdout.strip() == "0.1.0", version.stderr
        run = run_in_root(root, work, facts["Env"], "densebatch", "segment", "a.ome.tif", "out",
                          *OPTIONS, "--workers", 2)  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run_in_root(root, work, facts["Env"], "touch", "/opt/densebatch/x").returncode == 1
    finally:
        buildah("rm", container, check=False)
    assert sorted(path.name for path in work.iterdir()) == ["a.ome.tif", "out"]
    assert_same_result(work, tmp_path)
