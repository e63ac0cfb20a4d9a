"""A disk that is full or fails, a permission that is lost: one sentence, and the run continues."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from densebatch.base.errors import DensebatchError, InputError
from densebatch.run.segment import segment
from tests.helpers.run_files import (
    assert_same_output,
    output_bytes,
    run_command,
    simulate,
    start_command,
    write_tiff,
)

OPTIONS = {"membrane": ("CD3",), "tile": 100, "workers": 0}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    path = write_tiff(folder / "a.ome.tif", simulate(130, 170, seed=2), ["CD3", "DAPI"])
    segment(path, folder / "clean", **OPTIONS)
    return path, output_bytes(folder / "clean")


class Faults:
    """Fails the k-th write of this thread once, for good if `lasting`; counts them."""

    def __init__(self, fail_at, code, lasting):
        self.n = 0
        self._fail_at, self._code, self._lasting = fail_at, code, lasting
        self._thread = threading.get_ident()

    def meet(self, path):
        if threading.get_ident() != self._thread:
            return
        self.n += 1
        if self._fail_at is not None and (
            self.n == self._fail_at or (self._lasting and self.n > self._fail_at)
        ):
            raise OSError(self._code, os.strerror(self._code), str(path))


@contextmanager
def faulty_disk(monkeypatch, fail_at=None, code=errno.EIO, *, lasting=False):
    """Every file that is opened to be written, or gets its name, may be one that cannot."""
    faults = Faults(fail_at, code, lasting)
    replace, open_file = Path.replace, Path.open

    def failing_replace(self, target):
        faults.meet(target)
        return replace(self, target)

    def failing_open(self, mode="r", *args, **options):
        if set(mode) & set("wx"):
            faults.meet(self)
        return open_file(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing_replace)
        patch.setattr(Path, "open", failing_open)
        yield faults


def check_point(slide, expected, out, monkeypatch, fail_at, code, *, lasting):
    """Fail at one write; whatever is said, the same call ends with the same bytes."""
    told = None
    try:
        with faulty_disk(monkeypatch, fail_at, code, lasting=lasting):
            result = segment(slide, out, **OPTIONS)
    except DensebatchError as error:
        told = error
    if told is None:
        assert result.is_partial or output_bytes(out) == expected
    elif isinstance(told, InputError):
        assert f"({os.strerror(code)})" in str(told)
        assert code == errno.EACCES
    else:
        assert os.strerror(code) in str(told)
        sentences = "the same command continues|no tile could be segmented"
        assert re.search(sentences, str(told))
    result = segment(slide, out, **OPTIONS)
    assert not result.is_partial
    assert_same_output(out, expected)
    assert not list(out.rglob("*.partial"))


CODES = [errno.ENOSPC, errno.EIO, errno.EACCES]


def test_a_disk_that_fails_at_any_write(slide, tmp_path, monkeypatch):
    path, expected = slide
    with faulty_disk(monkeypatch) as faults:
        segment(path, tmp_path / "counted", **OPTIONS)
    assert faults.n > 30
    # The strides are coprime to the number of codes, so that all kinds of writes meet all codes.
    for fail_at in range(1, faults.n + 1, 5):
        code = CODES[fail_at % 3]
        out = tmp_path / str(fail_at)
        check_point(path, expected, out, monkeypatch, fail_at, code, lasting=fail_at % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_a_disk_that_fails_at_every_write(slide, tmp_path, monkeypatch, code, lasting):
    path, expected = slide
    with faulty_disk(monkeypatch) as faults:
        segment(path, tmp_path / "counted", **OPTIONS)
    for fail_at in range(1, faults.n + 1):
        out = tmp_path / str(fail_at)
        check_point(path, expected, out, monkeypatch, fail_at, code, lasting=lasting)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own; call what it gives to resize it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size_kb, *options):
        flags = ",".join([f"size={size_kb}k", "nr_inodes=10k", *options])
        subprocess.run(["mount", "-o", f"remount,{flags}", folder], check=True)

    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=10k", "densebatch-test", folder],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("needs to mount a small disk, which takes root")
    yield folder, resize
    subprocess.run(["umount", "-l", folder], check=True)


UNCHECKED = "import densebatch.run.prepare as r; r.check_capacity = lambda *a, **k: None"


def test_a_full_disk(slide, small_disk):
    """Of any size: the run's own writes, those of tasks, the table and the report meet its end."""
    path, expected = slide
    folder, resize = small_disk
    arguments = ("segment", path, folder / "out", "--membrane", "CD3", "--tile", 100)
    codes = set()
    for size_kb in (16, 64, 200):
        resize(size_kb)
        code, _, err = run_command(*arguments, "--workers", 0, before=UNCHECKED)
        codes.add(code)
        assert code in (1, 3), err
        assert "Traceback" not in err
        assert re.search(r"(error|partial): .*", err.splitlines()[-1])
    resize(100_000)
    code, _, err = run_command(*arguments, "--workers", 0, before=UNCHECKED)
    assert code == 0, err
    assert_same_output(folder / "out", expected)
    # and one that is complete needs no more of it
    resize(100_000, "ro")
    code, _, err = run_command(*arguments, "--workers", 0)
    assert code == 0, err
    assert "this run is already complete" in err
    code, _, err = run_command(*arguments, "--workers", 0, "--restart")
    assert (code, err.count("\n")) == (2, 1)
    assert "(Read-only file system)" in err
    assert_same_output(folder / "out", expected)


def test_files_that_may_not_grow(slide, tmp_path):
    """The system's own limit, which even the first file of a run meets."""
    path, expected = slide
    arguments = ("segment", path, tmp_path / "out", "--membrane", "CD3", "--workers", 0)
    for limit in (100, 3000):
        before = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit}, {limit}))"
        code, _, err = run_command(*arguments, "--tile", 100, before=before)
        assert code in (1, 3), err
        assert "Traceback" not in err
        assert "File too large" in err
    code, _, err = run_command(*arguments, "--tile", 100)
    assert code == 0, err
    assert_same_output(tmp_path / "out", expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_is_said_meets_a_full_disk(slide, tmp_path):
    """A run goes on when its messages cannot be written; its summary that cannot is told."""
    path, expected = slide
    arguments = ("segment", path, tmp_path / "out", "--membrane", "CD3", "--tile", "100")
    start = [sys.executable, "-m", "densebatch", *map(str, arguments), "--workers", "0"]
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(start, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
        assert told.returncode == 0
        assert "cells in" in told.stdout
        assert_same_output(tmp_path / "out", expected)
        told = subprocess.run(start, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1] == "error: No space left on device"
    assert "Traceback" not in told.stderr


def test_a_folder_that_is_taken_away(slide, tmp_path):
    path, _ = slide
    out = tmp_path / "out"
    before = (
        "import pathlib, densebatch.run.segment as g; u = g.number_cells\n"
        f"def taken(*a):\n    pathlib.Path({str(out)!r}).rename({str(tmp_path / 'away')!r})\n"
        "    return u(*a)\n"
        "g.number_cells = taken"
    )
    process = start_command(
        "segment", path, out, "--membrane", "CD3", "--workers", 0, before=before
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "the same command continues" in err.splitlines()[-1]
