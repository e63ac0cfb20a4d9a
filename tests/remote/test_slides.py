"""OME-Zarr by its address gives the pixels of the folder; what fails never becomes fill."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

from densebatch.base.errors import InputError, SlideChangedError, StoreError, UnreachableError
from densebatch.base.geometry import Region
from densebatch.base.process import Meter
from densebatch.remote import store as remote_store
from densebatch.slides.describe import describe_slide
from densebatch.slides.slide import check_reach, open_slide
from densebatch.slides.watch import read_watched, watch_slide
from densebatch.sources import omezarr_remote
from tests.helpers.object_store import fails, faulty
from tests.helpers.slide_files import random_pixels, write_zarr
from tests.helpers.slide_formats import read_all

pytestmark = pytest.mark.extra

PIXELS = random_pixels((2, 75, 110))
WHOLE = Region(0, 0, 75, 110)
KINDS = {
    "0.4, blosc": {"version": "0.4"},
    "0.5, zstd": {},
    "0.5, shards": {"shards": (1, 64, 64)},
    "0.5, name": {"prefix": "a b/é.zarr"},
}


def put(store, folder, prefix="slide.zarr", pixels=PIXELS, version="0.5", **options):
    """An image of two levels in the store; returns its folder too."""
    path = write_zarr(folder / "local.zarr", pixels, "cyx", version, n_levels=2, **options)
    store.upload(path, prefix)
    return path


@pytest.mark.parametrize("scheme", ["s3", "gs", "http"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_layout_are_those_of_the_folder(store, tmp_path, scheme, kind):
    options = {"prefix": f"{scheme}/{kind[5:]}/slide.zarr", **KINDS[kind]}
    local = put(store, tmp_path, **options)
    address = store.address(scheme, options["prefix"])
    meter = Meter()
    slide = open_slide(f"{address}/")
    np.testing.assert_array_equal(read_all(slide), PIXELS)
    told, expected = describe_slide(address), describe_slide(local)
    assert told.pop("path") == slide.info.path == address
    expected.pop("path")
    assert told == expected
    found = meter.read()
    assert found["remote_requests"] > 12
    assert found["remote_bytes_read"] > PIXELS.nbytes


def test_an_image_inside_a_folder_is_named(store, tmp_path):
    put(store, tmp_path, "holder/one.zarr")
    with pytest.raises(InputError, match=r"give the image in it, s3://slides/holder/one\.zarr"):
        open_slide("s3://slides/holder")
    with pytest.raises(InputError, match="accepted addresses are of OME-Zarr"):
        open_slide("s3://nobody/holder")
    with pytest.raises(InputError, match=r"ftp://\) and no path; .* s3://, gs:// and https://"):
        open_slide("ftp://host/slide.zarr")


@pytest.mark.parametrize("options", [{}, {"version": "0.4"}, {"shards": (1, 64, 64)}])
def test_only_a_chunk_that_is_not_there_is_fill(store, tmp_path, options):
    put(store, tmp_path, f"holes/{len(str(options))}.zarr", **options)
    name = f"holes/{len(str(options))}.zarr/0/" + (
        "0.0.0" if options == {"version": "0.4"} else "c/0/0/0"
    )
    slide = open_slide(f"s3://slides/holes/{len(str(options))}.zarr")
    for how, told in [
        (500, "it answers 500 Internal Server Error, after 2 retries"),
        (503, "it answers 503 Service Unavailable"),
        (403, "it answers 403 Forbidden: what the environment has of credentials"),
        (400, "it answers 400 Bad Request, ExpiredToken"),
    ]:
        with faulty(store, fails(name, how)), pytest.raises(StoreError, match=told) as error:
            slide.read(0, WHOLE)
        assert name in str(error.value)
        assert not isinstance(error.value, UnreachableError)
        assert "NOBODY" not in repr(error.value).upper()
    with faulty(store, fails(name, "cut")), pytest.raises(StoreError, match="breaks off"):
        slide.read(0, WHOLE)
    with faulty(store, fails(r"/0/.*\d$", 500, times=1), fails(r"/0/.*\d$", "slow", times=2)):
        np.testing.assert_array_equal(slide.read(0, WHOLE), PIXELS[0])
    with (
        faulty(store, lambda method, _, __: method == "GET" and 502),
        pytest.raises(UnreachableError, match="it answers 502"),
    ):
        slide.read(0, WHOLE)  # which no other task could do either
    store.remove(name)
    expected = PIXELS[0].copy()
    side = 64 if "shards" in options else 32
    expected[:side, :side] = 0
    np.testing.assert_array_equal(slide.read(0, WHOLE), expected)


def test_a_store_that_hangs_keeps_no_other_slide_from_being_opened(store, tmp_path):
    put(store, tmp_path, "hangs.zarr")
    asked, goes_on, opened = threading.Event(), threading.Event(), queue.SimpleQueue()

    def hang(*_):
        asked.set()
        goes_on.wait(60)

    def begin(path):
        thread = threading.Thread(target=lambda: opened.put(str(open_slide(path).source.path)))
        thread.start()
        return thread

    with faulty(store, hang):
        threads = [begin("s3://slides/hangs.zarr")]
        assert asked.wait(60)
        # Of several, because two may by chance be opened one after the other.
        local = [write_zarr(tmp_path / f"{k}.zarr", PIXELS, "cyx") for k in range(4)]
        threads += map(begin, local)
        assert opened.get(timeout=60) in map(str, local)
        goes_on.set()
        for thread in threads:
            thread.join()


def test_names_in_an_address_are_not_what_happened(store, tmp_path):
    put(store, tmp_path, "credentials, Timeout/antibody.zarr", shards=(1, 64, 64))
    slide = open_slide("s3://slides/credentials, Timeout/antibody.zarr")
    for how, told in ((403, "403 Forbidden: what"), (503, "503 Service"), (410, "410 Gone")):
        with faulty(store, fails("/0/c", how)), pytest.raises(StoreError, match=f"answers {told}"):
            slide.read(0, WHOLE)


def test_a_store_that_nobody_answers_for(store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"zgroup: cannot be read \(no connection, after"):
        open_slide("s3://slides/slide.zarr")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(UnreachableError, match="refused, unless AWS_ALLOW_HTTP=true"):
        open_slide("s3://slides/slide.zarr")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="settings of the store in the environment cannot be used"):
        open_slide("gs://slides/slide.zarr")


def test_a_worker_without_a_way_to_the_store_says_so_at_once(store, tmp_path, monkeypatch):
    put(store, tmp_path, "way.zarr")
    info = open_slide("s3://slides/way.zarr").info
    monkeypatch.setattr(remote_store, "MAX_RETRIES", 10)
    check_reach(info)
    with faulty(store, lambda method, *_: method == "GET" and 403):
        check_reach(info)  # it is open already, and has been read
    with (
        faulty(store, lambda method, *_: method == "GET" and 503),
        pytest.raises(UnreachableError, match="503 Service Unavailable, after 1 retries"),
    ):
        check_reach(info)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="no connection, after 1 retries"):
        check_reach(info)


def test_a_chunk_that_blosc_would_read_past_its_end(store, tmp_path):
    local = put(store, tmp_path, "cut.zarr", version="0.4")
    store.put("cut.zarr/0/0.0.0", (local / "0/0.0.0").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"chunk 0\.0\.0 has .* bytes and should have"):
        open_slide("s3://slides/cut.zarr").read(0, WHOLE)


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("n_bytes", [0, 9])
def test_a_shard_without_its_bytes_is_damaged(store, tmp_path, scheme, n_bytes):
    """As in a folder; stores answer in their own ways where a part of it is asked for."""
    put(store, tmp_path, "short.zarr", shards=(1, 64, 64))
    store.put("short.zarr/0/c/0/0/0", bytes(n_bytes))
    slide = open_slide(store.address(scheme, "short.zarr"))
    for region in (WHOLE, Region(0, 0, 5, 5)):
        with pytest.raises(InputError, match=r"0/c/0/0/0 |checksum"):
            slide.read(0, region)
    # Not so one that a server gives no parts of, or that does not come.
    for how in ("whole", 416):
        with faulty(store, fails("/0/c/1", how)), pytest.raises(StoreError):
            slide.read(1, Region(0, 0, 5, 5))


def plan(address):
    """What a run notes of a slide."""
    slide = open_slide(address)
    slide.source.renew()
    return slide.info, watch_slide(slide.info)


@pytest.mark.parametrize("options", [{}, {"shards": (1, 64, 64)}])
def test_a_change_of_a_chunk_is_noticed_where_it_is_read(store, tmp_path, options):
    name = f"{tmp_path.name}.zarr"
    local = put(store, tmp_path, name, **options)
    info, state = plan(f"s3://slides/{name}")
    np.testing.assert_array_equal(read_watched(info, state, 0, WHOLE), PIXELS[0])
    time.sleep(1.1)  # stores tell whole seconds
    chunk = (local / "0/c/1/0/0").read_bytes()
    store.put(f"{name}/0/c/1/0/0", chunk)
    np.testing.assert_array_equal(read_watched(info, state, 0, WHOLE), PIXELS[0])
    with pytest.raises(SlideChangedError, match=r"under the run \(s3://slides/.*/0/c/1/0/0\)"):
        read_watched(info, state, 1, WHOLE)
    # The same bytes are the same slide for a new plan, and others are not.
    again, state = plan(f"s3://slides/{name}")
    assert again.identity == info.identity
    read_watched(again, state, 1, WHOLE)
    store.put(f"{name}/0/c/1/0/0", chunk + b"\0")
    assert plan(f"s3://slides/{name}")[0].identity != info.identity
    store.put(f"{name}/0/c/1/0/0", chunk)


def test_a_chunk_that_is_removed_does_not_become_background(store, tmp_path, monkeypatch):
    pixels = PIXELS.copy()
    pixels[:, :32, :32] = 0  # never stored
    put(store, tmp_path, "sparse.zarr", pixels=pixels)
    info, state = plan("s3://slides/sparse.zarr")
    store.asked.clear()
    np.testing.assert_array_equal(read_watched(info, state, 0, WHOLE), pixels[0])
    assert not [path for path in store.asked if path.endswith("?list")]  # it is known here
    store.remove("sparse.zarr/0/c/0/1/1")
    with pytest.raises(SlideChangedError, match="0/c/0/1/1"):
        read_watched(info, state, 0, WHOLE)
    # Nor in a process that opens it when the chunk is gone.
    open_slide("s3://slides/sparse.zarr").source.look_again()
    with pytest.raises(SlideChangedError, match="has changed under the run"):
        read_watched(info, state, 0, WHOLE)
    # Documents that change are another slide; they are looked at now and then.
    document = (tmp_path / "local.zarr/zarr.json").read_bytes()
    info, state = plan("s3://slides/sparse.zarr")
    store.put("sparse.zarr/zarr.json", document.replace(b"0.5", b"0.6"))
    read_watched(info, state, 0, WHOLE)
    monkeypatch.setattr(omezarr_remote, "_LOOK_S", 0)
    with pytest.raises(SlideChangedError, match=r"has changed under the run|cannot be opened"):
        read_watched(info, state, 0, WHOLE)


def test_what_a_web_server_tells_of_changes(store, tmp_path):
    local = put(store, tmp_path, "web.zarr")
    address = store.address("http", "web.zarr")
    info, state = plan(address)
    assert state.listed is None
    chunk = (local / "0/c/0/0/0").read_bytes()
    time.sleep(1.1)
    store.put("web.zarr/0/c/0/0/0", chunk)
    store.dropped = {"last-modified"}
    np.testing.assert_array_equal(read_watched(info, state, 0, WHOLE), PIXELS[0])
    store.dropped = set()
    with pytest.raises(SlideChangedError, match=r"http://.*/web.zarr/0/c/0/0/0"):
        read_watched(info, state, 0, WHOLE)
    assert plan(address)[0].identity == info.identity


def test_a_server_that_gives_no_parts_of_a_shard(store, tmp_path):
    put(store, tmp_path, "whole.zarr", shards=(1, 64, 64))
    slide = open_slide(store.address("http", "whole.zarr"))
    with faulty(store, fails("/0/c", "whole")), pytest.raises(StoreError, match="no parts of an"):
        slide.read(0, WHOLE)


def test_a_bucket_that_may_be_read_and_not_listed(store, tmp_path):
    """It answers 403 for what is missing, documents too."""

    def hides(method, path, _):
        if method == "LIST":
            return 403
        known = store_keys
        return 403 if path.startswith("/slides/hidden.zarr") and path not in known else None

    local = put(store, tmp_path, "hidden.zarr", version="0.4")
    for level in "01":  # few writers have them
        (local / level / ".zattrs").unlink()
    files = [p.relative_to(local) for p in local.rglob("*") if p.is_file()]
    store_keys = {f"/slides/hidden.zarr/{name}" for name in files}
    with faulty(store, hides):
        info, state = plan("s3://slides/hidden.zarr")
        assert state.listed is None
        np.testing.assert_array_equal(read_watched(info, state, 0, WHOLE), PIXELS[0])
        with pytest.raises(UnreachableError, match=r"403 Forbidden.*may not list"):
            open_slide("s3://slides/hidden.zarr/nothing")
        store_keys.remove("/slides/hidden.zarr/0/0.0.0")
        with pytest.raises(StoreError, match="403 Forbidden"):
            open_slide("s3://slides/hidden.zarr").read(0, WHOLE)
