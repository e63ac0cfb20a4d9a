"""The table of candidate cells for labels made by hand, for the tests of tracing."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from densebatch.tracing.candidates import Candidates, Verdict


def tabulate(labels, verdicts=None, n=None):
    """Rows for the labels 1..n; a cell's seed is any of its pixels.

    All are kept if no verdicts are given; but nobody asks for a cell without pixels.
    """
    rows = []
    for label, box in enumerate(ndimage.find_objects(labels, n or int(labels.max(initial=0))), 1):
        if box is None:
            rows.append((0, 0, 0, *labels.shape, 0, 0))
        else:
            y, x = np.argwhere(labels == label)[0]
            area = np.count_nonzero(labels == label)
            rows.append((y, x, area, box[0].start, box[1].start, box[0].stop, box[1].stop))
    columns = np.array(rows, np.int32).reshape(-1, 7).T.copy()
    if verdicts is None:
        verdicts = np.full(len(rows), Verdict.KEPT)
    cells = Candidates(*columns, np.asarray(verdicts, np.int8))
    return cells._replace(verdict=np.where(cells.area > 0, cells.verdict, np.int8(0)))
