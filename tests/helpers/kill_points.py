"""Run by `test_resume`: kill a run at its k-th rename of a file, for many k, and continue it.

A rename is how every file of a run appears (array chunks, metadata, records, tables), so its
moments are all the states of the disk in which a run can be killed, but for files that never get
a name. Each attempt is a fork of this process, which has imported everything and computed nothing:
a killed child runs no handler and leaves what a SIGKILL leaves.

    kill_points.py SLIDE FOLDER STRIDE OPTIONS
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import densebatch.run.segment


def run(slide, out, options, kill_at=None):
    """Segment in a child; the number of renames it got to, or None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            count = 0
            replace = Path.replace

            def counted(self, target):
                nonlocal count
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replace(self, target)

            Path.replace = counted
            result = densebatch.run.segment.segment(slide, out, workers=0, **options)
            told = {"renames": count, "kept": result.report["tasks_kept"]}
            os.write(writer, json.dumps(told).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    assert os.WEXITSTATUS(status) == 0
    return json.loads(told)


def main():
    slide, folder, stride, options = (
        sys.argv[1],
        Path(sys.argv[2]),
        int(sys.argv[3]),
        json.loads(sys.argv[4]),
    )
    clean = run(slide, folder / "clean", options)
    report = {"renames": clean["renames"], "killed": []}
    for k in range(1, clean["renames"] + 1, stride):
        out = folder / f"killed-{k}"
        killed = run(slide, out, options, kill_at=k)
        assert killed is None
        again = run(slide, out, options)
        report["killed"].append({"at": k, "kept": again["kept"], "out": str(out)})
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
