"""What the driver says of a GPU, as far as it can be tested without one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from densebatch.base.machine import make_gpu_meter, name_gpu
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
