"""Files that are whole or absent, their digests, and the folder of caches."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from densebatch.base.errors import InputError
from densebatch.base.files import (
    cache_folder,
    digest,
    digest_file,
    load_array,
    load_arrays,
    no_empty_folders,
    write_atomic,
)


def test_file_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["c.bin"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c.bin"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.bin"]


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "c.bin"
    contents = [bytes([65 + i]) * 200_000 for i in range(4)]
    errors = []

    def write(content):
        try:
            for _ in range(15):
                write_atomic(path, content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert path.read_bytes() in contents
    assert errors == []
    assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["c.bin"]


def test_killed_writer_leaves_a_whole_file(tmp_path):
    """Killed at any moment, four times over."""
    path = tmp_path / "c.bin"
    code = (
        "import sys; from pathlib import Path; from densebatch.base.files import write_atomic\n"
        "while True:\n"
        "    for letter in b'ab':\n"
        f"        write_atomic(Path({str(path)!r}), bytes([letter]) * 3_000_000)\n"
    )
    whole = {bytes([letter]) * 3_000_000 for letter in b"ab"}
    for delay in (0.0, 0.013, 0.031, 0.057):
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", code]) as writer:
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(delay)
            writer.kill()
        assert path.read_bytes() in whole


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def fail(_):
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_digests(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"hello" * 100_000)
    assert digest_file(path) == xxhash.xxh3_128(path.read_bytes()).hexdigest()
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_file_is_absent_to_one_digest_and_an_error_to_the_other(tmp_path):
    path = tmp_path / "a"
    assert digest_file(path) == "absent"
    with pytest.raises(InputError) as caught:
        digest(path)
    assert str(caught.value) == f"{path}: cannot be read (No such file or directory)"
    with pytest.raises(InputError, match=r"^model cyto: cannot be read \(No such file"):
        digest(path, "model cyto")


def test_a_file_that_cannot_be_read_is_not_absent(tmp_path):
    with pytest.raises(IsADirectoryError):
        digest_file(tmp_path)


def test_folders_that_stay_empty_after_a_failure_are_removed(tmp_path):
    (tmp_path / "before").mkdir()
    folders = [tmp_path / "before" / "a", tmp_path / "b" / "c", tmp_path / "b" / "d"]

    def make(fails):
        with no_empty_folders(folders):
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            (tmp_path / "b" / "d" / "file").touch()
            if fails:
                raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        make(fails=True)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert found == ["b", "b/d", "b/d/file", "before"]
    make(fails=False)
    assert all(folder.is_dir() for folder in folders)


def test_cache_is_where_the_user_or_the_platform_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DENSEBATCH_CACHE", "~/mine")
    assert cache_folder() == Path(tmp_path, "mine")
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("DENSEBATCH_CACHE")
        else:
            monkeypatch.setenv("DENSEBATCH_CACHE", unset)
        assert cache_folder().is_relative_to(tmp_path)
        assert cache_folder().name == "densebatch"


def test_threads_load_arrays_at_once(tmp_path):
    """NumPy parses heads as Python, which threads of Python 3.11 cannot do at once."""
    np.save(tmp_path / "a.npy", np.arange(5))
    np.savez(tmp_path / "b.npz", ids=np.arange(3), values=np.zeros((2, 3)))

    def load(_):
        found = load_arrays(tmp_path / "b.npz")
        assert sorted(found) == ["ids", "values"]
        assert list(load_arrays(tmp_path / "b.npz", ["ids"])) == ["ids"]
        assert load_array(tmp_path / "a.npy", "r").sum() == load_array(tmp_path / "a.npy").sum()
        return found["values"].shape

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(load, range(400))) == {(2, 3)}
