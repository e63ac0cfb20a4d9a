"""What the driver says of a GPU, as far as it can be tested without one; limits of containers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from densebatch.base import machine
from densebatch.base.files import cache_folder
from densebatch.base.machine import count_cores, make_gpu_meter, measure_memory, name_gpu
from densebatch.studies.benchmark_record import describe_machine
from densebatch.studies.benchmark_segment import drop_channel_options


def library(**changed):
    """NVIDIA's, with one device that is busy a quarter of the time."""
    working = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu {index}",
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=25),
        "nvmlDeviceGetName": lambda device: f"name of {device}",
    }
    return SimpleNamespace(**{**working, **changed})


def fail(*_):
    raise OSError("no driver")


def test_a_gpu_is_named_and_watched(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", library())
    assert name_gpu() == describe_machine()["gpu"] == "name of gpu 0"
    meter = make_gpu_meter()
    assert meter is not None
    assert meter() == 0.25
    monkeypatch.setitem(sys.modules, "pynvml", library(nvmlDeviceGetName=lambda _: b"older"))
    assert name_gpu() == "older"


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByIndex", None])
def test_without_a_gpu_nobody_knows(broken, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", library(**{broken: fail}) if broken else None)
    assert name_gpu() is None
    assert make_gpu_meter() is None


def test_a_part_of_a_gpu_has_a_name_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", library(nvmlDeviceGetUtilizationRates=fail))
    assert name_gpu() == "name of gpu 0"
    assert make_gpu_meter() is None


def test_the_small_run_has_channels_of_its_own():
    given = [
        "--membrane",
        "--nuclei",
        "--model",
        "dense",
        "--nuclei=DAPI",
        "--membrane",
        "A,B",
        "x",
    ]
    assert drop_channel_options(given) == ["--model", "dense", "x"]


MB = 10**6


def write_group(root, **files):
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function that says which control groups this process is in; gives the root of all."""

    def belong(text):
        (tmp_path / "own").write_text(text)
        monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
        monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "fs")
        return tmp_path / "fs"

    return belong


def test_limits_of_version_2(groups):
    """The closest limit of all ancestors counts, and what files hold can be dropped."""
    root = groups("0::/job/task\n")
    write_group(root / "job/task", memory__max="max", memory__current=100 * MB, cpu__max="max 100")
    write_group(
        root / "job", memory__max=900 * MB, memory__current=300 * MB, cpu__max="50000 100000",
        memory__stat=f"anon {200 * MB}\ninactive_file {50 * MB}",
    )  # fmt: skip
    assert measure_memory().total == 900 * MB
    assert measure_memory().available == 650 * MB
    assert count_cores() == 1


def test_limits_of_version_1_inside_of_a_container(groups):
    """Where the path that the system states is that of the host, and is not there."""
    root = groups("9:name=systemd:/x\n4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n")
    write_group(
        root / "memory", memory__limit_in_bytes=800 * MB, memory__usage_in_bytes=100 * MB,
        memory__stat=f"total_inactive_file {60 * MB}",
    )  # fmt: skip
    write_group(root / "cpu", **{"cpu__cfs_quota_us": 150000, "cpu__cfs_period_us": 100000})
    assert measure_memory().total == 800 * MB
    assert measure_memory().available == 760 * MB
    assert count_cores() == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("own", ["0::/\n", "4:memory:/\n1:cpu:/\n", "what is this\n", None])
def test_without_limits_the_machine_counts(groups, own):
    root = groups(own or "")
    if own is None:
        machine._OWN_CGROUPS.unlink()
    write_group(
        root / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=MB,
    )  # fmt: skip
    write_group(root / "cpu", **{"cpu__cfs_quota_us": -1, "cpu__cfs_period_us": 100000})
    assert measure_memory().total == psutil.virtual_memory().total
    assert count_cores() == len(os.sched_getaffinity(0))


def test_a_real_limit():
    group = Path("/sys/fs/cgroup/memory") / f"densebatch-test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(700 * 2**20))
    except OSError:
        pytest.skip("control groups of version 1 cannot be made here")
    code = "from densebatch.base.machine import measure_memory as m; print(m().total)"
    enter = f'echo $$ > {group}/cgroup.procs; exec "$0" -c "$1"'
    try:
        child = subprocess.run(
            ["sh", "-c", enter, sys.executable, code],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        group.rmdir()
    assert int(child.stdout) == 700 * 2**20


def test_compiled_code_goes_to_a_folder_of_the_process_where_nothing_can_be_written():
    """As in a read-only container without a home; worker processes inherit the folder."""
    code = (
        "import os; from pathlib import Path; "
        "from densebatch.base.machine import choose_compile_cache as choose; "
        "choose(Path('/proc/nowhere')); folder = Path(os.environ['NUMBA_CACHE_DIR']); "
        "print(folder, folder.stat().st_mode & 0o777 == 0o700)"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    child = subprocess.run(
        [sys.executable, "-c", code], env={**env, "HOME": "/proc/nowhere"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder, is_private = child.stdout.split()
    assert is_private == "True"
    assert not Path(folder).exists()


def test_a_user_without_a_name_or_a_home_makes_no_folder_where_it_is(tmp_path, monkeypatch):
    """As in a container that is run as any user: nobody knows what `~` stands for."""

    def know_nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", know_nobody)
    for name in ("HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "DENSEBATCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    machine.choose_compile_cache(Path("/proc/nowhere"))
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_relative_to(tempfile.gettempdir())
    own = Path(tempfile.gettempdir()) / f"densebatch-{os.getuid()}"
    assert cache_folder() == own
    monkeypatch.setenv("DENSEBATCH_CACHE", "~/here")
    assert cache_folder() == own
    assert not list(tmp_path.iterdir())


def test_compiled_code_stays_beside_its_source_where_it_can(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    machine.choose_compile_cache(tmp_path)
    assert "NUMBA_CACHE_DIR" not in os.environ
