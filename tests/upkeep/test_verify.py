"""A finished result can be checked: any bit of any file, and whether all of it fits together."""

import json
import shutil
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from densebatch.base.errors import InputError
from densebatch.run.segment import segment
from densebatch.stages.trace import TraceTile
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import check_files, verify
from tests.helpers.damage import KINDS, SHAPE, draw_files, flip, list_again, make_result, read_files
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    output_bytes,
    simulate,
    tasks_folder,
    write_tiff,
)


@pytest.fixture(scope="module", params=KINDS)
def result(request, tmp_path_factory):
    """A result, which a test leaves as it was."""
    out, slide, tops = make_result(tmp_path_factory.mktemp("result"), request.param)
    return out, slide, tops, read_files(tops)


@pytest.fixture
def copied(tmp_path):
    """A result of OME-Zarr 0.5 for one test."""
    return make_result(tmp_path, "0.5")


def assert_right(out):
    found = verify(out)
    assert found.is_right, [str(f) for f in found.findings]
    return found


def test_a_finished_result_is_right(result, capsys):
    out, _, tops, files = result
    found = assert_right(out)
    assert not found.notes
    assert found.n_files == len(files) - sum("copy" in p.suffix for p in files)
    code, told, _ = call_main(capsys, "verify", out)
    assert code == 0
    assert told == f"{out}: {found.n_files} files, {found.n_cells} cells: all right\n"
    assert read_files(tops) == files


def test_every_flipped_bit_is_found(result):
    """20 to 50 of each kind, in every file at least one."""
    out, _, _, files = result
    drawn, rng = draw_files(files, max(20, len(files)), seed=1)
    for path in drawn:
        before = flip(path, rng)
        found = verify(out)
        path.write_bytes(before)
        named = str(path.relative_to(out)) if path.is_relative_to(out) else str(path)
        assert named in [f.file for f in found.findings], path
    assert_right(out)


@pytest.mark.slow
def test_each_of_a_thousand_flipped_bits_is_found(result):
    """By the first half of `verify`, without which the second says nothing."""
    out, _, _, files = result
    drawn, rng = draw_files(files, 1000, seed=2)
    for path in drawn:
        before = flip(path, rng)
        found, _ = check_files(out, 2)
        path.write_bytes(before)
        assert found.findings, path
    assert_right(out)


def test_missing_and_truncated_files_are_found(result):
    out, _, _, files = result
    for number, (path, data) in enumerate(files.items()):
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(data[:-1])
        assert not verify(out).is_right, path
        path.write_bytes(data)
    assert_right(out)


def test_a_chunk_where_none_belongs_is_found(result):
    out, _, _, files = result
    chunk = next(p for p in files if "cells/0/" in str(p) and p.name.isdigit())
    added = chunk.with_name("77")
    added.write_bytes(files[chunk])
    (finding,) = verify(out).findings
    added.unlink()
    assert finding.file.endswith(str(added.relative_to(chunk.parents[3])))
    assert finding.what == "is not a file of the run: there is background here"


def test_a_document_of_the_other_format_is_found(result):
    out, _, _, files = result
    document = next(p for p in files if "cells/0/" in str(p) and p.name in ("zarr.json", ".zarray"))
    added = document.with_name(".zarray" if document.name == "zarr.json" else "zarr.json")
    added.write_bytes(files[document])
    found = [str(finding) for finding in verify(out).findings]
    added.unlink()
    assert any(f"{added.name}: is not a file of the run" in text for text in found)


def test_sha256sum_checks_a_result(copied):
    out, _, _ = copied
    check = ["sha256sum", "--check", "--strict", "--quiet", "digests.sha256"]
    assert subprocess.run(check, cwd=out, capture_output=True, check=False).returncode == 0


def test_what_is_wrong_is_told_with_its_place(copied, capsys):
    out, _, _ = copied
    shard = out / "segmentation.ome.zarr" / "labels" / "cells" / "0" / "c" / "0" / "1"
    flip(shard, np.random.default_rng(0))
    code, told, err = call_main(capsys, "verify", out)
    assert code == 4
    assert told == (
        "segmentation.ome.zarr/labels/cells/0/c/0/1: is damaged: it does not fit its checksum "
        "(rows 0 to 70, columns 2048 to 2200)\n"
        "note: ids and table were not compared with the labels, because some of these are damaged\n"
    )
    assert err.splitlines()[-1] == (
        f"error: {out}: 1 thing is wrong; `densebatch verify --repair` makes again what it can"
    )
    code, told, _ = call_main(capsys, "verify", out, "--json", "-")
    document = json.loads(told)
    assert code == 4
    assert not document["ok"]
    assert document["finished"]
    assert document["findings"] == [
        {
            "file": "segmentation.ome.zarr/labels/cells/0/c/0/1",
            "what": "is damaged: it does not fit its checksum",
            "place": [0, 2048, 70, 2200],
        }
    ]


def _write_pixels(out, path, change):
    array = zarr.open_array(out / "segmentation.ome.zarr" / path, mode="r+")
    pixels = array[...]
    change(pixels)
    array[...] = pixels


def _set(place, value):
    def change(pixels):
        pixels[place] = value

    return change


def _swap(pixels):
    first, last = pixels == 1, pixels == pixels.max()
    pixels[first], pixels[last] = pixels.max(), 1


def _edit_json(path, edit):
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))


def _change_table(out):
    table = pq.read_table(out / "cells.parquet")
    area = table["area_px"].to_numpy().copy()
    area[4] += 1
    at = table.column_names.index("area_px")
    pq.write_table(table.set_column(at, "area_px", [area]), out / "cells.parquet")


def _change_means(out):
    table = pq.read_table(out / "cells.parquet")
    mean = table["mean_DAPI"].to_numpy() + 1
    at = table.column_names.index("mean_DAPI")
    pq.write_table(table.set_column(at, "mean_DAPI", [mean]), out / "cells.parquet")


def _break_metadata(out):
    def edit(document):
        del document["attributes"]["ome"]["multiscales"][0]["axes"]

    _edit_json(out / "segmentation.ome.zarr" / "labels" / "cells" / "zarr.json", edit)


WRONG = {
    "a level": (
        lambda out: _write_pixels(out, "labels/cells/1", _set((3, 5), 10**6)),
        "labels/cells/1/c/0/0: 1 px are not those of the level below",
    ),
    "a level of the image": (
        lambda out: _write_pixels(out, "1", _set((1, 3, 5), 60000)),
        "1/c/1/0/0: 1 px are not those of the level below",
    ),
    "an id": (
        lambda out: _write_pixels(out, "labels/cells/0", _set((3, 5), 10**6)),
        "has the ids 1000000, and there are",
    ),
    "a lost id": (
        lambda out: _write_pixels(out, "labels/cells/0", lambda p: np.putmask(p, p == 7, 8)),
        "has no pixel of the ids 7",
    ),
    "the order of ids": (
        lambda out: _write_pixels(out, "labels/cells/0", _swap),
        "2 cells lie far from their seeds, the first is 1",
    ),
    "the table": (_change_table, "'area_px' is not what the labels and pixels say in 1 rows"),
    "intensities": (_change_means, "'mean_DAPI' is not what the labels and pixels say"),
    "the image": (
        lambda out: _write_pixels(out, "0", _set((0, 3, 5), 60000)),
        "0/c/0/0/0: is not the image of the slide",
    ),
    "metadata": (_break_metadata, "labels/cells: is not valid OME-Zarr 0.5: multiscales.0.axes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_together_is_found(copied, what):
    """As if the run had written it so, with right checksums."""
    out, _, _ = copied
    change, expected = WRONG[what]
    change(out)
    assert not verify(out).is_right  # by its checksum
    list_again(out)
    found = [str(finding) for finding in verify(out).findings]
    assert any(expected in text for text in found), found


def test_without_the_slide(result):
    out, slide, tops, _ = result
    gone = slide.with_name("gone")
    if len(tops) > 1:
        shutil.copytree(slide / "0", gone)
        shutil.rmtree(slide / "0")
    else:
        slide.rename(gone)
    try:
        found = assert_right(out)
    finally:
        gone.rename(slide / "0" if len(tops) > 1 else slide)
    (note,) = found.notes
    what = "intensities were" if len(tops) > 1 else "the copied image was"
    assert note.startswith(f"{what} not compared")


def test_folders_that_are_no_output(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "none", tmp_path / "other"):
        with pytest.raises(InputError, match="is no output of densebatch; accepted is the folder"):
            verify(path)
        assert call_main(capsys, "verify", path)[0] == 2


def test_what_somebody_adds_to_metadata_is_a_note(copied):
    out, _, _ = copied
    root = out / "segmentation.ome.zarr"
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(root)
    labels = zarr.open_group(root / "labels", mode="r+", use_consolidated=False)
    ome = labels.attrs["ome"]
    labels.attrs["ome"] = {**ome, "labels": [*ome["labels"], "nuclei"]}
    (root / "labels" / "nuclei").mkdir()
    (out / "notes.txt").write_text("mine")
    found = assert_right(out)
    assert sorted(note.partition(":")[0] for note in found.notes) == [
        "segmentation.ome.zarr/labels/zarr.json", "segmentation.ome.zarr/zarr.json"
    ]  # fmt: skip


def test_a_damaged_result_is_not_called_complete(copied):
    out, slide, _ = copied
    expected = output_bytes(out)
    flip(out / "cells.parquet", np.random.default_rng(0))
    watcher = Watcher()
    segment(slide, out, membrane=("CD3",), workers=0, tile=512, progress=watcher)
    (note,) = [note for note in watcher.notes if "complete" in note]
    assert "was complete, and cells.parquet: is damaged" in note
    assert_same_output(out, expected)
    assert_right(out)


def test_a_report_that_cannot_be_read(copied):
    """Neither of several kinds ends in anything but findings."""
    out, _, _ = copied
    (out / "run.json").unlink()
    (out / "run.json").mkdir()
    found = verify(out)
    assert [f.file for f in found.findings] == ["run.json"]
    assert found.n_cells == 282
    for path in (out / "digests.sha256", out / ".kept" / "digests.sha256"):
        path.unlink()
    assert not verify(out).is_right


def test_advice_fits_what_was_found(tmp_path, copied, capsys):
    out, slide, _ = copied
    for path in (out / "digests.sha256", out / ".kept" / "digests.sha256"):
        path.unlink()
    code, told, err = call_main(capsys, "verify", out)
    assert code == 4
    assert told == "digests.sha256: is missing, and so is its copy\n"
    assert "1 thing is wrong; the run's own command does again what is damaged" in err
    segment(slide, out, membrane=("CD3",), workers=0, tile=512)
    (out / ".densebatch.json").unlink()
    code, _, err = call_main(capsys, "verify", out)
    assert "1 thing is wrong; `densebatch verify --repair` makes again what it can" in err
    watcher = Watcher()
    segment(slide, out, membrane=("CD3",), workers=0, tile=512, progress=watcher)
    assert "this run is already complete" in watcher.notes[-1]
    assert_right(out)


def test_findings_are_told_where_their_file_cannot_be_written(copied, capsys):
    out, _, _ = copied
    flip(out / "cells.parquet", np.random.default_rng(0))
    code, told, err = call_main(capsys, "verify", out, "--json", "/dev/full")
    assert code == 4
    assert told.startswith("cells.parquet: is damaged")
    assert "/dev/full cannot be written: No space left on device" in err


def test_a_run_under_way_is_told(tmp_path, capsys):
    seen = []

    def look():
        seen.append(call_main(capsys, "verify", tmp_path / "out"))

    slide = write_tiff(tmp_path / "a.ome.tif", simulate(*SHAPE, seed=3), ["CD3", "DAPI"])
    watcher = Watcher(trace=look, number=look)
    options = {"membrane": ("CD3",), "workers": 0, "tile": 512}
    segment(slide, tmp_path / "out", progress=watcher, **options)
    for code, told, err in seen:
        assert code == 4
        assert "the run is under way: process" in told
        assert "is being written by process" in err
        assert "look again when it has ended" in err


def test_every_file_of_a_work_folder_that_stays_is_looked_at(tmp_path):
    out, _, _ = make_result(tmp_path, "0.5", keep_flows=True)
    tasks = tasks_folder(out)
    assert not (out / "work" / "state.json").exists()
    assert_right(out)
    for array in ("flows.zarr/c/0/9/9", "trace-512/labels.zarr/c/9/9"):
        extra = tasks / array
        extra.parent.mkdir(parents=True)
        extra.write_bytes(b"x")
        shown = extra.relative_to(out).as_posix()
        assert [str(f) for f in verify(out).findings] == [f"{shown}: is not a file of the run"]
        repair(out, workers=0)
        assert not extra.exists()
        assert_right(out)
    lists = [out / "work.sha256", out / ".kept" / "work.sha256"]
    content = lists[0].read_bytes()
    for path in lists:
        path.unlink()
    assert [f.what for f in verify(out).findings] == ["is missing", "is missing"]
    lists[0].write_bytes(content)
    assert repair(out, workers=0).is_right
    plan = next(tasks.glob("plan-*.json"))
    plan.unlink()
    assert not verify(out).is_right


class Stop(BaseException):
    """Ends a run in this process."""


@pytest.mark.parametrize("n_flips", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_an_unfinished_run(tmp_path, monkeypatch, capsys, n_flips):
    """Nothing of it can be called right; what is damaged of flows, traces and records is named."""

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("densebatch.run.segment._finish", stop)
        with pytest.raises(Stop):
            make_result(tmp_path, "0.5")
    out = tmp_path / "out"
    found = verify(out)
    assert not found.finished
    assert not found.findings
    code, _, err = call_main(capsys, "verify", out)
    assert code == 4
    assert "is no finished result; the run's own command continues it" in err
    work = read_files([tasks_folder(out) / "journal", tasks_folder(out) / "flows.zarr" / "c"])
    work |= read_files([tasks_folder(out) / "trace-512" / "labels.zarr" / "c"])
    drawn, rng = draw_files(work, n_flips, seed=4)
    for path in drawn:
        before = flip(path, rng)
        assert verify(out).findings, path
        path.write_bytes(before)


def test_bits_of_an_unfinished_run_do_not_reach_the_result(tmp_path, monkeypatch):
    def stop(*_):
        raise Stop

    out, slide, _ = make_result(tmp_path, "0.5")
    expected = output_bytes(out)
    shutil.rmtree(out)
    options = {"membrane": ("CD3",), "workers": 0, "tile": 512}
    with monkeypatch.context() as patch:
        patch.setattr("densebatch.run.segment._finish", stop)
        with pytest.raises(Stop):
            segment(slide, out, **options)
    rng = np.random.default_rng(5)
    for path in read_files([out / "work"]):
        flip(path, rng)
    segment(slide, out, **options)
    assert_same_output(out, expected)
    assert_right(out)


def test_a_partial_result_is_as_it_was_written(tmp_path, monkeypatch):
    run = TraceTile.run

    def trace(task):
        if (task.row, task.col) == (0, 1):
            raise MemoryError("not enough")
        return run(task)

    monkeypatch.setattr(TraceTile, "run", trace)
    out, _, tops = make_result(tmp_path, "0.5")
    found = assert_right(out)
    assert [note.partition(",")[0] for note in found.notes] == [
        "the run was partial: 1 tile without labels"
    ]
    files = read_files(tops)
    drawn, rng = draw_files(files, len(files), seed=6)
    for path in drawn[::3]:
        before = flip(path, rng)
        assert not verify(out).is_right, path
        path.write_bytes(before)
