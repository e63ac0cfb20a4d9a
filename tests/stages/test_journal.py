import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from densebatch.base.files import digest_file, write_atomic
from densebatch.stages.journal import Journal

FACTS = {"cells": 7, "max_travel_px": 12.5, "digests": ["ab", "absent"]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def run(tmp_path):
    """A journal in a run's folder, and a file of data beside it."""
    data = tmp_path / "flows" / "c" / "0"
    write_atomic(data, b"flows of a task")
    return Journal(tmp_path / "journal"), data


def record_path(journal, task="predict-0-0"):
    return journal.folder / f"{task}.json"


def run_and_die(folder, body):
    """Run Python that kills itself with SIGKILL on the way."""
    code = f"""
        import os, signal
        from pathlib import Path
        from densebatch.stages import journal
        folder = Path({str(folder)!r})
        data = folder / "data"
        book = journal.Journal(folder / "journal")
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    code = textwrap.dedent(code) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


# records


def test_task_is_done_when_recorded(run):
    journal, data = run
    assert journal.done("predict-0-0") is None
    assert journal.record("predict-0-0", [data], FACTS) == FACTS
    assert journal.done("predict-0-0") == FACTS
    assert journal.done("predict-0-1") is None


@given(st.dictionaries(st.text(), json_values, max_size=4))
@example({"nested": {"10": 1, "9": 2}, "big": 2**80, "tiny": -0.0, "odd": "\ud800 é"})
def test_facts_come_back(tmp_path_factory, facts):
    journal = Journal(tmp_path_factory.mktemp("run") / "journal")
    assert journal.record("t", [], facts) == facts
    assert journal.done("t") == facts
    # 1 and 1.0 and True are equal, and -0.0 and 0.0
    assert json.dumps(journal.done("t"), sort_keys=True) == json.dumps(facts, sort_keys=True)


def test_facts_are_the_same_before_and_after_a_restart(run):
    """What JSON changes is changed at once: a continued run sees what the first one saw."""
    journal, _ = run
    facts = {"place": (1, 2), "counts": {10: 1, 9: 2}, "nothing": float("inf")}
    kept = journal.record("t", [], facts)
    assert kept == {"place": [1, 2], "counts": {"10": 1, "9": 2}, "nothing": float("inf")}
    assert journal.done("t") == kept


def test_facts_that_json_cannot_keep_are_refused(run):
    journal, data = run
    with pytest.raises(TypeError):
        journal.record("t", [data], {"cells": object()})
    assert journal.done("t") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["lost", "emptied", "truncated", "one bit", "a folder"],
)
def test_changed_file_undoes_the_task(run, change):
    journal, data = run
    other = data.with_name("1")
    other.write_bytes(b"more")
    journal.record("predict-0-0", [other, data], FACTS)
    assert journal.done("predict-0-0") == FACTS
    change(data)
    assert journal.done("predict-0-0") is None


def test_rewritten_file_with_the_same_bytes_is_fine(run):
    journal, data = run
    journal.record("predict-0-0", [data], FACTS)
    write_atomic(data, b"flows of a task")
    assert journal.done("predict-0-0") == FACTS


def test_absent_file_is_a_statement(run):
    """A zarr chunk of nothing but fill values has no file."""
    journal, data = run
    empty = data.with_name("9")
    journal.record("predict-0-0", [empty, data], FACTS)
    assert digest_file(empty) == "absent"
    assert journal.done("predict-0-0") == FACTS
    empty.write_bytes(b"")
    assert journal.done("predict-0-0") is None


def test_digest_tells_contents_apart(tmp_path):
    contents = [b"", b"absent", b"a", b"b", b"a" * 100_000]
    digests = set()
    for content in contents:
        (tmp_path / "f").write_bytes(content)
        digests.add(digest_file(tmp_path / "f"))
    assert len(digests) == len(contents)
    assert "absent" not in digests


def test_run_folder_may_move_and_says_nothing_of_another_run(tmp_path):
    """The folder above the journal has the run's name, whatever lies above that."""
    journal, data = Journal(tmp_path / "out" / "a1" / "journal"), tmp_path / "out" / "a1" / "data"
    write_atomic(data, b"flows of a task")
    journal.record("predict-0-0", [data], FACTS)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert Journal(tmp_path / "moved" / "a1" / "journal").done("predict-0-0") == FACTS
    (tmp_path / "moved" / "a1").rename(tmp_path / "moved" / "b2")
    other = Journal(tmp_path / "moved" / "b2" / "journal")
    assert other.done("predict-0-0") is None
    assert other.list_files() == set()


def test_later_record_wins(run):
    journal, data = run
    journal.record("predict-0-0", [data], FACTS)
    write_atomic(data, b"other flows")
    journal.record("predict-0-0", [data], {"cells": 8})
    assert journal.done("predict-0-0") == {"cells": 8}


def test_any_changed_bit_of_a_record_counts(run):
    journal, data = run
    journal.record("predict-0-0", [data], FACTS)
    path = record_path(journal)
    good = path.read_bytes()
    for place, byte in enumerate(good):
        path.write_bytes(good[:place] + bytes([byte ^ 1 << place % 8]) + good[place + 1 :])
        assert journal.done("predict-0-0") is None
    path.write_bytes(good)
    assert journal.done("predict-0-0") == FACTS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b'{"task": "predict-0-0", "files": {}, "facts": {}}',
        b'{"task": "predict-0-0", "files": [], "facts": {}, "digest": 1}',
        b'{"task": "predict-0-0", "files": {"a\\u0000": "x"}, "facts": {}, "digest": ""}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_record_is_ignored(run, content):
    journal, _ = run
    write_atomic(record_path(journal), content)
    assert journal.done("predict-0-0") is None
    journal.record("predict-0-0", [], FACTS)
    assert journal.done("predict-0-0") == FACTS


def test_truncated_record_is_ignored(run):
    journal, data = run
    journal.record("predict-0-0", [data], FACTS)
    path = record_path(journal)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert journal.done("predict-0-0") is None


def test_record_of_another_task_does_not_count(run):
    journal, data = run
    journal.record("predict-0-0", [data], FACTS)
    record_path(journal, "predict-0-1").write_bytes(record_path(journal).read_bytes())
    assert journal.done("predict-0-1") is None


def test_record_that_is_a_folder_is_ignored(run):
    journal, _ = run
    record_path(journal).mkdir(parents=True)
    assert journal.done("predict-0-0") is None


def test_records_of_names_that_begin_alike_are_apart(run):
    """(1, 1) and (1, 10) are two tiles."""
    journal, data = run
    names = ["trace-256-1-1", "trace-256-1-10", "trace-256-1-1x", "trace-256-11-1"]
    for name in names:
        journal.record(name, [data], {"name": name})
    (journal.folder / f"{names[0]}.json").unlink()
    assert [journal.done(name) for name in names] == [None, *({"name": n} for n in names[1:])]


# death between data and record


@pytest.mark.parametrize(
    "body",
    [
        "data.write_bytes(b'half'); die()",
        "journal.write_atomic(data, b'whole'); die()",
        """
        journal.write_atomic(data, b'whole')
        os.fsync = die
        book.record('t', [data], {'cells': 3})
        """,
        """
        journal.write_atomic(data, b'whole')
        Path.replace = die
        book.record('t', [data], {'cells': 3})
        """,
    ],
    ids=["in the data", "before the record", "in the record", "before its name"],
)
def test_death_before_the_record_undoes_the_task(tmp_path, body):
    run_and_die(tmp_path, body)
    assert Journal(tmp_path / "journal").done("t") is None
    # and the same task, run again, is not disturbed by what is left
    write_atomic(tmp_path / "data", b"whole")
    Journal(tmp_path / "journal").record("t", [tmp_path / "data"], {"cells": 3})
    assert Journal(tmp_path / "journal").done("t") == {"cells": 3}


def test_death_after_the_record_keeps_the_task(tmp_path):
    run_and_die(
        tmp_path,
        """
        journal.write_atomic(data, b'whole')
        book.record('t', [data], {'cells': 3})
        die()
        """,
    )
    assert Journal(tmp_path / "journal").done("t") == {"cells": 3}


def test_death_while_doing_again_leaves_no_false_record(tmp_path):
    """New data under an old record: the record no longer tells the truth, and that shows."""
    journal, data = Journal(tmp_path / "journal"), tmp_path / "data"
    write_atomic(data, b"first")
    journal.record("t", [data], {"cells": 3})
    run_and_die(tmp_path, "journal.write_atomic(data, b'second'); die()")
    assert journal.done("t") is None


def test_partial_files_are_no_records(tmp_path):
    run_and_die(tmp_path, "os.fsync = die; book.record('t', [], {'cells': 3})")
    folder = tmp_path / "journal"
    left = [p.name for p in folder.iterdir()]
    assert len(left) == 1
    assert left[0].endswith(".partial")
    assert Journal(folder).done("t") is None
    assert json.loads((folder / left[0]).read_bytes())["facts"] == {"cells": 3}
    assert not (Path(folder) / "t.json").exists()
