"""Which backend a run gets: asked for, the fastest, or what it began with; and eight bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.engines.backend import Engine, evaluate_patches, patch_shape
from densebatch.engines.findings import recall, remember
from densebatch.engines.openvino import unpack_model
from densebatch.engines.quantization import digest_quantised, read_quantised, write_quantised
from densebatch.models.model import save_model
from densebatch.planning import engine_choice
from densebatch.planning.engine_choice import (
    choose_engine,
    identify_quantised,
    identify_trial,
    quantise,
    read_trial,
)
from densebatch.planning.engine_trial import identify_parity, make_plan_backend
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.stages.network_input import read_network_input
from tests.helpers.networks import needs_openvino, trained
from tests.helpers.run_files import (
    assert_same_output,
    call_main,
    output_bytes,
    read_report,
    read_result,
    simulate,
    write_tiff,
)

OPTIONS = {"membrane": ("CD3",), "workers": 0, "device": "cpu", "model": "dense-tiny"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DENSEBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(330, 300, seed=4), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def plan(slide):
    return build_plan(slide, SegmentSettings(membrane=("CD3",), model="dense-tiny"))


@pytest.fixture(scope="module")
def by_torch(slide, tmp_path_factory):
    return segment(slide, tmp_path_factory.mktemp("torch"), **OPTIONS)


@pytest.fixture(scope="module")
def by_openvino(slide, tmp_path_factory):
    return segment(slide, tmp_path_factory.mktemp("openvino"), backend="openvino", **OPTIONS)


# a named backend, and the gate


@pytest.mark.extra
@needs_openvino
def test_openvino_passes_and_its_figures_are_recorded(by_torch, by_openvino):
    report = read_report(by_openvino.out)
    engine = report["engine"]
    assert (engine["backend"], engine["device"], engine["reason"]) == (
        "openvino", "cpu", "asked for",
    )  # fmt: skip
    assert engine["parity"]["refused"] is None
    assert engine["parity"]["flow_rms"] < 1e-4
    assert engine["parity"]["cells"] > 1000
    assert engine["parity"]["ap"] == pytest.approx(engine["parity"]["ap_reference"], abs=0.002)
    assert report["plan"]["engine"]["backend"] == "openvino"
    assert "openvino" in report["versions"]
    assert "openvino" not in by_torch.report["versions"]
    labels = [read_result(result.out)[0] for result in (by_torch, by_openvino)]
    assert by_torch.cells > 100
    assert score_labels(*labels).at("0.50").ap > 0.99


@pytest.mark.extra
@needs_openvino
def test_a_backend_that_fails_the_gate_is_not_used(slide, plan, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    figures = {"flow_rms": 0.1, "flow_max": 1.0, "ap": 0.1, "ap_reference": 0.5, "alike": 0.3}
    finding = {**figures, "cells": 900, "refused": "flows differ"}
    remember(identify_parity(plan, Engine("openvino", "cpu")), finding)
    with pytest.raises(InputError) as caught:
        segment(slide, tmp_path / "out", backend="openvino", **OPTIONS)
    assert str(caught.value) == (
        "backend openvino on cpu: does not do what torch does on the sample (flows differ); "
        "choose torch or auto"
    )
    assert not (tmp_path / "out").exists()


# the trial


@pytest.mark.extra
@needs_openvino
def test_auto_measures_picks_and_says_why(slide, plan, monkeypatch):
    monkeypatch.setitem(engine_choice.CANDIDATES, "cpu", ("torch", "openvino"))  # a matter of time
    choice = choose_engine(plan, "auto", "cpu")
    assert set(choice.trial) == {"torch", "openvino"}
    assert all(seconds > 0 for seconds in choice.trial.values())
    assert choice.engine.backend in choice.trial
    assert choice.reason.startswith("fastest in a trial, s/Mpx: torch ")
    assert recall(identify_trial(plan, "cpu")) == {"s_per_mpx": choice.trial}


@pytest.mark.parametrize(
    ("trial", "picked"),
    [
        ({"torch": 2.0, "openvino": 1.0, "openvino-bf16": "no"}, "openvino"),
        ({"torch": 2.0, "openvino": 1.95, "openvino-bf16": "no"}, "torch"),
        ({"torch": 2.0, "openvino": "no", "openvino-bf16": "no"}, "torch"),
    ],
)
@pytest.mark.extra
@needs_openvino
def test_the_fastest_is_taken_if_it_is_worth_it(plan, trial, picked):
    remember(identify_trial(plan, "cpu"), {"s_per_mpx": trial})
    choice = choose_engine(plan, "auto", "cpu")
    assert choice.engine.backend == picked
    assert choice.trial == trial
    assert (choice.parity is None) == (picked == "torch")


# what a resumed run does


@pytest.mark.extra
@needs_openvino
def test_auto_keeps_what_the_run_began_with(slide, plan, by_openvino):
    remember(identify_trial(plan, "cpu"), {"s_per_mpx": {"torch": 1.0, "openvino": 2.0}})
    assert choose_engine(plan, "auto", "cpu").engine.backend == "torch"
    again = segment(slide, by_openvino.out, backend="auto", **OPTIONS)
    assert again.report == by_openvino.report


@pytest.mark.extra
@needs_openvino
def test_another_backend_is_another_run(slide, by_torch, by_openvino):
    with pytest.raises(
        InputError, match=r"another run: engine\.backend was 'openvino' and is now 'torch'"
    ):
        segment(slide, by_openvino.out, **OPTIONS)
    with pytest.raises(
        InputError, match=r"another run: engine\.backend was 'torch' and is now 'openvino'"
    ):
        segment(slide, by_torch.out, backend="openvino", **OPTIONS)


@pytest.mark.extra
@needs_openvino
def test_a_worker_uses_what_was_planned(slide, by_openvino, tmp_path):
    options = {**OPTIONS, "workers": 1, "tile": 128}
    segment(slide, tmp_path, backend="openvino", shuffle=1, **options)
    assert_same_output(tmp_path, output_bytes(by_openvino.out))


def test_the_plan_says_it(slide, tmp_path, capsys):
    code, out, _ = call_main(capsys, "plan", slide, tmp_path / "out", "--membrane", "CD3",
                             "--device", "cpu")  # fmt: skip
    assert code == 0
    assert "engine     torch on cpu (default)" in out.splitlines()


def test_a_trial_that_makes_no_sense_is_run_again(plan, monkeypatch):
    monkeypatch.setitem(engine_choice.CANDIDATES, "cpu", ("torch",))
    for rubbish in ({"cells": 1}, {"s_per_mpx": 7}, {"s_per_mpx": {"torch": "no"}}):
        assert read_trial(rubbish, "cpu") is None
    remember(identify_trial(plan, "cpu"), {"s_per_mpx": {"torch": -1.0}})
    choice = choose_engine(plan, "auto", "cpu")
    assert choice.trial["torch"] > 0
    assert choice.reason == f"fastest in a trial, s/Mpx: torch {choice.trial['torch']:.3g}"


# int8


@pytest.fixture(scope="module")
def quantised(slide, tmp_path_factory):
    """A small network in eight bits, and its plan."""
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(
        trained((2, 8, 16)), path, um_per_px=0.5, patch_px=112, margin_px=8, percentiles=(1, 99),
        nuclei=False, card={},
    )  # fmt: skip
    plan = build_plan(slide, SegmentSettings(membrane=("CD3",), model=str(path)))
    return plan, quantise(plan.model, patch_shape(plan.lattice))


@pytest.mark.extra
def test_the_quantised_network_of_another_run_is_refused(quantised, tmp_path):
    _, packed = quantised
    digest = digest_quantised(packed)
    write_quantised(tmp_path, packed)
    assert read_quantised(tmp_path, digest) == packed
    with pytest.raises(InputError, match="is not the network that the run was planned with"):
        read_quantised(tmp_path, "0" * 64)
    (tmp_path / "network-int8.zip").write_bytes(packed[:-100])
    with pytest.raises(InputError, match="is damaged"):
        read_quantised(tmp_path, digest)


@pytest.mark.extra
def test_eight_bits_are_near_and_keep_the_bits(quantised):
    plan, packed = quantised
    lattice = plan.lattice
    seen = [read_network_input(plan, lattice.patch(*core)) for core in lattice.cores]
    engine = Engine("openvino-int8", "cpu", digest_quantised(packed))
    found = evaluate_patches(make_plan_backend(plan, engine, packed), seen)
    beside = evaluate_patches(make_plan_backend(plan, engine, packed, lanes=2), seen[::-1])[::-1]
    assert np.array_equal(found, beside)
    exact = evaluate_patches(make_plan_backend(plan, Engine()), seen).astype(np.float64)
    rms = np.sqrt(np.square(found - exact).mean() / np.square(exact).mean())
    assert 1e-3 < rms < 0.3


@pytest.mark.extra
def test_a_model_is_quantised_once(quantised, monkeypatch):
    plan, packed = quantised
    calls = []
    monkeypatch.setattr(engine_choice, "quantise", lambda *a: calls.append(a) or packed)
    assert engine_choice._recall_or_quantise(plan) == packed
    assert engine_choice._recall_or_quantise(plan) == packed
    assert len(calls) == 1
    changed = replace(plan, model=replace(plan.model, percentiles=(2.0, 98.0)))
    assert recall(identify_quantised(changed)) is None
    for rubbish in ({}, {"packed": "?"}, {"packed": "AAAA", "sha256": "0"}, {"packed": 7}):
        remember(identify_quantised(plan), rubbish)
        assert engine_choice._recall_or_quantise(plan) == packed
    assert len(calls) == 5


@pytest.mark.extra
def test_first_and_last_layers_stay_in_float(quantised):
    _, packed = quantised
    model = unpack_model(packed)
    convolutions = [n for n in model.get_ordered_ops() if n.get_type_name() == "Convolution"]

    def sees_eight_bits(node):
        source = node.input_value(0).get_node()
        # the largest of some is one of them
        return source.get_type_name() == "FakeQuantize" or (
            source.get_type_name() == "MaxPool" and sees_eight_bits(source)
        )

    eight = [sees_eight_bits(node) for node in convolutions]
    channels = [n.input_value(0).get_partial_shape()[1].get_length() for n in convolutions]
    assert channels.count(2) == 2
    assert not any(is_eight for is_eight, n in zip(eight, channels, strict=True) if n == 2)
    assert sum(eight) == len(convolutions) - 3
