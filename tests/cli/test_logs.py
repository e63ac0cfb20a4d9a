"""`--verbose` and `--log-json`: what they write and where, and silence without them."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

import densebatch
from densebatch.base.errors import InputError
from densebatch.base.log import log_event
from densebatch.cli import logs
from densebatch.cli.logs import LoggedCommand, LoggedGroup, show_events
from densebatch.cli.terminal import TerminalProgress
from tests.helpers.file_server import serve
from tests.helpers.run_files import call_main, run_command, simulate, write_tiff

log = logging.getLogger("densebatch.some.module")
DOCS = Path(__file__).parents[2] / "docs" / "logging.md"


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(120, 130), ["CD3", "DAPI"])


@pytest.fixture(autouse=True)
def no_traces():
    """After each test the package's logger is as it was found."""
    logger = logging.getLogger("densebatch")
    yield
    assert logger.handlers == []
    assert logger.level == logging.NOTSET


def read_events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def segment_arguments(slide, out, *options):
    return ("segment", slide, out, "--membrane", "CD3", "--workers", 0, *options)


def run_python(code, *arguments):
    """A process of its own: here pytest listens, and other tests have made what is made once."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip


# whole runs


def test_a_run_s_events_are_lines_of_json(tmp_path, slide):
    log_file = tmp_path / "log.jsonl"
    arguments = segment_arguments(slide, tmp_path / "out", "--log-json", log_file)
    code, _, err = run_command(*arguments)
    assert code == 0
    assert "INFO" not in err
    events = read_events(log_file)
    for event in events:
        assert list(event)[:4] == ["time", "level", "logger", "event"]
        assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
        assert event["level"] == "INFO"
        assert event["logger"].startswith("densebatch.")
    first, last = events[0], events[-1]
    assert first["event"] == "command started"
    assert first["command"].endswith("segment")
    assert first["options"] == {
        "slides": [str(slide)], "out": str(tmp_path / "out"), "membrane": ["CD3"], "workers": 0,
    }  # fmt: skip
    assert last["event"] == "command ended"
    assert last["seconds"] > 0
    (made,) = [event for event in events if event["event"] == "backend made"]
    assert (made["logger"], made["backend"]) == ("densebatch.engines.make", "torch")
    # the same command later: a complete run, whose events follow those of the first
    assert run_command(*arguments)[0] == 0
    again = read_events(log_file)
    assert again[: len(events)] == events
    assert again[len(events)]["event"] == "command started"


def test_verbose_prints_lines_and_the_result_stays_on_stdout(capsys, tmp_path, slide):
    code, out, err = call_main(capsys, *segment_arguments(slide, tmp_path / "out", "--verbose"))
    assert code == 0
    assert "cells in" in out
    assert "INFO" not in out
    lines = [line for line in err.splitlines() if " INFO densebatch." in line]
    assert "command started: command=" in lines[0]
    assert lines[-1].partition(" INFO ")[2].startswith("densebatch.cli.logs: command ended: ")
    # lines of progress are among them as ever
    assert "trace: 1/1 task," in err


@pytest.mark.parametrize("workers", [0, 1])
def test_without_the_options_nothing_is_printed_and_nobody_listens(tmp_path, slide, workers):
    code = (
        "import atexit, logging, sys\n"
        "def check():\n"
        "    assert logging.getLogger('densebatch').handlers == []\n"
        "    assert logging.getLogger('densebatch').level == logging.NOTSET\n"
        "    print('checked')\n"
        "atexit.register(check)\n"
        "from densebatch.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["segment", slide, tmp_path / "out", "--membrane", "CD3", "--workers", workers]
    run = run_python(code, *arguments)
    assert run.stdout.endswith("checked\n")
    assert "INFO" not in run.stdout + run.stderr
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == [
        "predict", "trace", "number",
    ]  # fmt: skip


def test_forked_processes_write_nothing(tmp_path):
    """They inherit the handlers, but may have closed their files."""
    code = (
        "import logging, os, sys\n"
        "from pathlib import Path\n"
        "from densebatch.base.log import log_event\n"
        "from densebatch.cli.logs import show_events\n"
        "log = logging.getLogger('densebatch.some.module')\n"
        "with show_events(verbose=True, file=Path(sys.argv[1])):\n"
        "    pid = os.fork()\n"
        "    log_event(log, 'parent' if pid else 'child')\n"
        "    if pid == 0:\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    run = run_python(code, tmp_path / "log.jsonl")
    assert [event["event"] for event in read_events(tmp_path / "log.jsonl")] == ["parent"]
    assert run.stderr.endswith(" INFO densebatch.some.module: parent\n")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("listens", [False, True])
def test_a_program_that_uses_the_library_gets_no_handler(tmp_path, slide, listens):
    """It hears the events if it asks for them, by the standard library's own means."""
    code = (
        "import logging, sys\n"
        "import densebatch\n"
        f"if {listens}:\n"
        "    logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "densebatch.segment(*sys.argv[1:], membrane=('CD3',), workers=0)\n"
        "assert logging.getLogger('densebatch').handlers == []\n"
    )
    run = run_python(code, slide, tmp_path / "out")
    assert run.stderr == ""
    assert ("INFO:densebatch.engines.make:backend made: " in run.stdout) == listens
    assert bool(run.stdout) == listens


def test_failures_are_events(capsys, tmp_path, slide):
    log_file = tmp_path / "log.jsonl"
    code, out, err = call_main(
        capsys, "segment", slide, tmp_path / "out", "--membrane", "CD4", "--log-json", log_file
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    started, failed = read_events(log_file)
    assert started["event"] == "command started"
    assert (failed["event"], failed["level"]) == ("command failed", "ERROR")
    assert failed["reason"] == f"InputError: {err.removeprefix('error: ').rstrip()}"


def test_fetching_is_an_event(capsys, tmp_path, monkeypatch):
    """Of a file that is then refused, there is none."""
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "localhost")
    log_file = tmp_path / "log.jsonl"
    with serve({"a": b"no network"}) as server:
        url = f"{server.url}/a"
        fetch = ("models", "fetch", "cyto", "--url", url, "--log-json", log_file)
        assert call_main(capsys, *fetch)[0] == 2
    assert [event["event"] for event in read_events(log_file)] == [
        "command started", "command failed",
    ]  # fmt: skip


# where the options may stand


@pytest.mark.parametrize(
    "arguments",
    [
        ("--verbose", "models", "list"),
        ("models", "--verbose", "list"),
        ("models", "list", "--verbose"),
        ("--verbose", "models"),
        ("models", "--verbose"),
        ("--verbose", "models", "--verbose", "list", "--verbose"),
    ],
)
def test_before_or_after_the_command(capsys, arguments):
    code, out, err = call_main(capsys, *arguments)
    assert code == 0
    assert "dense-small" in out
    started, ended = err.splitlines()
    assert " INFO densebatch.cli.logs: command started: " in started
    assert " INFO densebatch.cli.logs: command ended: " in ended


def test_the_last_file_that_was_named_is_written(capsys, tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    code, _, _ = call_main(capsys, "--log-json", files[0], "models", "list", "--log-json", files[1])
    assert code == 0
    assert [file.exists() for file in files] == [False, True]


# files that cannot be written


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("no/log.jsonl", "No such file or directory"),
        (".", "Is a directory"),
        ("file/log.jsonl", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_first(capsys, tmp_path, slide, place, reason):
    (tmp_path / "file").touch()
    log_file = tmp_path / place
    code, out, err = call_main(
        capsys, *segment_arguments(slide, tmp_path / "out", "--log-json", log_file)
    )
    assert (code, out) == (2, "")
    assert err == f"error: {log_file}: cannot be written ({reason})\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_read_only_file_is_refused():
    with (
        pytest.raises(InputError, match=r"^/proc/version: cannot be written \("),
        show_events(verbose=False, file=Path("/proc/version")),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_once_and_the_work_goes_on(capsys):
    code, out, err = call_main(capsys, "models", "list", "--log-json", "/dev/full")
    assert code == 0
    assert "dense-small" in out
    assert err == "/dev/full: cannot be written any more (No space left on device)\n"


# handlers


def test_a_line_stands_above_the_bars(monkeypatch):
    """On a terminal: bars are drawn again below it, and no line is torn."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    monkeypatch.setattr(logs, "get_console", lambda: console)
    with show_events(verbose=True, file=None), TerminalProgress(console) as progress:
        progress.stage("predict", 2, 0)
        log_event(log, "patch evaluated", name="[bold]x[/bold] " + "long " * 20)
        progress.advance("predict", 100)
    written = screen.getvalue()
    lines = [line for line in written.splitlines() if "patch evaluated" in line]
    assert len(lines) == 1
    # the whole text, not wrapped and not taken for markup
    assert lines[0].endswith("patch evaluated: name=[bold]x[/bold] " + "long " * 20)
    assert "predict" not in lines[0]
    assert "1/2" in written.partition("patch evaluated")[2]


def test_fields_of_any_kind_and_records_of_others(tmp_path):
    log_file = tmp_path / "log.jsonl"
    with show_events(verbose=False, file=log_file):
        log_event(log, "tile traced", logging.DEBUG, where=Path("a/ü"), region=(1, 2), why=None)
        log.warning("plain %s", "words")
        logging.getLogger("other").error("of another package")
        record = log.makeRecord(log.name, logging.INFO, __file__, 1, "of 1970", (), None)
        record.created = 86400.25
        log.handle(record)
    told, plain, old = read_events(log_file)
    assert told["level"] == "DEBUG"
    assert (told["where"], told["region"], told["why"]) == ("a/ü", [1, 2], None)
    assert (plain["event"], plain["level"]) == ("plain words", "WARNING")
    assert old["time"] == "1970-01-02T00:00:00.250+00:00"


def test_options_that_were_not_given_are_not_told(tmp_path):
    """But zero, which is false, was."""

    @click.command(cls=LoggedCommand)
    @click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
    @click.option("--n", type=int)
    @click.option("--m", type=int)
    @click.option("--flag", is_flag=True)
    def work(paths, n, m, flag):
        log_event(log, "work done")

    log_file = tmp_path / "log.jsonl"
    arguments = ["--n", "0", "--log-json", str(log_file)]
    assert CliRunner().invoke(work, arguments).exit_code == 0
    started, done, _ = read_events(log_file)
    assert started["options"] == {"n": 0}
    assert done["event"] == "work done"


def test_commands_of_a_group_take_the_options():
    @click.group(cls=LoggedGroup)
    def group():
        pass

    @group.command()
    def work():
        log_event(log, "work done")

    assert isinstance(work, LoggedCommand)
    result = CliRunner().invoke(group, ["work", "--verbose"])
    assert result.exit_code == 0
    assert [line.split(": ")[1].strip() for line in result.stderr.splitlines()] == [
        "command started", "work done", "command ended",
    ]  # fmt: skip


def logged_events():
    """Module and words of each event, as the source calls `log_event`."""
    for path in sorted((Path(densebatch.__file__).parent).rglob("*.py")):
        module = ".".join(path.relative_to(Path(densebatch.__file__).parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            # `stack.callback(log_event, log, "words", ...)` passes the same arguments on
            if not isinstance(node, ast.Call):
                continue
            args = [node.func, *node.args]
            names = [getattr(arg, "id", None) for arg in args]
            if "log_event" in names:
                told = args[names.index("log_event") + 2]
                words = [n.value for n in ast.walk(told) if isinstance(n, ast.Constant)]
                for event in (word for word in words if isinstance(word, str)):
                    yield module, event


def test_every_event_is_documented_with_its_logger():
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    documented = {
        (row[2].strip().strip("`"), event)
        for row in rows
        if len(row) == 5
        for event in re.findall("`([^`]+)`", row[1])
    }
    found = set(logged_events())
    assert len(found) > 30
    assert found == documented
