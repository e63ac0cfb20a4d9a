"""All that a worker imports, for the fork server to import before there are workers.

Tracing's kernels are loaded too, and on a machine's first run compiled: once, and not by every
worker.
"""

from __future__ import annotations

import distributed.nanny  # noqa: F401
import numpy as np

import densebatch.backend_torch
import densebatch.inference
import densebatch.numbering
import densebatch.tracing  # noqa: F401
from densebatch.cells import measure_shapes
from densebatch.dynamics import TraceSettings, trace_tile
from densebatch.geometry import Region

_REGION = Region(0, 0, 8, 8)
trace_tile(np.zeros((3, *_REGION.shape), np.float32), _REGION, _REGION, (8, 8), TraceSettings())
measure_shapes(np.zeros(_REGION.shape, np.uint32), 1, 0, 0)
