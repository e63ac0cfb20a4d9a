"""What the main process and its workers both import, for them to be forked after it.

With its first kernel numba makes itself ready for all, which takes as long as importing it; so a
small one is called here. Nothing of all this is ever given back, so the garbage collector looks at
none of it: not while it is made, which would take a sixth of the time, and not afterwards, when it
would write to pages that processes share.
"""

from __future__ import annotations

import gc
import sys

gc.disable()  # before anything else is imported
try:
    import distributed.nanny  # noqa: F401
    import numpy as np

    import densebatch.stages.number
    import densebatch.stages.predict
    import densebatch.stages.trace  # noqa: F401
    from densebatch.cells.measure import measure_shapes

    # numba looks for SciPy's BLAS, which takes a tenth of all this to import and which no kernel
    # of ours calls: it finds none
    _blas = "scipy.linalg.cython_blas"
    sys.modules.setdefault(_blas, None)  # type: ignore[arg-type]
    try:
        measure_shapes(np.zeros((8, 8), np.uint32), 1, 0, 0)
    finally:
        if sys.modules[_blas] is None:
            del sys.modules[_blas]
finally:
    gc.freeze()
    gc.enable()
