"""The paper's images from a server: verified, resumed, and never in part."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from densebatch.training import image_sets
from densebatch.training.image_sets import ImageSet, SetFile, fetch_set, find_set
from tests.helpers.file_server import serve
from tests.helpers.real_tissue import DATA, needs_data
from tests.helpers.run_files import call_main

# big enough that no socket buffer holds a whole file
CONTENT = {f"up/{'ab'[n % 2]}/{n}.png": bytes([n]) * 300_000 for n in range(9)}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def make_set(url="http://localhost:9"):
    files = [
        SetFile(name.replace("up/a", "train").replace("up/b", "x/y"), name, sha256(data))
        for name, data in CONTENT.items()
    ]
    return ImageSet("tiny", url, tuple(files), "made for a test")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setitem(image_sets.SETS, "tiny", make_set)


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_whole(folder):
    images = make_set()
    assert names(folder) == sorted(file.path for file in images.files)
    for file in images.files:
        assert sha256((folder / file.path).read_bytes()) == file.sha256


def run(capsys, folder, url, name="tiny"):
    code, out, err = call_main(capsys, "fetch", name, folder, "--url", url)
    assert (code, err) == (0, "")
    return out


def refused(capsys, folder, url, name="tiny"):
    code, _, err = call_main(capsys, "fetch", name, folder, "--url", url)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_set_is_fetched_whole_and_once(tmp_path, capsys):
    with serve({f"m/{name}": data for name, data in CONTENT.items()}) as server:
        out = run(capsys, tmp_path / "new" / "d", f"{server.url}/m/")
        assert_whole(tmp_path / "new" / "d")
        lines = out.splitlines()
        assert [line.split()[0] for line in lines[:9]] == [f"{n}/9" for n in range(1, 10)]
        assert {line.split()[1] for line in lines[:9]} == set(names(tmp_path / "new" / "d"))
        assert lines[9:] == [
            f"tiny  9 files verified in {tmp_path / 'new' / 'd'}, 9 of them fetched",
            "source  made for a test",
        ]
        assert Counter(server.asked) == Counter(f"m/{name}" for name in CONTENT)
        out = run(capsys, tmp_path / "new" / "d", f"{server.url}/m/")
        assert len(server.asked) == 9
        assert "0 of them fetched" in out


def test_several_at_once(tmp_path):
    """Four answers are held back until all four were asked for."""
    with serve(CONTENT, dict.fromkeys(CONTENT, "hang")) as server:
        thread = threading.Thread(target=fetch_set, args=(make_set(server.url), tmp_path))
        thread.start()
        deadline = time.monotonic() + 10
        while len(server.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(server.asked) == 4
        assert names(tmp_path) == [] or all(n.endswith(".partial") for n in names(tmp_path))
        server.go.set()
        thread.join()
    assert_whole(tmp_path)


@pytest.mark.parametrize("how", ["truncate", 404, 403, "wrong", "cut"])
def test_one_bad_file_costs_only_itself(tmp_path, capsys, how):
    bad = "up/a/4.png"
    served, special = dict(CONTENT), {bad: how}
    if how == "wrong":
        served[bad], special = b"\0" * 300_000, {}
    with serve(served, special) as server:
        told = refused(capsys, tmp_path / "d", server.url)
        host = server.url.removeprefix("http://")
        reason = {
            "truncate": "cannot be fetched (the connection broke off before the whole file came)",
            404: f"cannot be fetched ({host} answers 404 Not Found)",
            403: f"cannot be fetched ({host} answers 403 Forbidden)",
            "wrong": f"came with sha256 {sha256(served[bad])}, expected {sha256(CONTENT[bad])}",
            "cut": f"cannot be fetched (no connection to {host}, or it was lost: offline?)",
        }[how]
        n_left = int(told.split(" are left")[0].split()[-1])
        assert n_left == 1 or how == "cut"  # a lost connection ends the run
        assert told == (
            f"tiny: {9 - n_left} of 9 files are in {tmp_path / 'd'}, {n_left} are left, which the "
            f"same command fetches; what failed first: {server.url}/{bad}: {reason}"
        )
        found = names(tmp_path / "d")
        assert len(found) == 9 - n_left
        assert "train/4.png" not in found
        # the same command, once the server is well
        server.files, server.special, server.asked = dict(CONTENT), {}, []
        run(capsys, tmp_path / "d", server.url)
        assert len(server.asked) == n_left
    assert_whole(tmp_path / "d")


def test_server_that_stops_midway(tmp_path, capsys):
    with serve(CONTENT) as server:
        server.stop_after = 5
        told = refused(capsys, tmp_path / "d", server.url)
        n_done = len(names(tmp_path / "d"))
        assert told.startswith(f"tiny: {n_done} of 9 files are in {tmp_path / 'd'}, ")
        assert 0 < n_done <= 5
        assert len(server.asked) < 5 + 5  # not one attempt for every other file
        server.stop_after, server.asked = None, []
        out = run(capsys, tmp_path / "d", server.url)
        assert len(server.asked) == 9 - n_done
        assert out.splitlines()[0].startswith(f"{n_done + 1}/9 ")
    assert_whole(tmp_path / "d")


def test_offline(tmp_path, capsys):
    with serve({}) as server:
        url = server.url
    told = refused(capsys, tmp_path / "a" / "d", url)
    assert told.startswith(f"tiny: 0 of 9 files are in {tmp_path / 'a' / 'd'}, 9 are left, which")
    assert told.endswith("offline?)")
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_no_file_with_a_final_name(tmp_path, capsys):
    """SIGKILL while bodies are half sent; the next run cleans up and goes on."""
    with serve(CONTENT) as server:

        def send_half(request):
            path = request.path.lstrip("/")
            server.asked.append(path)
            server.send(request, server.files[path], 200, part=0.5)
            request.wfile.flush()
            server.go.wait(10)

        whole, server.answer = server.answer, send_half
        code = (
            "import sys, pathlib, densebatch.training.image_sets as s\n"
            "files = tuple(s.SetFile(*line.split()) for line in sys.argv[3:])\n"
            "s.fetch_set(s.ImageSet('tiny', sys.argv[1], files, ''), pathlib.Path(sys.argv[2]))"
        )
        files = [f"{f.path} {f.upstream} {f.sha256}" for f in make_set().files]
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, tmp_path, *files],
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while len(names(tmp_path)) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left = names(tmp_path)
        assert len(left) == 4
        assert all(Path(name).name.startswith(".") and name.endswith(".partial") for name in left)
        server.answer = whole
        run(capsys, tmp_path, server.url)
    assert_whole(tmp_path)


def test_foreign_file_is_not_replaced(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.png").write_bytes(b"mine")
    with serve(CONTENT) as server:
        told = refused(capsys, tmp_path, server.url)
        assert server.asked == []
    assert told == (
        f"{tmp_path / 'train/0.png'}: has sha256 {sha256(b'mine')}, the set's file "
        f"{sha256(CONTENT['up/a/0.png'])}; move it away to fetch that"
    )
    assert names(tmp_path) == ["train/0.png"]
    assert (tmp_path / "train/0.png").read_bytes() == b"mine"


def test_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "d").write_text("hello")
    with serve(CONTENT) as server:
        told = refused(capsys, tmp_path / "d", server.url)
        assert server.asked == []
    assert told.startswith(f"tiny: 0 of 9 files are in {tmp_path / 'd'}, 9 are left")
    assert "cannot be written (" in told


def test_unknown_set(tmp_path, capsys):
    told = refused(capsys, tmp_path / "d", "http://localhost:9", name="hsv")
    assert told == "image set 'hsv' is not known; accepted are hsv-dense, tiny"


# the paper's


def test_paper_set_is_complete():
    images = find_set("hsv-dense")
    assert len(images.files) == len({f.path for f in images.files}) == 49
    assert len({f.sha256 for f in images.files}) == 49
    assert "/1b0f7d54922163aec91bff5efd35a2d8a6830282" in images.url
    folders = Counter(str(Path(f.path).parent) for f in images.files)
    assert folders == {"train": 14, "test": 14, "fields": 14, "predictions/cyto-train7": 7}
    # in each folder, an image with every mask
    for folder in ("train", "test", "fields"):
        files = [f.path for f in images.files if f.path.startswith(folder)]
        found = Counter(f.replace("_masks.png", "_img.png") for f in files)
        assert set(found.values()) == {2}


@needs_data
def test_paper_set_from_a_mirror(tmp_path, capsys):
    """What of it is at hand arrives where training and scoring look for it."""
    images = find_set("hsv-dense")
    held = {f.upstream: (DATA / f.path).read_bytes() for f in images.files
            if (DATA / f.path).is_file()}  # fmt: skip
    assert len(held) >= 34
    with serve(held) as server:
        if len(held) == len(images.files):
            run(capsys, tmp_path, server.url, "hsv-dense")
        else:
            told = refused(capsys, tmp_path, server.url, "hsv-dense")
            n_left = len(images.files) - len(held)
            assert told.startswith(
                f"hsv-dense: {len(held)} of 49 files are in {tmp_path}, {n_left}"
            )
            assert "answers 404 Not Found" in told
    assert len(names(tmp_path)) == len(held)
    for name in names(tmp_path):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()
    # and there it is scored
    code, out, _ = call_main(
        capsys, "score", tmp_path / "predictions/cyto-train7", tmp_path / "test", "--json", "-"
    )
    assert code == 0
    with (DATA / "published_ap.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["predictions"] == "cyto-train7"]
    published = [float(r["ap"]) for r in rows if r["min_size_px"] == "0"]
    found = json.loads(out)["mean"]["0.50"]["ap"]
    assert found == pytest.approx(sum(published) / len(published), abs=1e-6)
