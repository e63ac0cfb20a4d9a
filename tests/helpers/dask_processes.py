"""A Dask scheduler and workers as a cluster has them: processes of their own, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import distributed

import densebatch

# They do jobs of the tests, which are not installed.
_PATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


class Processes:
    """What was started; ended with the context."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        self.address = None

    def start(self, *arguments, env=None, before=()):
        log = (self.folder / f"log-{len(self.started)}.txt").open("w")
        process = subprocess.Popen(
            [*(before or (sys.executable, "-m", "dask")), *map(str, arguments)],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": _PATH, **(env or {})},
        )  # fmt: skip
        log.close()
        self.started.append(process)
        return process

    def start_scheduler(self, *options, host="127.0.0.1", port=0, **settings):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        process = self.start(
            "scheduler", "--host", host, "--port", port, "--no-dashboard",
            "--scheduler-file", file, *options, **settings,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                self.address = json.loads(file.read_text())["address"]
                return process
            time.sleep(0.05)
        raise AssertionError("the scheduler did not start")

    def start_worker(self, *options, **settings):
        return self.start(
            "worker", self.address, "--no-dashboard", "--nthreads", 1,
            "--local-directory", self.folder / "scratch", *options, **settings,
        )  # fmt: skip

    @staticmethod
    def kill(process):
        """With all its children, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def dask_processes(folder):
    processes = Processes(folder)
    try:
        yield processes
    finally:
        for process in reversed(processes.started):
            processes.kill(process)


def copy_package(folder, version):
    """A folder with the package as another release: as it is, but for its version."""
    package = Path(densebatch.__file__).parent
    shutil.copytree(
        package, folder / "densebatch", ignore=shutil.ignore_patterns("__pycache__", "weights")
    )
    info = folder / f"densebatch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: densebatch\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def without_densebatch(folder):
    """A Python that has all installed packages but densebatch, as arguments before Dask's."""
    folder.mkdir()
    for entry in Path(distributed.__file__).parents[1].iterdir():
        if "densebatch" not in entry.name:
            (folder / entry.name).symlink_to(entry)
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from dask.__main__ import main; main()"
    )
    return (sys.executable, "-I", "-S", "-c", code)


def make_certificates(folder):
    """An authority's file, and a certificate and key that it has signed, as paths."""
    ca, key, cert = folder / "ca.pem", folder / "key.pem", folder / "cert.pem"
    ca_key, request = folder / "ca-key.pem", folder / "request.pem"

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-sha256")
    openssl(*new, "-x509", "-days", 2, "-keyout", ca_key, "-out", ca, "-subj", "/CN=authority")
    openssl(*new, "-keyout", key, "-out", request, "-subj", "/CN=worker")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial",
            "-days", 2, "-out", cert)  # fmt: skip
    return ca, cert, key
