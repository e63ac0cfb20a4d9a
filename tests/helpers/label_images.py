"""Pairs of small label images for the tests of scoring, and their cells as masks."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.cells.pixels import MAX_LABEL


@st.composite
def label_pairs(draw, side=9):
    """Truth, and a prediction that is independent of it or a damaged copy: real overlaps."""
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    ids = st.sampled_from([0, 1, 2, 3, 9, 40, MAX_LABEL])
    first = draw(hnp.arrays(np.uint32, shape, elements=ids, fill=st.nothing()))
    other = draw(hnp.arrays(np.uint32, shape, elements=ids, fill=ids))
    if draw(st.booleans()):
        other = np.where(draw(hnp.arrays(bool, shape)), other, first)
    return first, other


def masks(image):
    """Each cell as a mask, in the order of ids."""
    return [image == label for label in np.unique(image) if label != 0]
