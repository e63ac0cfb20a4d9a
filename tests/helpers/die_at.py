"""Kill or hold a process of a run as it writes a file: the named points of a run.

`write_hook` and `write_holding_hook` make a folder for PYTHONPATH, which every process of a command
imports as it starts: the driver and its workers alike. Nothing of the package is changed for it.
"""

from __future__ import annotations

import os
import textwrap

POINTS = {
    "driver": [
        ".densebatch-owner.json", ".densebatch.json", "plan-*.json", "flows.zarr/zarr.json",
        "trace-*/labels.zarr/zarr.json", "labels/cells/zarr.json", "state.json", "keys.npy",
        "gaps.json", "cells.parquet", "segmentation.ome.zarr/zarr.json", ".kept/seeds.npy",
        ".kept/digests.sha256", "out/digests.sha256", "run.json",
    ],
    "worker": [
        "flows.zarr/c/*", "journal/predict-*", "trace-*/labels.zarr/c/*", "keys-*.npy",
        "journal/trace-*", "labels/cells/*/c/*", "cells-*.npz", "journal/number-*",
    ],
}  # fmt: skip

_HOOK = """
    import fnmatch, multiprocessing, os, signal, sys, time
    from pathlib import Path

    _replace, _folder = Path.replace, Path({folder!r})

    def _is_worker():
        started_by_dask = sys.argv[0].endswith(os.path.join("dask", "__main__.py"))
        return started_by_dask or multiprocessing.parent_process() is not None

    def _die():
        victim = _folder / "victim"
        os.kill(int(victim.read_text()) if victim.exists() else os.getpid(), signal.SIGKILL)

    def _wait():
        while not (_folder / "go").exists():
            time.sleep(0.01)

    def _stopping(self, target):
        if _is_worker() == {is_worker} and fnmatch.fnmatch(str(target), "*" + {point!r}):
            try:
                (_folder / "there").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                _{act}()
        found = _replace(self, target)
        if fnmatch.fnmatch(str(target), "*/journal/predict-*"):
            with (_folder / "predicted").open("a") as file:
                file.write(Path(target).name + chr(10))
        return found

    Path.replace = _stopping
"""


def write_hook(folder, role, point, act="die"):
    """A folder for PYTHONPATH: the first process of a role that writes at a point stops there.

    It makes the file `there` in the folder, and kills itself, or the process whose number is in the
    file `victim`; or waits for a file `go` if `act` is "wait". Records of the network's work are
    listed in `predicted` as they are written.
    """
    folder.mkdir()
    hook = _HOOK.format(folder=str(folder), is_worker=role == "worker", point=point, act=act)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(hook))
    return folder


def list_predicted(hook):
    """Records of the network's work, in the order of writing: a name for each time."""
    file = hook / "predicted"
    return file.read_text().splitlines() if file.exists() else []


def hooked(hook):
    """The environment of a command and its processes."""
    return {"PYTHONPATH": os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])}


_HOLD = """
    import fnmatch, os, time
    from pathlib import Path

    _mkdir, _folder = Path.mkdir, Path({folder!r})

    def _held(self, *args, **options):
        if fnmatch.fnmatch(str(self), "*" + {point!r}):
            try:
                os.close(os.open(_folder / "held", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                while not (_folder / "go").exists():
                    time.sleep(0.02)
        return _mkdir(self, *args, **options)

    Path.mkdir = _held
"""


def write_holding_hook(folder, point):
    """As `write_hook`: the first process that writes into a folder waits until `go` is there.

    Once it waits, there is a file `held`.
    """
    folder.mkdir()
    hook = _HOLD.format(folder=str(folder), point=point)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(hook))
    return folder
