"""A damaged result gets its own bytes back, whatever of it can be made again, and nothing else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from densebatch.base.errors import IntegrityError
from densebatch.run.driver import Driver
from densebatch.run.segment import segment
from densebatch.stages.predict import PredictGroup
from densebatch.stages.trace import TraceTile
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import verify
from tests.helpers.damage import KINDS, SHAPE, draw_files, flip, make_result, read_files
from tests.helpers.run_files import call_main, count_calls, simulate, tasks_folder, write_tiff
from tests.helpers.slide_files import write_zarr

ONE_OF_TWO = (".copy", ".sha256")


@pytest.fixture(scope="module", params=KINDS)
def result(request, tmp_path_factory):
    out, slide, tops = make_result(tmp_path_factory.mktemp("result"), request.param)
    return out, slide, tops, read_files(tops)


@pytest.fixture
def copied(tmp_path):
    out, slide, tops = make_result(tmp_path, "0.5")
    return out, slide, tops, read_files(tops)


def damage_all(files, seed):
    """A bit of every file but for the second copies of what there are two of."""
    rng = np.random.default_rng(seed)
    for path, data in files.items():
        second = path.suffix in ONE_OF_TWO and ".kept" in path.parts
        if data and not second:
            flip(path, rng)


def assert_mended(out, tops, files):
    assert verify(out).is_right
    found = read_files(tops)
    assert sorted(found) == sorted(files)
    assert [path for path in files if found[path] != files[path]] == []


def test_a_bit_of_every_file(result):
    out, _, tops, files = result
    damage_all(files, 1)
    mended = repair(out, workers=0)
    assert mended.is_right, [str(f) for f in mended.findings] + mended.notes
    assert len(mended.repaired) == sum(
        bool(data) and not (path.suffix in ONE_OF_TWO and ".kept" in path.parts)
        for path, data in files.items()
    )
    assert_mended(out, tops, files)


def test_each_file_alone(result):
    """Nothing but the damaged file is written, and the network runs for labels alone."""
    out, _, tops, files = result
    drawn, rng = draw_files(files, len(files), seed=2)
    with pytest.MonkeyPatch.context() as patch:
        work = count_calls(patch, PredictGroup, "run")
        for path in drawn[::2]:
            before = {p: p.stat().st_mtime_ns for p in files}
            calls = work["run"]
            flip(path, rng)
            assert repair(out, workers=0).is_right, path
            changed = [p for p in files if p.stat().st_mtime_ns != before[p]]
            assert changed in ([], [path]), path
            is_label = "cells/0/" in str(path) and path.name.isdigit()
            assert (work["run"] > calls) == is_label, path
            assert path.read_bytes() == files[path]
    assert_mended(out, tops, files)


def test_missing_and_added_files(copied):
    out, _, tops, files = copied
    for path in files:
        if not (path.suffix in ONE_OF_TWO and ".kept" in path.parts):
            path.unlink()
    shard = out / "segmentation.ome.zarr" / "labels" / "cells" / "0" / "c" / "0" / "9"
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_bytes(b"x")
    assert repair(out, workers=0).is_right
    assert not shard.exists()
    assert_mended(out, tops, files)


def test_by_the_command_on_workers(copied, capsys):
    out, _, tops, files = copied
    flip(out / "segmentation.ome.zarr" / "labels" / "cells" / "0" / "c" / "0" / "0",
         np.random.default_rng(0))  # fmt: skip
    code, told, _ = call_main(capsys, "verify", out, "--repair", "--workers", 1)
    assert code == 0
    assert told.splitlines()[0] == "mended  segmentation.ome.zarr/labels/cells/0/c/0/0"
    assert told.endswith("all right; 1 file mended\n")
    assert_mended(out, tops, files)


class Stop(BaseException):
    """A kill, as far as files are concerned."""


def test_a_killed_repair_is_gone_on_with(copied, monkeypatch):
    out, _, tops, files = copied
    replace, at = Path.replace, 0
    damage_all(files, 3)
    for kill_at in range(1, 60, 4):

        def counted(self, target, kill_at=kill_at):
            nonlocal at
            at += 1
            if at == kill_at:
                raise Stop
            return replace(self, target)

        at = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            try:
                repair(out, workers=0)
                break
            except Stop:
                pass
        if kill_at == 21:
            damage_all({p: d for p, d in files.items() if p.exists()}, kill_at)
    assert repair(out, workers=0).is_right
    assert_mended(out, tops, files)


def test_a_slide_that_is_gone_or_changed(copied, capsys):
    """What does not need it is mended all the same."""
    out, slide, tops, files = copied
    root = out / "segmentation.ome.zarr"
    rng = np.random.default_rng(0)
    label, above = root / "labels/cells/0/c/0/0", root / "1/c/0/0/0"
    for path in (label, above, out / "cells.parquet", root / "0/c/1/0/1"):
        flip(path, rng)
    gone = slide.rename(slide.with_name("gone.tif"))
    code, told, err = call_main(capsys, "verify", out, "--repair", "--workers", 0)
    assert code == 4
    assert f"labels cannot be made again without the slide ({slide} does not exist" in told
    assert "the copied image cannot be made again without the slide" in told
    assert "cells.parquet cannot be made again while labels are damaged" in told
    assert err.splitlines()[-1] == f"error: {out}: 3 things are wrong"
    assert above.read_bytes() == files[above]
    gone.unlink()
    write_tiff(slide, simulate(*SHAPE, seed=4), ["CD3", "DAPI"])
    code, told, _ = call_main(capsys, "verify", out, "--repair", "--workers", 0)
    assert code == 4
    assert "has changed since the run" in told
    assert not list(tops[0].rglob("*.partial"))


def test_a_slide_that_was_only_touched_or_copied_is_the_same(copied):
    out, slide, tops, files = copied
    root = out / "segmentation.ome.zarr"
    for path in (root / "labels/cells/0/c/0/0", root / "0/c/1/0/1", out / "cells.parquet"):
        flip(path, np.random.default_rng(0))
    content = slide.read_bytes()
    slide.unlink()
    slide.write_bytes(content)
    os.utime(slide, (1, 1))
    assert repair(out, workers=0).is_right
    assert_mended(out, tops, files)
    assert not verify(out).notes


@pytest.mark.parametrize("which", ["the list", "its copy", "both"])
def test_the_list_of_another_result_is_not_believed(tmp_path, copied, which):
    """Not even one of a run of the same slide; and nothing is removed or written for it."""
    out, slide, tops, files = copied
    again = tmp_path / "again"
    segment(slide, again, membrane=("CD3",), workers=0, tile=512)
    (tmp_path / "b").mkdir()
    other, _, _ = make_result(tmp_path / "b", "0.4", tile=256)
    lists = [out / "digests.sha256", out / ".kept" / "digests.sha256"]
    for foreign in (other, again):
        for path in {"the list": lists[:1], "its copy": lists[1:], "both": lists}[which]:
            shutil.copy(foreign / "digests.sha256", path)
        found = repair(out, workers=0)
        if which != "both":
            assert found.is_right, [str(f) for f in found.findings]
            assert_mended(out, tops, files)
            continue
        assert not found.is_right
        changed = [p for p, data in read_files(tops).items() if data != files[p]]
        assert sorted(changed) == sorted(lists)


def test_nothing_is_written_into_a_slide_that_is_gone_or_another(tmp_path):
    out, slide, _ = make_result(tmp_path, "in place")
    gone = slide.rename(tmp_path / "moved.ome.zarr")
    found = verify(out)
    assert [str(finding) for finding in found.findings] == [
        f"{slide}: is gone, with the labels in it"
    ]
    with pytest.raises(IntegrityError, match="is gone, and the labels in it cannot be made again"):
        repair(out, workers=0)
    assert not slide.exists()
    write_zarr(slide, simulate(*SHAPE, seed=9), labels=["CD3", "DAPI"], n_levels=2)
    before = read_files([slide])
    with pytest.raises(IntegrityError, match="labels are not written into another slide"):
        repair(out, workers=0)
    assert read_files([slide]) == before
    shutil.rmtree(slide)
    gone.rename(slide)
    assert verify(out).is_right


def edit(path, change):
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_metadata_that_say_something_else_are_damage(tmp_path, ngff):
    """More than was there is a note only where others may add; order counts."""
    out, _, tops = make_result(tmp_path, ngff)
    files = read_files(tops)
    root = out / "segmentation.ome.zarr"
    name = "zarr.json" if ngff == "0.5" else ".zattrs"

    def attributes(document):
        return document["attributes"] if ngff == "0.5" else document

    def ome(document):
        return attributes(document)["ome"] if ngff == "0.5" else document

    changes = {
        root / name: lambda d: ome(d)["omero"]["channels"].reverse(),
        root / "labels" / "cells" / name: lambda d: attributes(d)["densebatch"]["provenance"][
            "normalization"
        ].insert(0, {"channel": "CD3", "low": 0, "high": 1}),
        root / "labels" / name: lambda d: ome(d).update(labels=["nuclei"]),
    }
    for path, change in changes.items():
        edit(path, change)
        assert [f.file for f in verify(out).findings] == [path.relative_to(out).as_posix()]
        assert repair(out, workers=0).is_right
        assert_mended(out, tops, files)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_that_are_wrong_are_damage(tmp_path, ngff):
    out, _, tops = make_result(tmp_path, ngff)
    files = read_files(tops)
    root = out / "segmentation.ome.zarr"
    zarr.consolidate_metadata(root)
    assert verify(out).is_right

    def swap(document):
        known = document["consolidated_metadata"] if ngff == "0.5" else document
        known = known["metadata"]
        first, last = ("0", "1") if ngff == "0.5" else ("0/.zarray", "1/.zarray")
        known[first] = known[last]

    path = root / ("zarr.json" if ngff == "0.5" else ".zmetadata")
    edit(path, swap)
    found = verify(out)
    assert [f.file for f in found.findings] == [path.relative_to(out).as_posix()]
    assert repair(out, workers=0).is_right
    array = zarr.open_group(root, mode="r")["0"]
    assert array.shape[-2:] == SHAPE
    assert {p: d for p, d in read_files(tops).items() if p in files and p != path} == {
        p: d for p, d in files.items() if p != path
    }


def test_a_folder_in_the_place_of_a_file(copied):
    """An empty one makes room; one that holds something stays, and the rest is mended."""
    out, _, tops, files = copied
    root = out / "segmentation.ome.zarr"
    shard, above, report = root / "labels/cells/0/c/0/0", root / "1/c/0/0/0", out / "run.json"
    for path in (shard, above, report, out / "cells.parquet"):
        path.unlink()
        path.mkdir()
    (above / "mine").write_text("x")
    flip(out / ".densebatch.json", np.random.default_rng(0))
    found = repair(out, workers=0)
    shown = above.relative_to(out).as_posix()
    assert [f.file for f in found.findings] == [shown]
    assert f"{shown} cannot be mended: something else is in its place" in found.notes
    (above / "mine").unlink()
    assert repair(out, workers=0).is_right
    assert_mended(out, tops, files)


def test_what_is_undamaged_is_not_owned(copied):
    """As on a disk that is read only."""
    out, _, tops, files = copied
    with pytest.MonkeyPatch.context() as patch:
        owned = count_calls(patch, Driver, "own")
        assert repair(out, workers=0).is_right
    assert not owned
    assert read_files(tops) == files


def test_a_table_needs_the_copied_image_or_the_slide(copied):
    out, slide, tops, files = copied
    flip(out / "cells.parquet", np.random.default_rng(0))
    slide.unlink()
    assert repair(out).is_right
    assert_mended(out, tops, files)


def test_what_is_damaged_twice_is_told(copied):
    out, _, _, _ = copied
    for path in (out / "run.json", out / ".kept" / "digests" / "run.json.copy"):
        flip(path, np.random.default_rng(0))
    found = repair(out)
    assert not found.is_right
    assert "run.json cannot be mended: its second copy is damaged too" in found.notes
    for path in (out / "digests.sha256", out / ".kept" / "digests.sha256"):
        flip(path, np.random.default_rng(0))
    assert not repair(out).is_right


def test_labels_of_another_run_in_a_slide_are_left_alone(tmp_path):
    out, slide, _ = make_result(tmp_path, "in place")
    options = {"membrane": ("CD3",), "workers": 0, "in_place": True, "cellprob_threshold": 1.0}
    segment(slide, tmp_path / "other", restart=True, **options)
    before = read_files([slide])
    assert not verify(out).is_right
    with pytest.raises(IntegrityError, match="holds labels of another run now"):
        repair(out, workers=0)
    assert read_files([slide]) == before
    assert verify(tmp_path / "other").is_right


@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_consolidated_metadata_of_a_slide(tmp_path):
    """They are the slide's own, but for what they tell of the labels."""
    slide = tmp_path / "a.ome.zarr"
    write_zarr(slide, simulate(70, 300, seed=3), labels=["CD3", "DAPI"])
    zarr.consolidate_metadata(slide)
    out = tmp_path / "out"
    segment(slide, out, in_place=True, membrane=("CD3",), workers=0)
    assert verify(out).is_right
    document = slide / "zarr.json"
    before = document.read_bytes()
    document.write_bytes(before.replace(b'"name": "cells"', b'"name": "cellr"'))
    (finding,) = verify(out).findings
    assert finding.file == str(document)
    assert repair(out).is_right
    assert document.read_bytes() == before


@pytest.fixture(scope="module", params=KINDS)
def partial(request, tmp_path_factory):
    """A run that lost a tile and a group of patches, with the label image `missing`."""
    runs = {PredictGroup: lambda task: task.col == 0, TraceTile: lambda task: task.col == 3}
    with pytest.MonkeyPatch.context() as patch:
        for kind, fails in runs.items():

            def run(task, run=kind.run, fails=fails):
                if fails(task):
                    raise MemoryError("not enough")
                return run(task)

            patch.setattr(kind, "run", run)
        out, slide, tops = make_result(tmp_path_factory.mktemp("partial"), request.param)
    (root,) = [top for top in tops[-1:] if top != out] or [out / "segmentation.ome.zarr" / "labels"]
    assert (root / "missing").is_dir()
    return out, slide, tops, read_files(tops)


def is_costs(path):
    """Whether a file tells of seconds, or is read by nobody any more: records, sums of shards."""
    return path.parent.name == "journal" or path.name.startswith("cells-")


def assert_partial_mended(out, tops, files):
    assert verify(out).is_right
    found = read_files(tops)
    lists = [p for p in files if p.name == "work.sha256"]  # they name records
    kept = [p for p in files if not is_costs(p) and p not in lists]
    assert [p for p in kept if found.get(p) != files[p]] == []
    assert set(found) - set(files) == set()


def test_a_bit_of_every_file_of_a_partial_run(partial):
    out, _, tops, files = partial
    damage_all(files, 11)
    mended = repair(out, workers=0)
    assert mended.is_right, [str(f) for f in mended.findings] + mended.notes
    assert_partial_mended(out, tops, files)


@pytest.mark.parametrize("step", [-5, pytest.param(1, marks=pytest.mark.slow)])
def test_each_file_of_a_partial_run_alone(partial, step):
    """Backwards, too: what is mended must not depend on what was mended before."""
    out, _, tops, files = partial
    rng = np.random.default_rng(12)
    for path in [path for path in files if files[path]][::step]:
        if not path.exists():
            continue  # a record that nobody reads any more is removed with what it covers
        flip(path, rng)
        assert not verify(out).is_right, path
        mended = repair(out, workers=0)
        assert mended.is_right, (path, [str(f) for f in mended.findings] + mended.notes)
    assert_partial_mended(out, tops, files)


def test_labels_of_a_partial_run_without_its_work_folder(partial, tmp_path):
    """The run's own command makes them anew; what has two copies or a level below is mended."""
    out, _, tops, _ = partial
    if len(tops) > 1:
        pytest.skip("a copy of OUT leaves the labels in the slide")
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "work")
    found = verify(copy)
    assert found.is_right, [str(f) for f in found.findings] + found.notes
    root = copy / "segmentation.ome.zarr" / "labels" / "missing"
    rng = np.random.default_rng(13)
    chunks = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name.isdigit()]
    before = {path: path.read_bytes() for path in chunks}
    flip(chunks[0], rng)
    flip(chunks[-1], rng)
    mended = repair(copy, workers=0)
    assert [f.file for f in mended.findings] == [chunks[0].relative_to(copy).as_posix()]
    (note,) = [note for note in mended.notes if "cannot be made again" in note]
    assert note.startswith("labels/missing of a partial run cannot be made again without the")
    assert chunks[-1].read_bytes() == before[chunks[-1]]


def read_result(out):
    """All files but those of tasks, and the list of these: it names records, with their costs."""
    found = read_files([out])
    return {p: d for p, d in found.items() if "work" not in p.parts and p.name != "work.sha256"}


def test_kept_flows_are_made_again(tmp_path):
    out, _, _ = make_result(tmp_path, "0.5", keep_flows=True)
    result = read_result(out)
    rng = np.random.default_rng(7)
    work = read_files([out / "work"])
    for path in work:
        flip(path, rng)
    assert not verify(out).is_right
    found = repair(out, workers=0)
    assert found.is_right, [str(f) for f in found.findings] + found.notes
    flows = tasks_folder(out) / "flows.zarr"
    assert {p: p.read_bytes() for p in work if p.is_relative_to(flows)} == {
        p: d for p, d in work.items() if p.is_relative_to(flows)
    }
    assert read_result(out) == result
    shutil.rmtree(out / "work")
    assert verify(out).is_right  # a user may remove it
    assert verify(out).notes == ["flows and traces, which the run left in work/, are gone"]
