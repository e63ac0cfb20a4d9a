"""All that a worker imports, for the fork server to import before there are workers.

What is imported or compiled when it is used first is used here: once, and not by every worker.
Nothing of it is ever given back, so the garbage collector looks at none of it: not while it is
made, which would take a sixth of the time, and not in the workers, who share its pages as long as
nobody writes to them.
"""

from __future__ import annotations

# ruff: noqa: E402  the collector is off before anything is imported
import gc

gc.disable()

import distributed.nanny  # noqa: F401
import numpy as np

import densebatch.checkpoint
import densebatch.inference
import densebatch.numbering
import densebatch.tracing  # noqa: F401
from densebatch.backend_torch import cast_network
from densebatch.cells import measure_shapes
from densebatch.dynamics import TraceSettings, trace_tile
from densebatch.geometry import Region
from densebatch.network import CPnet

_REGION = Region(0, 0, 8, 8)
trace_tile(np.zeros((3, *_REGION.shape), np.float16), _REGION, _REGION, (8, 8), TraceSettings())
measure_shapes(np.zeros(_REGION.shape, np.uint32), 1, 0, 0)
cast_network(CPnet((2, 8, 16)).eval(), "f32")  # torch imports more when networks are made

gc.freeze()
gc.enable()
