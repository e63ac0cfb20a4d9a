"""Kill or hold a process of a run as it writes a file: the named points of a run.

`write_hook` and `write_holding_hook` make a folder for PYTHONPATH, which every process of a command
imports as it starts: the driver and its workers alike. Nothing of the package is changed for it.
"""

from __future__ import annotations

import textwrap

POINTS = {
    "driver": [
        ".densebatch-owner.json", ".densebatch.json", "plan-*.json", "flows.zarr/zarr.json",
        "trace-*/labels.zarr/zarr.json", "labels/cells/zarr.json", "keys.npy", "gaps.json",
        "cells.parquet", "segmentation.ome.zarr/zarr.json", "run.json",
    ],
    "worker": [
        "flows.zarr/c/*", "journal/predict-*", "trace-*/labels.zarr/c/*", "keys-*.npy",
        "journal/trace-*", "labels/cells/*/c/*", "cells-*.npz", "journal/number-*",
    ],
}  # fmt: skip

_HOOK = """
    import fnmatch, multiprocessing, os, signal
    from pathlib import Path

    _replace, _flag = Path.replace, {flag!r}

    def _dying(self, target):
        role = "driver" if multiprocessing.parent_process() is None else "worker"
        if role == {role!r} and fnmatch.fnmatch(str(target), "*" + {point!r}):
            try:
                os.close(os.open(_flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return _replace(self, target)

    Path.replace = _dying
"""


def write_hook(folder, role, point):
    """A folder for PYTHONPATH: the first process of a role that writes at a point dies, once."""
    folder.mkdir()
    hook = _HOOK.format(flag=str(folder / "died"), role=role, point=point)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(hook))
    return folder


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
