"""One driver at a time: who is refused, who is taken over, and who notices that it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from densebatch.base.errors import DensebatchError, InputError
from densebatch.run import driver as driver_module
from densebatch.run import owner as owner_module
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.owner import Holder, Ownership, find_start, name_machine, read_holder
from densebatch.run.report import Progress
from densebatch.run.segment import segment
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    count_calls,
    output_bytes,
    run_command,
    simulate,
    slow_traces,
    start_command,
    tasks_folder,
    write_tiff,
)
from tests.helpers.slide_files import write_zarr

NAME = ".densebatch-owner.json"


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats and patience of tenths of a second."""
    monkeypatch.setattr(owner_module, "BEAT_S", 0.1)
    monkeypatch.setattr(owner_module, "_GLANCE_S", 0.5)
    monkeypatch.setattr(owner_module, "SILENCE_S", 1.0)
    monkeypatch.setattr(owner_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(owner_module, "_TELL_S", 0.2)


@pytest.fixture
def elsewhere(tmp_path):
    """An owner on another host."""
    return Holder(
        token="ab", out=str(tmp_path), host="node7", user="ann", pid=os.getpid(),
        machine="node7 another-boot", started="1", since="2026-01-01 00:00:00 UTC",
    )  # fmt: skip


def write_holder(path, holder):
    path.write_text(json.dumps(asdict(holder)))


def never(text):
    raise AssertionError(text)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_start_of_a_process(monkeypatch):
    assert find_start(os.getpid()) == find_start(os.getpid())
    assert find_start(dead_pid()) is None
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    while find_start(child.pid) is not None:  # it ends, and is not waited for
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.wait()


HIDDEN = """
import sys
from densebatch.run.owner import Holder, find_start, name_machine
pid = int(sys.argv[1])
holder = Holder("ab", "/", "a", "b", pid, name_machine(), "1", "now")
print([find_start(pid), holder.is_alive, find_start(int(sys.argv[2]))])
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount")
def test_a_process_of_another_user_that_the_system_hides_is_not_called_dead():
    """As on machines that many share."""
    command = [
        "unshare", "-m", "sh", "-c",
        'mount -t proc -o hidepid=2 proc /proc || exit 99; '
        'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"', "sh",
        sys.executable, "-c", HIDDEN, str(os.getpid()), str(dead_pid()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("nothing can be mounted here")
    if "No module named" in done.stderr:
        pytest.skip("another user may not read this installation")
    assert done.stdout == "['', None, None]\n", done.stderr


def test_a_free_output_is_taken_and_left(tmp_path):
    mine = Ownership(tmp_path)
    mine.acquire([tmp_path / NAME], never)
    holder = read_holder(tmp_path / NAME)
    assert (holder.pid, holder.machine) == (os.getpid(), name_machine())
    mine.beat()
    assert read_holder(tmp_path / NAME) == replace(holder, beat=1)
    mine.check()
    mine.release()
    assert list(tmp_path.iterdir()) == []
    mine.release()


@pytest.mark.parametrize("whose", ["gone", "another's now", "of the boot before"])
def test_a_dead_owner_does_not_stand_in_the_way(tmp_path, whose, elsewhere, quick):
    machine, started = name_machine(), find_start(os.getpid())
    pid = dead_pid() if whose == "gone" else os.getpid()
    if whose == "another's now":
        started = "1"
    if whose == "of the boot before":
        machine = "node7 another-boot"  # its process ids say nothing here, so it is waited for
    holder = replace(elsewhere, machine=machine, pid=pid, started=started)
    write_holder(tmp_path / NAME, holder)
    told = []
    mine = Ownership(tmp_path)
    mine.acquire([tmp_path / NAME], told.append)
    assert read_holder(tmp_path / NAME).pid == os.getpid()
    assert bool(told) == (whose == "of the boot before")
    mine.release()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"token": 3}'])
def test_a_silent_owner_is_waited_for_with_a_word(tmp_path, elsewhere, quick, content):
    """On another host, or unknown because it was killed before it had written its name."""
    write_holder(tmp_path / NAME, elsewhere)
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    told, start = [], time.monotonic()
    mine = Ownership(tmp_path)
    mine.refuse_living(tmp_path / NAME)
    assert time.monotonic() - start < 1.0
    mine.acquire([tmp_path / NAME], told.append)
    assert time.monotonic() - start >= 1.0
    who = "somebody unknown" if content is not None else "process .* of ann on host node7, since"
    assert len(told) == 1
    assert re.match(rf"{re.escape(str(tmp_path))}: was left by {who}", told[0])
    mine.release()


@pytest.mark.parametrize("early", [True, False])
def test_an_owner_that_beats_is_not_disturbed(tmp_path, elsewhere, quick, early):
    """Wherever it is, and whatever its clock says."""
    path = tmp_path / NAME
    write_holder(path, elsewhere)
    stop = threading.Event()

    def live():
        beat = 0
        while not stop.wait(0.1):
            beat += 1
            partial = path.with_name("new")
            write_holder(partial, replace(elsewhere, beat=beat))
            partial.replace(path)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        mine = Ownership(tmp_path)
        with pytest.raises(InputError) as refused:
            _ = mine.refuse_living(path) if early else mine.acquire([path], never)
    finally:
        stop.set()
        thread.join()
    assert str(refused.value) == (
        f"{tmp_path}: is being written by another run (process {os.getpid()} of ann on host node7, "
        "since 2026-01-01 00:00:00 UTC); accepted is another folder, or the same command once that "
        "one has ended"
    )
    mine.release()
    assert read_holder(path).host == "node7"


def test_of_many_who_take_an_output_over_one_gets_it(tmp_path, elsewhere, quick):
    path = tmp_path / NAME
    for k in range(5):
        dead = replace(elsewhere, machine=name_machine(), pid=dead_pid())
        (path.unlink(missing_ok=True) if k % 2 else write_holder(path, dead))
        start, done = threading.Barrier(6), threading.Event()
        got, refused = [], []

        def contend(start=start, done=done, got=got, refused=refused):
            mine = Ownership(tmp_path)
            start.wait()
            try:
                mine.acquire([path], lambda _: None)
            except InputError as error:
                refused.append(error)
                return
            got.append(mine)
            while not done.wait(0.05):
                mine.beat()

        threads = [threading.Thread(target=contend) for _ in range(6)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(got) + len(refused) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        done.set()
        for thread in threads:
            thread.join()
        assert len(refused) == 5
        assert [mine.lost for mine in got] == [None]
        got[0].release()
        assert not path.exists()


def test_an_owner_that_was_taken_over_notices(tmp_path, elsewhere):
    mine = Ownership(tmp_path)
    mine.acquire([tmp_path / NAME], never)
    write_holder(tmp_path / NAME, elsewhere)
    with pytest.raises(DensebatchError) as lost:
        mine.check()
    assert str(lost.value) == (
        f"{tmp_path}: was taken over by {elsewhere}, because nothing was heard from this one for "
        "60 s; this one stops here, and the same command continues the run once nobody else does"
    )
    mine.release()
    assert read_holder(tmp_path / NAME) == elsewhere


def test_an_owner_that_slept_while_another_came_and_went_notices(tmp_path, quick):
    """The other has left nothing that tells of it."""
    mine, other = Ownership(tmp_path), Ownership(tmp_path)
    mine.acquire([tmp_path / NAME], never)
    other.acquire([tmp_path / NAME], lambda _: None)
    other.release()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DensebatchError, match="was taken over by another run, because nothing was"):
        mine.check()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_file_that_is_removed_comes_back_unless_the_folder_is_gone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mine = Ownership(out)
    mine.acquire([out / NAME], never)
    (out / NAME).unlink()
    mine.check()
    assert (out / NAME).exists()
    out.rename(tmp_path / "moved")
    with pytest.raises(DensebatchError, match="out: is gone"):
        mine.check()


def test_a_driver_that_lost_its_output_leaves_the_state_of_the_next_alone(tmp_path, monkeypatch):
    """Removed and begun anew under it, the output is not its own, while it runs and at its end."""
    monkeypatch.setattr(driver_module, "BEAT_S", 0.02)
    beats = count_calls(monkeypatch, Ownership, "beat")
    folder, anew = OutputFolder(tmp_path / "out"), OutputFolder(tmp_path / "out")

    def pass_some_beats():
        until, deadline = beats["beat"] + 6, time.monotonic() + 60
        while beats["beat"] < until:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with Driver(Progress()) as driver:
        driver.own(folder)
        folder.work.mkdir()
        driver.watch(folder, 64)
        pass_some_beats()
        assert folder.state.exists()
        folder.path.rename(tmp_path / "gone")  # in one step, which a beat does not come into
        pass_some_beats()
        folder.work.mkdir(parents=True)
        ours = Ownership(anew.path)
        ours.acquire([anew.owner], lambda _: None)
        pass_some_beats()
        folder.state.write_text("of the next run")
        pass_some_beats()
        assert folder.state.read_text() == "of the next run"
    assert folder.state.read_text() == "of the next run"
    ours.check()


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    path = write_tiff(folder / "a.ome.tif", simulate(200, 400, seed=2), ["CD3", "DAPI"])
    segment(path, folder / "clean", workers=0, membrane=("CD3",))
    return path, output_bytes(folder / "clean")


def command(slide, out, *options):
    return "segment", slide, out, "--membrane", "CD3", "--workers", 0, "--tile", 64, *options


def wait_for(happened, process):
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_second_of_two_commands_is_refused(slide, tmp_path):
    path, expected = slide
    out = tmp_path / "out"
    first = start_command(*command(path, out), before=slow_traces(0.3))
    wait_for((out / NAME).exists, first)
    for restart in ([], ["--restart"]):
        code, said, err = run_command(*command(path, out), *restart)
        assert (code, said) == (2, "")
        assert re.fullmatch(
            rf"error: {out}: is being written by another run \(process {first.pid} of \S+ on host "
            r"\S+, since \d{4}-\d\d-\d\d [\d:]{8} UTC\); accepted is another folder, or the same "
            r"command once that one has ended\n",
            err,
        )
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert_same_output(out, expected)
    assert not (out / NAME).exists()


@pytest.mark.slow
def test_a_suspended_command_stops_when_it_finds_another_in_its_place(slide, tmp_path):
    path, expected = slide
    out = tmp_path / "out"
    first = start_command(*command(path, out), before=slow_traces(0.1))
    wait_for(lambda: (tasks_folder(out) / "journal" / "trace-64-0-1.json").exists(), first)
    first.send_signal(signal.SIGSTOP)
    impatient = "import densebatch.run.owner as o; o.SILENCE_S = 2.0\n" + slow_traces(0.3)
    second = start_command(*command(path, out), before=impatient)
    deadline = time.monotonic() + 60
    while read_holder(out / NAME).pid != second.pid:
        assert second.poll() is None, second.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1, err
    assert f"error: {out}: was taken over by process {second.pid} of" in err.splitlines()[-1]
    assert "the same command continues the run once nobody else does" in err.splitlines()[-1]
    assert "Traceback" not in err
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert_same_output(out, expected)


@pytest.mark.slow
def test_a_suspended_command_leaves_the_result_of_another_that_has_ended_alone(slide, tmp_path):
    path, _ = slide
    out, impatient = tmp_path / "out", "import densebatch.run.owner as o; o.SILENCE_S = 2.0\n"
    impatient += "o._GLANCE_S = 1.0\n"
    first = start_command(*command(path, out), before=impatient + slow_traces(0.3))
    wait_for(lambda: (tasks_folder(out) / "journal" / "trace-64-0-1.json").exists(), first)
    first.send_signal(signal.SIGSTOP)
    other = command(path, out, "--restart", "--min-size", 60)
    code, _, err = run_command(*other, before=impatient)
    assert code == 0, err
    found = output_bytes(out)
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1, err
    assert f"error: {out}: was taken over by another run" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert_same_output(out, found)
    code, _, err = run_command(*command(path, out, "--min-size", 60))
    assert code == 0
    assert "already complete" in err
    assert not (out / NAME).exists()


@pytest.mark.slow
def test_two_outputs_of_labels_in_one_slide(tmp_path):
    slide = write_zarr(tmp_path / "a.zarr", simulate(200, 260), labels=["CD3", "DAPI"])
    first = start_command(*command(slide, tmp_path / "one", "--in-place"), before=slow_traces(0.3))
    wait_for((slide / NAME).exists, first)
    code, _, err = run_command(*command(slide, tmp_path / "two", "--in-place"))
    assert code == 2
    assert err.startswith(
        f"error: {slide}: is being written by another run with the output {tmp_path / 'one'} "
        f"(process {first.pid} of "
    )
    assert not (tmp_path / "two").exists()
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert not (slide / NAME).exists()


class Fault(BaseException):
    pass


def fail(*_):
    raise Fault


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
def test_nobody_owns_what_a_call_has_left(tmp_path, kind):
    slide = write_tiff(tmp_path / "a.ome.tif", np.ones((2, 80, 90), np.uint16), ["CD3", "DAPI"])

    def stop():
        raise kind

    with pytest.raises(kind):
        segment(slide, tmp_path / "out", workers=0, membrane=("CD3",),
                progress=Watcher(number=stop))  # fmt: skip
    assert (tmp_path / "out" / ".densebatch.json").exists()
    assert not (tmp_path / "out" / NAME).exists()
    with pytest.raises(InputError, match="another run: trace"):
        segment(slide, tmp_path / "out", workers=0, membrane=("CD3",), min_size=99)
    assert not (tmp_path / "out" / NAME).exists()
