"""Which backend a run gets: the gate, the trial, what is remembered; and a resumed run."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.base.findings import recall, remember
from densebatch.engines.backend import Engine, evaluate_patches, patch_shape
from densebatch.engines.openvino import unpack_model
from densebatch.engines.quantization import digest_quantised, read_quantised, write_quantised
from densebatch.models.model import save_model
from densebatch.planning import capacity
from densebatch.planning import engine_choice as engines
from densebatch.planning.engine_choice import (
    choose_engine,
    identify_parity,
    identify_trial,
    quantise,
)
from densebatch.planning.gate import compare, draw_sample, predict_sample
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings, load_settings
from densebatch.run import engine as run_engine
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.stages.network_input import read_network_input
from tests.engines.test_folding import trained
from tests.helpers.run_files import (
    assert_same_output,
    call_main,
    output_bytes,
    read_report,
    read_result,
    simulate,
    write_tiff,
)

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="the extra `cpu` is not installed"
)
OPTIONS = {"membrane": ("CD3",), "workers": 0, "device": "cpu"}


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
    return build_plan(slide, SegmentSettings(membrane=("CD3",)))


@pytest.fixture(scope="module")
def by_torch(slide, tmp_path_factory):
    return segment(slide, tmp_path_factory.mktemp("torch"), **OPTIONS)


@pytest.fixture(scope="module")
def by_openvino(slide, tmp_path_factory):
    return segment(slide, tmp_path_factory.mktemp("openvino"), backend="openvino", **OPTIONS)


# the gate


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


@pytest.fixture(scope="module")
def sampled(plan):
    sample = draw_sample(plan.model, patch_shape(plan.lattice))
    return sample, predict_sample(engines.prepare(plan, Engine()), sample)


def test_the_reference_is_like_itself(sampled):
    sample, reference = sampled
    same = compare("openvino", reference, reference, sample)
    assert (same.flow_rms, same.flow_max, same.alike, same.refused) == (0, 0, 1, None)
    assert same.ap == same.ap_reference > 0.6


@pytest.mark.parametrize(
    ("name", "noise", "reason"),
    [
        ("openvino", 0.01, "flows differ by .* of their RMS, accepted is 0.0001"),
        ("torch-bf16", 3.0, "of the cells are alike, accepted is 0.97"),
        ("openvino-int8", 6.0, "AP is .* and not .*, accepted is 0.01 less"),
        ("openvino", np.nan, "flows are not finite"),
    ],
)
def test_what_is_too_far_off_is_refused(sampled, name, noise, reason):
    sample, reference = sampled
    other = reference + noise * np.random.default_rng(0).normal(size=reference.shape)
    assert re.search(reason, compare(name, other.astype(np.float32), reference, sample).refused)


def test_lost_precision_is_not_judged_by_a_few_cells(sampled):
    sample, reference = sampled
    nothing = reference.copy()
    nothing[2, 50:] = -9
    assert compare("openvino", nothing, nothing, sample).refused is None
    assert "too few" in compare("openvino-int8", nothing, nothing, sample).refused


def test_a_verdict_is_of_the_tissue_it_was_made_on(plan):
    """Two names of equal weights may know another diameter, and are shown another sample."""
    engine = Engine("openvino", "cpu")
    other = replace(plan, model=replace(plan.model, diameter_px=2 * plan.model.diameter_px))
    assert identify_parity(plan, engine) == identify_parity(replace(plan), engine)
    assert identify_parity(plan, engine) != identify_parity(other, engine)
    assert identify_trial(plan, "cpu") != identify_trial(other, "cpu")


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


@needs_openvino
def test_auto_measures_picks_and_says_why(slide, plan, monkeypatch):
    monkeypatch.setitem(engines.CANDIDATES, "cpu", ("torch", "openvino"))  # a matter of time
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
@needs_openvino
def test_the_fastest_is_taken_if_it_is_worth_it(plan, trial, picked):
    remember(identify_trial(plan, "cpu"), {"s_per_mpx": trial})
    choice = choose_engine(plan, "auto", "cpu")
    assert choice.engine.backend == picked
    assert choice.trial == trial
    assert (choice.parity is None) == (picked == "torch")


# what a resumed run does


@needs_openvino
def test_auto_keeps_what_the_run_began_with(slide, plan, by_openvino):
    remember(identify_trial(plan, "cpu"), {"s_per_mpx": {"torch": 1.0, "openvino": 2.0}})
    assert choose_engine(plan, "auto", "cpu").engine.backend == "torch"
    again = segment(slide, by_openvino.out, backend="auto", **OPTIONS)
    assert again.report == by_openvino.report


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


# what is remembered


def test_a_trial_that_makes_no_sense_is_run_again(plan, monkeypatch):
    monkeypatch.setitem(engines.CANDIDATES, "cpu", ("torch",))
    for rubbish in ({"cells": 1}, {"s_per_mpx": 7}, {"s_per_mpx": {"torch": "no"}}):
        assert engines._read_trial(rubbish, "cpu") is None
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


def test_eight_bits_are_near_and_keep_the_bits(quantised):
    plan, packed = quantised
    lattice = plan.lattice
    seen = [read_network_input(plan, lattice.patch(*core)) for core in lattice.cores]
    engine = Engine("openvino-int8", "cpu", digest_quantised(packed))
    found = evaluate_patches(engines.prepare(plan, engine, packed), seen)
    beside = evaluate_patches(engines.prepare(plan, engine, packed, lanes=2), seen[::-1])[::-1]
    assert np.array_equal(found, beside)
    exact = evaluate_patches(engines.prepare(plan, Engine()), seen).astype(np.float64)
    rms = np.sqrt(np.square(found - exact).mean() / np.square(exact).mean())
    assert 1e-3 < rms < 0.3


def test_a_model_is_quantised_once(quantised, monkeypatch):
    plan, packed = quantised
    calls = []
    monkeypatch.setattr(engines, "quantise", lambda *a: calls.append(a) or packed)
    assert engines._quantise(plan) == packed
    assert engines._quantise(plan) == packed
    assert len(calls) == 1
    changed = replace(plan, model=replace(plan.model, percentiles=(2.0, 98.0)))
    assert recall(engines.identify_quantised(changed)) is None
    for rubbish in ({}, {"packed": "?"}, {"packed": "AAAA", "sha256": "0"}, {"packed": 7}):
        remember(engines.identify_quantised(plan), rubbish)
        assert engines._quantise(plan) == packed
    assert len(calls) == 5


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


def test_half_of_the_workers_use_a_gpu_or_as_many_as_it_holds(plan, monkeypatch):
    settings = load_settings(None, device="auto")
    count = run_engine.count_device_workers
    assert count([plan], load_settings(None, device="cpu"), 8) == 0
    monkeypatch.setattr(run_engine, "choose_device", lambda _: "cuda")
    window = capacity.trace_window_px(plan, settings.tile)
    each = 600e6 + 2 * plan.network_batch * capacity.patch_bytes(plan) + 400 * window
    for free, expected in ((10**9, 1), (int(3.9 * each / 0.8), 3), (10**12, 8)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10**12))
        assert count([plan], settings, 16) == expected
    assert [count([plan], settings, n) for n in (0, 1, 2, 3, 6)] == [0, 0, 1, 1, 3]
    assert count([plan], load_settings(None, scheduler_address="tcp://127.0.0.1:1"), 0) == 0


def test_memory_counts_every_patch_in_flight(plan, monkeypatch):
    wide = replace(plan, model=replace(plan.model, widths=(2, 512, 512, 512)))
    one, four = (capacity.estimate(wide, 2048, lanes).worker_mb for lanes in (1, 4))
    assert four > one
    settings = load_settings(None, workers=2)
    monkeypatch.setattr(capacity, "count_cores", lambda: 16)
    patch_mb = capacity.patch_bytes(wide) / 1e6
    for free_mb, lanes in ((10**6, 8), (2 * one, 1), (2 * (one + 3.5 * patch_mb) / 0.7, 4)):
        memory = SimpleNamespace(available=free_mb * 1e6)
        monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda memory=memory: memory)
        assert capacity.count_lanes(wide, settings, 2) == lanes
    remote = load_settings(None, scheduler_address="tcp://127.0.0.1:1")
    assert capacity.count_lanes(wide, remote, 0) == 1


def test_memory_counts_chunks_as_they_are_decoded(plan):
    """A small region of a slide in huge chunks costs whole ones, a PNG the whole image."""

    def worker_mb(kind, chunk_px, planes=1):
        slide = replace(
            plan.slide, kind=kind, height=20000, width=20000, chunk_px=chunk_px,
            chunk_planes=planes, dtype="uint16",
        )  # fmt: skip
        return capacity.estimate(replace(plan, slide=slide), 512).worker_mb

    small = worker_mb("ome-zarr", (512, 512))
    image_mb = 20000 * 20000 * 2 / 1e6
    assert worker_mb("ome-zarr", (10000, 10000)) >= small + image_mb / 4
    assert worker_mb("ome-zarr", (1024, 1024), 30) >= small + 30 * 4 * 1024**2 * 2 / 1e6
    assert worker_mb("png", (20000, 20000), 3) >= 3 * image_mb
