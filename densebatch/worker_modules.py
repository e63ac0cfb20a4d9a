"""All that a worker imports, for the fork server to import before there are workers.

What is imported or compiled when it is used first is used here: once, and not by every worker.
"""

from __future__ import annotations

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
trace_tile(np.zeros((3, *_REGION.shape), np.float32), _REGION, _REGION, (8, 8), TraceSettings())
measure_shapes(np.zeros(_REGION.shape, np.uint32), 1, 0, 0)
cast_network(CPnet((2, 8, 16)).eval(), "f32")  # torch imports more when networks are made
