"""How labels differ from the truth, counted by cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def count_faults(
    truth: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], min_iou: float = 0.9
) -> dict[str, float]:
    """Count cells that are right, cut, merged and there twice.

    Parameters
    ----------
    truth, labels
        `(h, w)`, ids without large gaps.
    min_iou
        From which a label is good for a cell.

    Returns
    -------
    dict
        `cells`, `labels`. `good`: share of true cells with a good label. `cut`: true cells of which
        two labels or more hold a tenth each. `merges`: labels that hold half of two true cells or
        more. `duplicates`: labels half of whose pixels are of a true cell that another label is
        good for.

    Examples
    --------
    >>> truth = np.array([[1, 1, 2, 2, 3, 3]])
    >>> found = count_faults(truth, np.array([[1, 2, 3, 3, 3, 3]]))
    >>> found["good"], found["cut"], found["merges"], found["duplicates"]
    (0.0, 1, 1, 0)
    """
    n, m = int(truth.max()), int(labels.max())
    codes, shared = np.unique(truth.astype(np.int64) * (m + 1) + labels, return_counts=True)
    cell, label = np.divmod(codes, m + 1)
    of_cell = np.bincount(truth.ravel(), minlength=n + 1)
    of_label = np.bincount(labels.ravel(), minlength=m + 1)
    both = (cell > 0) & (label > 0)
    cell, label, shared = cell[both], label[both], shared[both]
    iou = shared / (of_cell[cell] + of_label[label] - shared)
    good = np.zeros(n + 1, bool)
    good[cell[iou >= min_iou]] = True
    there = of_cell > 0
    there[0] = False
    tenths = np.bincount(cell[shared >= 0.1 * of_cell[cell]], minlength=n + 1)
    halves = np.bincount(label[shared >= 0.5 * of_cell[cell]], minlength=m + 1)
    second = (shared >= 0.5 * of_label[label]) & (iou < min_iou) & good[cell]
    return {
        "cells": int(there.sum()),
        "labels": int((of_label[1:] > 0).sum()),
        "good": round(float(good[there].mean()), 5),
        "cut": int((tenths > 1).sum()),
        "merges": int((halves > 1).sum()),
        "duplicates": int(np.unique(label[second]).size),
    }
