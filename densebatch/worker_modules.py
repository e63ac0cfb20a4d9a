"""All that a worker imports, for the fork server to import before there are workers.

What is imported or compiled when it is used first is used here: once, and not by every worker.
Nothing of it is ever given back, so the garbage collector looks at none of it: not while it is
made, which would take a sixth of the time, and not in the workers, whose pages it would write to.
"""

from __future__ import annotations

import gc
import sys

gc.disable()  # before anything else is imported
try:
    import distributed.nanny  # noqa: F401
    import numpy as np

    import densebatch.checkpoint
    import densebatch.inference
    import densebatch.numbering
    import densebatch.tracing  # noqa: F401
    from densebatch.backend_torch import cast_network
    from densebatch.cells import measure_shapes
    from densebatch.dynamics import TraceSettings, trace_tile
    from densebatch.foreground import mask_flows
    from densebatch.geometry import Region
    from densebatch.network import CPnet

    _region = Region(0, 0, 8, 8)
    _flows = np.zeros((3, *_region.shape), np.float16)
    # With its first kernel numba looks for SciPy's BLAS, which takes a tenth of all this to import
    # and which no kernel of ours calls: it finds none.
    _blas = "scipy.linalg.cython_blas"
    sys.modules.setdefault(_blas, None)  # type: ignore[arg-type]
    try:
        trace_tile(_flows, _region, _region, _region.shape, TraceSettings())
    finally:
        if sys.modules[_blas] is None:
            del sys.modules[_blas]
    mask_flows(_flows.astype(np.float32), 0.0)  # of slides that are resampled
    measure_shapes(np.zeros(_region.shape, np.uint32), 1, 0, 0)
    cast_network(CPnet((2, 8, 16)).eval(), "f32")  # torch imports more when networks are made
finally:
    gc.freeze()
    gc.enable()
