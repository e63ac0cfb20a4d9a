"""Lists of checksums: as sha256sum reads them, and telling of damage in themselves."""

import shutil
import subprocess
import threading

import pytest

from densebatch.base.checksums import (
    ABSENT,
    checksum_file,
    format_checksums,
    list_files,
    map_in_threads,
    parse_checksums,
)
from densebatch.base.errors import InputError


def test_a_list_is_read_back():
    listed = {"b c/d": "0" * 64, "a": "f" * 64}
    assert parse_checksums(format_checksums(listed)) == listed
    assert parse_checksums(format_checksums({})) == {}


def test_every_bit_and_every_lost_end_of_a_list_is_told():
    text = format_checksums({"labels/0/c/0/0": "12" * 32, "run.json": "ab" * 32})
    for bit in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError, match="does not fit its own checksum"):
            parse_checksums(bytes(damaged))
    for length in range(len(text)):
        with pytest.raises(InputError):
            parse_checksums(text[:length])
    with pytest.raises(InputError):
        parse_checksums(text + b"\n")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_reads_a_list(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_bytes(b"content")
    listed = {"a/b.txt": checksum_file(tmp_path / "a" / "b.txt")}
    (tmp_path / "list").write_bytes(format_checksums(listed))
    check = ["sha256sum", "--check", "--strict", "list"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "a" / "b.txt").write_bytes(b"contents")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_missing_files_are_absent_and_unfinished_ones_are_not_listed(tmp_path):
    assert checksum_file(tmp_path / "a") == ABSENT
    (tmp_path / "file").write_bytes(b"")
    assert checksum_file(tmp_path / "file" / "a") == ABSENT
    (tmp_path / "b").mkdir()
    for name in ("b/c", "b/.c.1-2.partial"):
        (tmp_path / name).write_bytes(b"x")
    assert sorted(list_files(tmp_path)) == ["b/c", "file"]


def test_results_come_in_order_and_few_are_held():
    taken, held, most = [], 0, 0
    lock = threading.Lock()

    def items():
        nonlocal held, most
        for n in range(50):
            taken.append(n)
            with lock:
                held += 1
                most = max(most, held)
            yield n

    for n, square in map_in_threads(lambda n: n * n, items(), 3):
        assert square == n * n
        with lock:
            held -= 1
    assert taken == list(range(50))
    assert most <= 7

    def fail(n):
        raise ValueError(n)

    with pytest.raises(ValueError, match="0"):
        list(map_in_threads(fail, items(), 2))
