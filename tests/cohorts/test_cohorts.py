"""A cohort: each slide as by itself, whatever becomes of the others; the same command goes on."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import logging
import re
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

import densebatch
from densebatch.base.errors import InputError
from densebatch.cli.terminal import TerminalProgress
from densebatch.cohorts import crew
from densebatch.cohorts.crew import size_crew
from densebatch.cohorts.drive import drive_cohort
from densebatch.cohorts.progress import RowProgress
from densebatch.cohorts.rows import Row, name_sample
from densebatch.cohorts.status import read_cohort
from densebatch.planning.plan import FlowPlan
from densebatch.planning.settings import load_settings
from densebatch.run import prepare, start
from densebatch.run.segment import segment
from densebatch.run.session import Session
from densebatch.upkeep.measure import measure
from tests.helpers.cohort_slides import (
    OPTIONS,
    read_samples,
    states,
    write_broken,
    write_other,
    write_sheet,
    write_slides,
)
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    output_bytes,
    read_report,
)

SETTINGS = load_settings(None, membrane=("CD3",), model="dense-tiny", workers=0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides and the bytes of their single runs, one that is broken, one without CD3."""
    folder = tmp_path_factory.mktemp("slides")
    whole = write_slides(folder, 2)
    for path in whole:
        segment(path, folder / "single" / path.name, SETTINGS)
    expected = [output_bytes(folder / "single" / path.name) for path in whole]
    return folder, whole, expected, write_broken(folder, whole[0]), write_other(folder)


def run(capsys, *arguments):
    return call_main(capsys, "segment", *arguments, *OPTIONS, "--workers", 0)


def test_a_sheet_from_beginning_to_end(slides, capsys, tmp_path):
    """Failures are of their rows alone; what is done is skipped, what failed tried again."""
    _, whole, expected, broken, other = slides
    out = tmp_path / "out"
    names = {"one": whole[0], "two": whole[1], "bad": broken, "none": other}
    rows = [{"sample": name, "slide": str(slide)} for name, slide in names.items()]
    sheet = write_sheet(tmp_path / "sheet.csv", *rows)

    code, printed, err = run(capsys, "--sheet", sheet, out)
    assert code == 3
    assert err.rstrip().endswith("partial: of 4 slides 2 failed; the same command tries them again")
    found = read_samples(out)
    assert {name: row["state"] for name, row in found.items()} == {
        "one": "done", "two": "done", "bad": "failed", "none": "failed",
    }  # fmt: skip
    for name, bytes_ in zip(("one", "two"), expected, strict=True):
        assert_same_output(out / name, bytes_)
        report = read_report(out / name)
        assert found[name] == {
            "slide": str(names[name]), "state": "done", "cells": report["cells"],
            "seconds": report["seconds"]["total"], "failed_tiles": 0,
        }  # fmt: skip
    assert "is truncated" in found["bad"]["reason"]
    assert "has no channel 'CD3'" in found["none"]["reason"]
    assert {found[name]["cells"] for name in ("bad", "none")} == {None}
    assert sorted(path.name for path in out.iterdir()) == ["cohort.json", "one", "two"]
    table = printed.splitlines()
    assert [line.split()[:2] for line in table[1:5]] == [
        ["one", "done"], ["two", "done"], ["bad", "failed"], ["none", "failed"],
    ]  # fmt: skip
    assert table[5].startswith("4 slides: 2 done, 2 failed; ")

    code, printed, _ = call_main(capsys, "status", out)
    assert code == 0
    assert "done except for what is missing" in printed
    assert printed.splitlines()[2:7] == table[:5]
    document = json.loads(call_main(capsys, "status", out, "--json", "-")[1])
    assert document["state"] == "partial"
    assert {row["sample"]: row["state"] for row in document["samples"]} == states(out)

    code, printed, _ = call_main(capsys, "verify", out)
    assert code == 0
    assert "cohort.json says: bad, none" in printed
    table_file = out / "two" / "cells.parquet"
    table_file.write_bytes(table_file.read_bytes() + b"x")
    code, printed, err = call_main(capsys, "verify", out)
    assert code == 4
    assert "something is wrong with two" in err
    assert call_main(capsys, "verify", out, "--repair", "--workers", 0)[0] == 0
    assert_same_output(out / "two", expected[1])

    # The same sheet, with the broken slide mended; what was done is not done again.
    written = (out / "one" / "run.json").stat().st_mtime_ns
    healthy = tmp_path / "healthy.ome.tif"
    healthy.write_bytes(whole[0].read_bytes())
    rows[2]["slide"] = str(healthy)
    write_sheet(sheet, *rows)
    code, _, err = run(capsys, "--sheet", sheet, out)
    assert code == 3
    assert "one: done" in err
    assert states(out) == {"one": "done", "two": "done", "bad": "done", "none": "failed"}
    assert (out / "one" / "run.json").stat().st_mtime_ns == written
    assert read_samples(out)["bad"]["cells"] == read_samples(out)["one"]["cells"]

    # Another sheet: other settings are refused in their row, other samples left alone.
    write_sheet(
        sheet,
        {"sample": "one", "slide": str(whole[0]), "pixel_size": "0.4"},
        {"sample": "two", "slide": str(whole[1])},
    )
    code, _, err = run(capsys, "--sheet", sheet, out)
    assert code == 3
    assert "2 samples of earlier commands ('bad', 'none') are not among these" in err
    found = read_samples(out)
    assert "holds another run" in found["one"]["reason"]
    assert states(out) == {"one": "failed", "two": "done", "bad": "done", "none": "failed"}
    assert_same_output(out / "one", expected[0])

    code, *_ = run(capsys, "--sheet", sheet, out, "--restart")
    assert code == 0
    assert states(out) == {"one": "done", "two": "done", "bad": "done", "none": "failed"}
    assert read_report(out / "one")["settings"]["pixel_size"] == 0.4
    assert read_report(out / "two")["tasks_kept"] == 0
    assert_same_output(out / "two", expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
def test_slides_by_their_names(slides, capsys, tmp_path, caplog, monkeypatch, many):
    """As above, on worker processes, which the two share, and which survey what is large."""
    _, whole, expected, *_ = slides
    out = tmp_path / "out"
    if many:
        monkeypatch.setattr(prepare, "MANY_READS", 1)
        for module in (start, crew):
            monkeypatch.setattr(module, "MAX_THREADS", 1)
    caplog.set_level(logging.INFO, logger="densebatch")
    code, _, err = call_main(capsys, "segment", *whole, out, *OPTIONS, "--workers", 2)
    assert code == 0, err
    for k in range(2):
        assert_same_output(out / f"s{k}", expected[k])
        assert read_report(out / f"s{k}")["workers"] == 2
    events = [record for record in caplog.records if hasattr(record, "event")]
    assert sum(record.event == "executor opened" for record in events) == 1
    stages = {r.fields["sample"] for r in events if r.event == "stage begun"}
    assert stages == {"s0", "s1"}
    assert all((f"s{k}: survey: " in err) == many for k in range(2))
    assert "s1: predict: 1/1 task" in err
    assert not list(out.rglob(".densebatch-owner*"))


def test_positive_cells_of_each_slide_and_of_all(slides, capsys, tmp_path):
    """As their tables have them; slides without markers do not count."""
    folder, whole, *_ = slides
    out = tmp_path / "out"
    assert run(capsys, whole[0], write_other(tmp_path), out)[0] == 3
    assert "positivity" not in json.loads((out / "cohort.json").read_text())
    asked = {"positive": ("CD3=otsu", "DAPI:median=300"), "phenotype": ("T=CD3+ DAPI-",)}
    for path, sample in zip(whole, ("s0", "s1"), strict=True):
        shutil.copytree(folder / "single" / path.name, out / sample, dirs_exist_ok=True)
        measure(out / sample, **asked)
    marked = [text for name, texts in asked.items() for t in texts for text in (f"--{name}", t)]
    code, printed, _ = run(capsys, *whole, out, *marked)
    assert code == 0
    document = json.loads((out / "cohort.json").read_text())
    sums = dict.fromkeys(("positive_CD3", "positive_DAPI", "phenotype_T"), 0)
    assert ["positivity" in row for row in document["samples"]] == [True, True, False]
    for row in document["samples"][:2]:
        table = pq.read_table(out / row["sample"] / "cells.parquet").to_pydict()
        assert list(row["positivity"]) == list(sums)
        for column, counts in row["positivity"].items():
            n_positive = sum(map(bool, table[column]))
            unknown = table[column].count(None)
            assert counts == {"cells": row["cells"], "positive": n_positive, "unknown": unknown}
            sums[column] += n_positive
    n_cells = sum(row["cells"] for row in document["samples"][:2])
    assert {name: each["positive"] for name, each in document["positivity"].items()} == sums
    assert 0 < sums["positive_CD3"] < n_cells
    for each in document["positivity"].values():
        assert each | {"positive": 0} == {
            "samples": 2, "cells": n_cells, "positive": 0, "unknown": 0,
        }  # fmt: skip
    told = f"positive_CD3  {sums['positive_CD3']} of {n_cells} cells of 2 slides"
    assert told in printed.splitlines()
    assert told in call_main(capsys, "status", out)[1].splitlines()
    status = json.loads(call_main(capsys, "status", out, "--json", "-")[1])
    assert [status["samples"], status["positivity"]] == [
        *map(document.get, ("samples", "positivity"))
    ]


def test_a_plan_is_a_table_with_sums(slides, capsys, tmp_path):
    folder, whole, _, broken, _ = slides
    out = tmp_path / "out"
    arguments = ("plan", *whole, broken, out, *OPTIONS, "--workers", 0)
    code, printed, err = call_main(capsys, *arguments)
    assert code == 3
    assert err == "partial: of 3 slides 1 would fail\n"
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines] == ["sample", "s0", "s1", "broken", "sum", "memory:"]
    assert "fails: " in lines[3]
    samples = json.loads(call_main(capsys, *arguments, "--json")[1])["samples"]
    assert float(lines[4].split()[-1]) == sum(row["disk_mb"] or 0 for row in samples)
    assert [row["mpx"] for row in samples] == [0.011, 0.011, None]
    single = [read_report(folder / "single" / path.name)["fingerprint"] for path in whole]
    assert [row["fingerprint"] for row in samples] == [*single, None]
    assert not out.exists()


def test_bars_of_a_slide_go_with_it():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with TerminalProgress(console) as progress:
        for sample in ("one", "two"):
            with RowProgress(progress, sample) as told:
                told.stage("trace", 2, 0)
                told.advance("trace", 100)
                told.note("pixel size unknown")
                assert [bar.description for bar in progress._bars.tasks] == [f"{sample}: trace"]
        assert progress._bars.tasks == []
        assert progress._counters == {}
    assert "two: pixel size unknown" in console.file.getvalue()


def test_a_plan_of_cells_and_nuclei_has_the_needs_of_all_their_runs(slides, capsys, tmp_path):
    _, whole, *_ = slides
    options = ("--nuclei", "DAPI", "--compartments", "--nuclei-model", "watershed", *OPTIONS)
    options = (*options, "--workers", 0, "--json")
    single = json.loads(call_main(capsys, "plan", whole[0], tmp_path / "out", *options)[1])
    runs = list(single["runs"].values())
    code, printed, err = call_main(capsys, "plan", *whole, tmp_path / "out", *options)
    assert code == 0
    (row, _) = json.loads(printed)["samples"]
    assert row["fingerprint"] == single["fingerprint"]
    assert row["worker_mb"] == max(run["worker_mb"] for run in (single, *runs))
    assert row["disk_mb"] == single["disk_mb"] > sum(run["disk_mb"] for run in runs) > 1
    assert "s0: nuclei: " in err
    assert "--nuclei-diameter" in err
    assert "--diameter" not in err


@pytest.mark.parametrize("restart", [False, True])
def test_folders_that_are_no_cohort_s(slides, capsys, tmp_path, restart):
    _, whole, *_ = slides
    out = tmp_path / "out"
    options = ["--restart"] if restart else []
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    code, _, err = run(capsys, *whole, out, *options)
    assert code == 2
    assert f"{out}: holds 'thesis.tex' and is no output of densebatch" in err
    (out / "thesis.tex").unlink()
    (out / ".densebatch.json").write_text("{}")
    code, _, err = run(capsys, *whole, out, *options)
    assert code == 2
    assert f"{out}: is the output of one slide" in err
    assert [path.name for path in out.iterdir()] == [".densebatch.json"]
    (tmp_path / "file").touch()
    assert run(capsys, *whole, tmp_path / "file" / "out", *options)[0] == 2


def test_what_no_slide_can_do_is_refused_before_any(slides, capsys, tmp_path):
    _, whole, *_ = slides
    out = tmp_path / "out"
    for wrong, words in [
        (("--model", "nosuch"), "model 'nosuch' is neither bundled"),
        (("--segmenter", "nosuch"), "nosuch"),
        (("--backend", "openvino", "--device", "cuda"), "cuda"),
    ]:
        code, printed, err = call_main(capsys, "segment", *whole, out, "--membrane", "CD3", *wrong)
        assert (code, printed) == (2, "")
        assert words in err
        assert not out.exists()


def test_a_record_that_is_damaged(slides, capsys, tmp_path):
    _, whole, *_ = slides
    out = tmp_path / "out"
    out.mkdir()
    for content in ("{", "[]", '{"samples": [{"sample": "a", "slide": "b", "state": "odd"}]}'):
        (out / "cohort.json").write_text(content)
        for command in (("status", out), ("verify", out), ("segment", *whole, out)):
            code, _, err = call_main(capsys, *command)
            assert code == 2
            assert f"{out / 'cohort.json'}: is damaged" in err


class Stops(Watcher):
    """Interrupts the process, as Ctrl-C does, when a stage of a slide begins."""

    def __init__(self, stage):
        super().__init__(**{stage: self.interrupt})

    @staticmethod
    def interrupt():
        import signal

        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_between_tasks_and_then_the_same_command(slides, tmp_path):
    """Here the tasks are this process's own; `test_kills` has workers."""
    _, whole, expected, *_ = slides
    rows = [Row(f"r{k}", path, SETTINGS) for k, path in enumerate(whole)]
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        drive_cohort(rows, out, SETTINGS, progress=Stops("r0: predict"))
    assert states(out) == {"r0": "waiting", "r1": "waiting"}
    status = read_cohort(out)
    assert (status.state, status.running, status.driver) == ("interrupted", {}, None)
    assert (out / "r0" / "work").is_dir()
    assert not (out / "r1").exists()
    result = drive_cohort(rows, out, SETTINGS)
    assert result.count("done") == 2
    for k in range(2):
        assert_same_output(out / f"r{k}", expected[k])


@pytest.mark.slow
def test_ctrl_c_while_workers_survey_the_first_slide(slides, tmp_path, caplog, monkeypatch):
    """Nobody waits for the survey, which ends by itself and is told as no slide's failure."""
    _, whole, expected, *_ = slides
    monkeypatch.setattr(prepare, "MANY_READS", 1)
    for module in (start, crew):
        monkeypatch.setattr(module, "MAX_THREADS", 1)
    out, settings = tmp_path / "out", SETTINGS.model_copy(update={"workers": 2})
    rows = [Row(f"r{k}", path, settings) for k, path in enumerate(whole)]
    with pytest.raises(KeyboardInterrupt):
        drive_cohort(rows, out, settings, progress=Stops("r0: survey"))
    for thread in [each for each in threading.enumerate() if each.name == "densebatch-r0"]:
        thread.join(60)
        assert not thread.is_alive()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert drive_cohort(rows, out, settings).count("done") == 2
    for k in range(2):
        assert_same_output(out / f"r{k}", expected[k])


@pytest.mark.slow
def test_nothing_begins_once_a_cohort_is_left(slides, tmp_path, monkeypatch):
    """By a slide that nobody waits for, as after Ctrl-C while its metadata are read."""
    _, whole, *_ = slides
    settings = SETTINGS.model_copy(update={"workers": 1})
    size = size_crew([Row("r0", whole[0], settings)], settings)
    with crew.Crew(settings, size, print) as left:
        assert crew.Place(left, "r0").is_shared
        assert not crew.Place(crew.Crew(SETTINGS, crew.Size(0, ()), print), "r0").is_shared
    with pytest.raises(KeyboardInterrupt):
        left.begin(())
    opened = []
    with crew.Crew(settings, size, print) as left:
        finish = left._starting.finish

        def finish_late(*arguments):
            left.__exit__(None, None, None)
            opened.append(finish(*arguments))
            return opened[0]

        monkeypatch.setattr(left._starting, "finish", finish_late)
        with pytest.raises(KeyboardInterrupt):
            left.open_executor("r0", (), tmp_path)
    assert opened[0].client.status == "closed"


def count_plans(*kinds):
    """How many plans or sessions are alive."""
    return sum(type(each) in kinds for each in gc.get_objects())


class Rows(list):
    """Rows that count, as they are walked through, what is alive."""

    most = 0

    def __iter__(self):
        for k, row in enumerate(super().__iter__()):
            if k % 50 == 49:
                self.most = max(self.most, count_plans(FlowPlan))
            yield row


class Counts(Watcher):
    """Counts, whenever a slide's first stage begins, the sessions that are alive."""

    most = 0

    def stage(self, name, total, done):
        super().stage(name, total, done)
        if name.endswith(": predict"):
            gc.collect()
            self.most = max(self.most, count_plans(Session))


def test_what_is_held_does_not_grow_with_the_slides(slides, tmp_path):
    """Five hundred slides are sized, and some of them segmented."""
    _, whole, *_ = slides
    gc.collect()
    before = count_plans(FlowPlan)
    rows = Rows(Row(f"r{k}", whole[k % 2], SETTINGS) for k in range(500))
    size = size_crew(rows, SETTINGS)
    assert size.workers == 0
    assert len(size.largest) == 1
    assert rows.most - before <= 24
    progress = Counts()
    result = drive_cohort(rows[:4], tmp_path / "out", SETTINGS, progress=progress)
    assert result.count("done") == 4
    assert progress.most == 1


def read_example(slides, out):
    """The example of docs/cohorts.md with these slides and this output."""
    text = (Path(__file__).parents[2] / "docs" / "cohorts.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = "".join(f'"{slide}", ' for slide in slides)
    code = code.replace('"a.ome.tif", "b.ome.tif"', names).replace('"outdir"', f'"{out}"')
    return code.replace('membrane=("CD3",)', 'membrane=("CD3",), model="dense-tiny", workers=0')


def test_from_python_as_by_the_command(slides, capsys, tmp_path):
    _, whole, expected, broken, _ = slides
    out = tmp_path / "out"
    exec(read_example(whole, out), {"__name__": "__main__"})
    for slide, bytes_ in zip(whole, expected, strict=True):
        assert_same_output(out / name_sample(slide), bytes_)
    found = read_samples(out)
    assert capsys.readouterr().out.splitlines() == [
        f"{sample} done {row['cells']} None" for sample, row in found.items()
    ]

    rows = [{"sample": "bad", "slide": str(broken)}, {"sample": "one", "slide": str(whole[0])}]
    sheet = write_sheet(tmp_path / "sheet.csv", *rows)
    options = {"membrane": ("CD3",), "model": "dense-tiny", "workers": 0}
    result = densebatch.segment_cohort(str(sheet), tmp_path / "sheet", **options)
    assert [(each.sample, each.state) for each in result.entries] == [
        ("bad", "failed"), ("one", "done"),
    ]  # fmt: skip
    assert "is truncated" in result.entries[0].reason
    assert (result.count("done"), result.out) == (1, tmp_path / "sheet")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.out = out
    for wrong, match in (
        ((), "no slide is named"),
        ((whole[0], whole[0]), "would both be written to"),
        (tmp_path / "none.csv", r"none\.csv"),
    ):
        with pytest.raises(InputError, match=match):
            densebatch.segment_cohort(wrong, tmp_path / "wrong", **options)
    with pytest.raises(InputError, match="is the output of one slide"):
        densebatch.segment_cohort(whole, out / name_sample(whole[0]), **options)
    with pytest.raises(TypeError, match="not both"):
        densebatch.segment_cohort(whole, out, SETTINGS, workers=0)
    assert not (tmp_path / "wrong").exists()
