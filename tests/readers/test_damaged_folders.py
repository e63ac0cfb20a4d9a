"""MRXS and VSI, files with a folder beside them: damaged, they end in one sentence or in pixels.

No file of a microscope is at hand. Those that are damaged here were written by the tests, and the
libraries that are installed for the formats read them.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import psutil
import pytest

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.readers.own_process import OwnProcess
from densebatch.slides.slide import open_slide
from tests.helpers import microscope_files as files
from tests.helpers.mutations import mutate, read_or_be_refused
from tests.helpers.slide_formats import read_all

pytestmark = pytest.mark.extra
_LONGEST_S = 30.0  # before it counts as a hang; the reader loses patience before a third of it
_MOST_KB, _MAX_PX = 2_000_000, 2048**2
ROWS, COLS = np.mgrid[:128, :192]
SMOOTH = np.stack([50 + ROWS, 40 + COLS, 100 + (ROWS + COLS) // 4], -1).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(1, 255, (128, 192, 3), np.uint8)
_NUMBERS = (b"", b"0", b"-1", b"2", b"3", b"1000", b"2147483647", b"99999999999", b"nan", b"0.5")


def write(name, folder):
    if name == "VSI":
        pytest.importorskip("slideio")
        return files.write_vsi(folder / "slide.vsi", SMOOTH)
    pytest.importorskip("openslide")
    if name == "MRXS, JPEG":
        return files.write_mrxs(folder / "slide.mrxs", SMOOTH, jpeg=True)
    return files.write_mrxs(folder / "slide.mrxs", NOISE)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Path and planes of a slide of each kind, written once."""
    done = {}

    def get(name):
        if name not in done:
            path = write(name, tmp_path_factory.mktemp("slide"))
            done[name] = path, read_all(open_slide(path))
        return done[name]

    return get


def damage(folder, seed):
    """Change one file."""
    rng = random.Random(seed)
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    path = rng.choice(paths)
    data, kind = path.read_bytes(), seed % 4
    if seed % 33 == 0:
        path.unlink()
        return
    if kind == 0 or (kind == 1 and path.suffix != ".ini"):
        data = mutate(data, 4 * seed + kind)
    elif path.suffix == ".ini":
        lines = data.split(b"\n")
        at = rng.choice([k for k, line in enumerate(lines) if b"=" in line])
        key = lines[at].partition(b"=")[0]
        lines[at] = b"" if rng.random() < 0.1 else key + b"=" + rng.choice(_NUMBERS)
        data = b"\n".join(lines)
    else:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 2)):
            # Numbers are where tables are: at the beginning, and of ETS at the end.
            at = rng.randrange(300) if rng.random() < 0.6 else len(data) - 1 - rng.randrange(192)
            n = rng.choice([1, 2, 4])
            changed[at : at + n] = rng.choice(
                [bytes(n), b"\xff" * n, b"\x7f" * n, rng.randbytes(n)]
            )
        data = bytes(changed)
    path.write_bytes(data)


def read_damaged(path, planes):
    found = read_or_be_refused(path, _MAX_PX * len(planes))
    if isinstance(found, str):
        return found
    if found.shape != planes.shape:
        return "another size"
    wrong = found != planes
    # What the index says is elsewhere looks as if nothing had been scanned there: white, not 0.
    assert found[wrong].any() or wrong.sum() < 20
    return "other values" if wrong.any() else "read"


def damage_and_read(stored, name, tmp_path, seeds):
    path, planes = stored(name)
    outcomes = Counter()
    try:
        for seed in seeds:
            folder = shutil.copytree(path.parent, tmp_path / str(seed))
            damage(folder, seed)
            faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
            outcomes[read_damaged(folder / path.name, planes)] += 1
            shutil.rmtree(folder)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcomes


NAMES = ("MRXS, PNG", "MRXS, JPEG", "VSI")


@pytest.mark.parametrize("name", ["MRXS, PNG", "VSI"])
def test_some_damaged_files(stored, name, tmp_path):
    outcomes = damage_and_read(stored, name, tmp_path, range(8))  # each starts a process
    assert outcomes["refused"] >= 2
    assert sum(outcomes.values()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(stored, name, tmp_path):
    whom = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    before = [resource.getrusage(who).ru_maxrss for who in whom]
    outcomes = damage_and_read(stored, name, tmp_path, range(8, 508))
    assert outcomes["refused"] > 100
    assert sum(outcomes.values()) == 500
    for who, kb in zip(whom, before, strict=True):
        assert resource.getrusage(who).ru_maxrss < max(kb, _MOST_KB)


@pytest.mark.parametrize("name", ["MRXS, PNG", "VSI"])
def test_one_damaged_tile_does_not_lose_the_slide(stored, name, tmp_path):
    """OpenSlide repeats an error for ever, and slideio ends the process that reads the tile."""
    path, planes = stored(name)
    folder = shutil.copytree(path.parent, tmp_path / "slide")
    (tiles,) = folder.rglob("*.ets" if name == "VSI" else "Data0000.dat")
    data = bytearray(tiles.read_bytes())
    at = data.index(b"\xff\xd8" if name == "VSI" else b"IDAT") + 8
    data[at : at + 200] = bytes(200)
    tiles.write_bytes(data)
    slide = open_slide(folder / path.name)
    other, first = Region(64, 64, 128, 128), Region(0, 0, 20, 20)
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read in rows 0 to 20"):
            slide.read(0, first)
        np.testing.assert_array_equal(slide.read(0, other), planes[0, 64:, 64:128])


def test_what_lies_where_a_command_runs_is_not_imported(stored, tmp_path, monkeypatch):
    path, planes = stored("MRXS, PNG")
    (tmp_path / "numpy.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    slide = open_slide(shutil.copytree(path.parent, tmp_path / "slide") / path.name)
    np.testing.assert_array_equal(slide.read(0, Region(0, 0, 20, 20)), planes[0, :20, :20])


def test_a_process_that_is_killed_is_no_damage_and_does_not_outlive_the_slide(
    stored, tmp_path, monkeypatch
):
    """As where memory is short; and Ctrl-C, which a whole terminal gets, is not for it."""
    path, planes = stored("MRXS, PNG")
    monkeypatch.setattr("densebatch.slides.slide._N_KEPT_OPEN", 0)
    before = set(psutil.Process().children())
    slide = open_slide(shutil.copytree(path.parent, tmp_path / "slide") / path.name)
    (process,) = set(psutil.Process().children()) - before
    process.send_signal(signal.SIGINT)
    np.testing.assert_array_equal(slide.read(0, Region(0, 0, 20, 20)), planes[0, :20, :20])
    assert process.is_running()
    process.kill()
    np.testing.assert_array_equal(slide.read(0, Region(5, 5, 20, 20)), planes[0, 5:20, 5:20])
    del slide
    gc.collect()
    assert set(psutil.Process().children()) <= before


def test_what_ends_a_process_is_told(monkeypatch):
    """A crash is the file's fault, and tried once; whoever kills it has another reason."""
    process, started = OwnProcess(["tests.helpers.ending_process"], "it is damaged"), []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: started.append(a) or start(*a, **b))
    for number, told, n in ((signal.SIGSEGV, "it is damaged", 1), (signal.SIGKILL, "twice", 3)):
        with pytest.raises(ValueError, match=told):
            process.ask({"signal": int(number)}, patience_s=20.0)
        assert len(started) == n
    assert process.ask({"a": 1}, b"12", patience_s=20.0) == ({"a": 1}, b"12")
    process.close()


def test_a_process_without_requests_ends():
    """Of a cohort several slides are open, and each has one."""
    code = "o._IDLE_S = 0.1; o.serve(lambda head, data: ({}, b''))"
    command = [sys.executable, "-c", f"import densebatch.readers.own_process as o; {code}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.wait(60) == 0


def test_a_process_that_does_not_start_is_no_damage():
    process = OwnProcess(["no_such_module"], "it is damaged")
    with pytest.raises(ValueError, match=r"read it \(no_such_module\) cannot be started \(EOFErr"):
        process.ask({}, patience_s=5.0)


def test_a_table_that_takes_all_memory_is_a_sentence(stored, tmp_path):
    """slideio makes a table of as many tiles as the file says, and reads on behind its end."""
    path, _ = stored("VSI")
    folder = shutil.copytree(path.parent, tmp_path / "slide")
    ets = next(folder.rglob("*.ets"))
    data = bytearray(ets.read_bytes())
    struct.pack_into("<I", data, 40, 2**31)
    ets.write_bytes(data)
    with pytest.raises(InputError, match=r"slide\.vsi cannot be read as Olympus VSI \("):
        open_slide(folder / path.name)


def test_vsi_is_read_by_region_scene_and_type(tmp_path):
    """The small picture of the file itself, and a file of uncompressed tiles."""
    pytest.importorskip("slideio")
    grey = SMOOTH[..., :1].astype(np.uint16) * 100
    path = files.write_vsi(tmp_path / "grey.vsi", grey)
    slide = open_slide(path)
    assert slide.info.chunk_px == (64, 64)
    assert slide.info.dtype == "uint16"
    np.testing.assert_array_equal(slide.read(0, Region(3, 60, 90, 190)), grey[3:90, 60:190, 0])
    path = files.write_vsi(tmp_path / "colours.vsi", SMOOTH, jpeg=False)
    with pytest.raises(InputError, match="uncompressed, and slideio reads no colours of such"):
        open_slide(path)
