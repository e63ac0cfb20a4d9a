"""Backends by name: what each needs, which device there is, and what is logged."""

from __future__ import annotations

import logging

import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.engines import make
from densebatch.engines.make import check_backend, choose_device, make_backend, tell_unusable
from tests.helpers.networks import SHAPE, trained


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(make, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"openvino is not installed; install densebatch\[cpu\]"):
        check_backend("openvino", "cpu")
    monkeypatch.setattr(make, "find_spec", lambda name: name == "openvino" or None)
    with pytest.raises(InputError, match=r"nncf is not installed; install densebatch\[int8\]"):
        check_backend("openvino-int8", "cpu")


def test_openvino_does_not_run_on_a_gpu():
    with pytest.raises(InputError, match="does not run on cuda; accepted there are torch, "):
        check_backend("openvino", "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_cpu():
    assert choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="device cuda: this process sees none"):
        choose_device("cuda")


def test_a_failed_library_is_told_in_one_line():
    error = RuntimeError("no compiler\nat line 3")
    told = tell_unusable("compile", "cpu", error)
    assert told == "backend compile on cpu: cannot be used here (RuntimeError: no compiler)"
    assert tell_unusable("compile", "cpu", OSError()).endswith("(OSError: OSError)")


def test_a_backend_that_is_made_is_an_event(caplog):
    caplog.set_level(logging.INFO, "densebatch")
    make_backend("torch", "cpu", trained((2, 8, 16)), SHAPE, batch=7, lanes=3)
    (record,) = [r for r in caplog.records if r.name == "densebatch.engines.make"]
    assert record.event == "backend made"
    seconds = record.fields.pop("seconds")
    assert seconds >= 0
    assert record.fields == {
        "backend": "torch", "device": "cpu", "batch": 1, "lanes": 3, "patch_px": [80, 64],
    }  # fmt: skip
