"""All that a worker imports, for the fork server to import before there are workers.

What is imported or compiled when it is used first is used here: once, and not by every worker. As
in `shared_modules`, the garbage collector looks at none of it.
"""

from __future__ import annotations

import gc

import densebatch.workers.shared_modules

gc.disable()
try:
    import numpy as np

    import densebatch.models.checkpoint  # noqa: F401
    from densebatch.base.allocation import return_freed_memory
    from densebatch.base.geometry import Region
    from densebatch.engines.pytorch import cast_network
    from densebatch.models.network import CPnet
    from densebatch.tracing.foreground import mask_flows
    from densebatch.tracing.tile import TraceSettings, trace_tile

    return_freed_memory()
    _window = Region(0, 0, 8, 8)
    _flows = np.zeros((3, *_window.shape), np.float16)
    # with a halo: numba compiles for each layout
    trace_tile(_flows, _window, _window.expand(-2), _window.shape, TraceSettings())
    mask_flows(_flows.astype(np.float32), 0.0)  # of slides that are resampled
    cast_network(CPnet((2, 8, 16)).eval(), "f32")  # torch imports more when networks are made
finally:
    gc.freeze()
    gc.enable()
