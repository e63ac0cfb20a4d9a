"""A slide with Cellpose-SAM: labels whatever the division of work, and what is told of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densebatch.planning.plan import Plan, parse_plan
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import segment
from densebatch.stages.network_input import read_network_input
from tests.helpers.run_files import (
    assert_same_output,
    call_main,
    output_bytes,
    simulate,
    write_tiff,
)
from tests.helpers.sam_files import SMALL, save_sam


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A slide of several patches, a file of random weights, and the run with a single tile."""
    folder = tmp_path_factory.mktemp("sam")
    save_sam(folder / "cpsam_lab", foreground=3.0)
    slide = write_tiff(folder / "s.ome.tif", simulate(200, 230, seed=3), ["CD3", "DAPI"])
    options = {
        "membrane": ("CD3",), "nuclei": "DAPI", "model": str(folder / "cpsam_lab"),
        "flow_threshold": 0.0,
    }  # fmt: skip
    result = segment(slide, folder / "out", workers=0, tile=2048, **options)
    assert result.cells > 500
    return slide, options, result, output_bytes(folder / "out")


@pytest.mark.parametrize(("tile", "shuffle"), [(64, None), (97, 1), (170, 2)])
def test_tile_size_and_task_order(given, tmp_path, tile, shuffle):
    slide, options, _, expected = given
    segment(slide, tmp_path, tile=tile, workers=0, shuffle=shuffle, **options)
    assert_same_output(tmp_path, expected)


@pytest.mark.slow  # two workers import torch
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes(given, tmp_path, workers):
    slide, options, _, expected = given
    result = segment(slide, tmp_path, tile=100, workers=workers, **options)
    assert_same_output(tmp_path, expected)
    assert result.report["stages"]["predict"]


def test_record_tells_model_and_precision(given):
    slide, options, result, _ = given
    assert result.report["plan"]["model"]["kind"] == "cellpose-sam"
    assert result.report["engine"]["precision"] == "f32"
    plan = draft_plan(slide, SegmentSettings(**options))
    assert plan.lattice.y.patch == plan.lattice.x.patch == SMALL.patch_px
    assert plan.lattice.y.step == 32
    assert plan.lattice.y.n == 7
    assert parse_plan(plan.to_json()) == plan
    assert not any("does not tell whether it was trained" in note for note in plan.notes)


def test_network_sees_membrane_then_nuclei_and_nothing(given):
    _, _, result, _ = given
    plan = parse_plan(json.dumps(result.report["plan"] | {"active": ""}))
    seen = read_network_input(plan, plan.lattice.patch(1, 1))
    assert seen.shape == (3, 64, 64)
    assert seen[0].std() > 0.05
    assert seen[1].std() > 0.05
    assert not np.array_equal(seen[0], seen[1])
    assert not seen[2].any()


def test_fingerprint_of_cellpose_networks_does_not_know_of_kinds(given):
    """A run that began before there were several goes on."""
    slide, options, _, _ = given
    plans: list[Plan] = [
        draft_plan(slide, SegmentSettings(**{**options, **changes}))
        for changes in ({"model": "dense-tiny"}, {})
    ]
    for plan, has in zip(plans, (False, True), strict=True):
        text = plan.to_json().replace(f'"kind": "{plan.model.kind}", ', "")
        assert text != plan.to_json()
        if not has:
            assert parse_plan(text).fingerprint == plan.fingerprint
            assert parse_plan(text) == plan


def test_backend_that_cannot_evaluate_it_is_refused_before_anything_is_read(
    given, tmp_path, capsys
):
    slide, options, _, _ = given
    code, _, err = call_main(
        capsys, "segment", slide, tmp_path / "out", "--model", options["model"], "--membrane",
        "CD3", "--backend", "openvino",
    )  # fmt: skip
    assert code == 2
    assert err == (
        "error: backend openvino: does not evaluate Cellpose-SAM (4.x) networks; accepted for them "
        "are torch, torch-bf16, compile, compile-bf16\n"
    )
    assert not (tmp_path / "out").exists()


def test_plan_tells_what_it_costs(given, tmp_path, capsys):
    slide, options, _, _ = given
    command = ["plan", slide, tmp_path / "out", "--model", options["model"], "--membrane", "CD3"]
    code, out, _ = call_main(capsys, *command, "--json")
    facts = json.loads(out)
    assert code == 0
    # 64 tokens of 32 numbers, three blocks: layers, and attention between all of them
    layers = 3 * (4 * 32**2 + 2 * 32 * 64) + 32 * (3 * 64 + 64 + 16) + 9 * 16**2 + 16 * 192
    patch = 2 * 64 * (layers + 2 * 3 * 32 * 64)
    assert facts["network_flop"] == patch * facts["network_patches"]
    assert facts["network_seconds"] > 0
    assert facts["engine"]["precision"] == "f32"
    _, out, _ = call_main(capsys, *command)
    told = next(line for line in out.splitlines() if "TFLOP" in line)
    assert told.strip().startswith(f"{facts['network_flop'] / 1e12:.3g} TFLOP, about ")
    assert told.endswith(" s on this machine")
    # of Cellpose's own networks, whose time hangs on convolutions, it says nothing
    _, out, _ = call_main(capsys, "plan", slide, tmp_path / "out", "--membrane", "CD3", "--json")
    assert json.loads(out)["network_flop"] is json.loads(out)["network_seconds"] is None


def test_memory_of_weights_is_counted(given):
    from dataclasses import replace

    from densebatch.models.sam_sizes import FULL_SAM
    from densebatch.planning.capacity import estimate, weight_bytes

    slide, options, _, _ = given
    small = draft_plan(slide, SegmentSettings(**options))
    full = replace(small, model=replace(small.model, widths=tuple(FULL_SAM)))
    cellpose = draft_plan(slide, SegmentSettings(membrane=("CD3",), model="dense"))
    assert weight_bytes(small) == weight_bytes(cellpose) == 0  # a process has room for these
    assert estimate(full, 256).worker_mb - estimate(small, 256).worker_mb > 1200


def test_gate_shows_it_what_it_sees_and_bfloat16_is_recorded(given):
    """With random weights no cell means anything, so that only flows are looked at."""
    from densebatch.engines.backend import Engine, patch_shape
    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.engine_trial import make_plan_backend
    from densebatch.planning.gate import LIMITS, compare_flows, draw_sample, predict_sample

    slide, options, _, _ = given
    plan = draft_plan(slide, SegmentSettings(**options))
    sample = draw_sample(plan.model, patch_shape(plan.lattice))
    assert sample.patches.shape[1:] == (3, 64, 64)
    assert sample.patches[:, :2].std() > 0.1
    assert not sample.patches[:, 2].any()
    low = Engine("torch-bf16")
    flows, reference = (
        predict_sample(make_plan_backend(plan, engine), sample) for engine in (low, Engine())
    )
    parity = compare_flows("torch-bf16", flows, reference, sample)
    assert 1e-4 < parity.flow_rms < LIMITS["bf16"].flow_rms
    assert EngineChoice(low, "asked for").to_dict()["precision"] == "bf16"
