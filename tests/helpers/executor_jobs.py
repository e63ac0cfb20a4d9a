"""What the executors' tests run; imported by worker processes, hence a module of its own.

Each call leaves a file in a folder, so that tests can count calls wherever they were made.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import numpy as np


def note_call(folder, name):
    """Leave a trace of a call; returns how many there are of this name."""
    calls = Path(folder) / name
    calls.mkdir(exist_ok=True)
    (calls / uuid.uuid4().hex).touch()
    return len(list(calls.iterdir()))


def count_calls(folder):
    return {path.name: len(list(path.iterdir())) for path in Path(folder).iterdir()}


def square(folder, name, number, seconds=0.0):
    note_call(folder, name)
    time.sleep(seconds)
    return number**2


def wait_for_call(folder, name, number):
    """The call of this number comes back; those before wait for what ends them."""
    calls = note_call(folder, name)
    while calls < number:
        time.sleep(0.1)
    return calls


def wait_for_file(folder, name):
    """Says that it is there, and comes back when it may go; returns how often it was called."""
    (Path(folder) / f"{name}.there").touch()
    while not (Path(folder) / f"{name}.go").exists():
        time.sleep(0.01)
    return 1


def return_unsendable(folder, name):
    note_call(folder, name)
    return lambda: None


def after(folder, name, needs):
    """Fails if it is called before its needs have been; returns the longest chain to it."""
    missing = [need for need in needs if not (Path(folder) / f"{need}.done").exists()]
    if missing:
        raise AssertionError(f"{name} ran before {missing}")
    chains = [int((Path(folder) / f"{need}.done").read_text()) for need in needs]
    (Path(folder) / f"{name}.done").write_text(str(max(chains, default=0) + 1))
    return max(chains, default=0) + 1


def fail(folder, name, times, message="broken tile"):
    """Fails as often as told, then gives the number of its call."""
    calls = note_call(folder, name)
    if calls <= times:
        raise ValueError(message)
    return calls


def wake():
    """Leaves the names of the workers that were woken, where the test's environment says."""
    from distributed import get_worker

    note_call(os.environ["DENSEBATCH_TEST_FOLDER"], f"woken-{get_worker().name}")


def name_worker(folder, name, deaths, seconds=0.0):
    """Name of the Dask worker and number of the process; takes it along as often as told."""
    from distributed import get_worker

    if note_call(folder, name) <= deaths:
        os._exit(9)
    time.sleep(seconds)
    return str(get_worker().name), os.getpid()


def die(folder, name, times):
    """Takes its process with it as often as told, as the kernel does when memory ends."""
    calls = note_call(folder, name)
    if calls <= times:
        os._exit(9)
    return calls


def count_page_faults(n_arrays):
    """Pages that so many arrays of 1 MiB are given by the system, one after the other."""
    import resource  # Windows has none

    np.ones(2**18, np.float32)  # numpy asks for huge pages from 4 MiB on
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(n_arrays):
        np.ones(2**18, np.float32)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


class Unreadable:
    """What can be sent and nobody can read."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("cannot be read")


def return_unreadable(folder, name):
    note_call(folder, name)
    return Unreadable()


def refuse_first(folder):
    """Refuse the process that asks first, as a worker without a device is refused."""
    from densebatch.base.errors import InputError

    file = Path(folder) / "first"
    try:
        with file.open("x") as new:
            new.write(str(os.getpid()))
    except FileExistsError:
        pass
    if file.read_text() == str(os.getpid()):
        raise InputError("device cuda: this process sees none")


def refuse():
    from densebatch.base.errors import InputError

    raise InputError("device cuda: this process sees none")


def ask_daemon(_):
    """Whether this process may start others, and what it is told if it wants to."""
    from densebatch.base.errors import InputError
    from densebatch.base.process import may_start_processes
    from densebatch.workers.local import check_may_start

    try:
        check_may_start(2)
    except InputError as error:
        return may_start_processes(), str(error)
    return may_start_processes(), None
