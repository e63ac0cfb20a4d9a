"""What planning costs beside the survey: the gate, part by part, and the network alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from densebatch.engines.backend import BACKENDS, Engine, patch_shape
from densebatch.engines.findings import remember
from densebatch.engines.make import wake_device
from densebatch.planning.engine_trial import identify_parity, make_plan_backend, time_backends
from densebatch.planning.gate import compare_flows, draw_sample, predict_sample
from densebatch.planning.planner import draft_plan, survey_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.simulation.tissue import CHANNELS
from gpu_steps.slides import write_mosaic
from gpu_steps.tell import tell, timed

if TYPE_CHECKING:
    import argparse


def measure_gate(options: argparse.Namespace) -> None:
    """What planning costs beside the survey, by part; the answer is remembered for later steps."""
    settings = SegmentSettings(membrane=(CHANNELS[0],), model=options.model)
    draft = draft_plan(write_mosaic(options.side, options.work), settings)
    with timed("survey_s"):
        plan = survey_plan(draft)
    with timed("context_s"):  # and PyTorch's import
        wake_device()
    engine = Engine(options.backend, options.device)
    precision = BACKENDS[options.backend].precision
    start = time.perf_counter()
    with timed("gate_draw_s"):
        sample = draw_sample(plan.model, patch_shape(plan.lattice), precision)
    with timed("gate_ready_s"):
        backend = make_plan_backend(plan, engine)
    with timed("gate_device_s"):
        flows = predict_sample(backend, sample)
    with timed("gate_reference_s"):
        # four at once, as the gate itself does
        reference = predict_sample(make_plan_backend(plan, Engine(), lanes=4), sample)
    with timed("gate_compare_s"):
        parity = compare_flows(options.backend, flows, reference, sample)
    gate_s = time.perf_counter() - start
    tell(gate_s=round(gate_s, 3), parity=parity.to_dict())
    remember(identify_parity(plan, engine), parity.to_dict())
    s_per_mpx = time_backends({options.backend: backend}, sample, 3)[options.backend]
    tell(network_mpx_per_s=round(1 / s_per_mpx, 1))
    if parity.refused is not None:
        raise SystemExit(f"the gate refuses {options.backend}: {parity.refused}")
    tell(headline=f"gate {gate_s:.1f} s, network alone {1 / s_per_mpx:.1f} Mpx/s")
