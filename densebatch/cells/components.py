"""Yes/no masks and masks of classes, told from label images by the pieces that their labels lie in.

A mask of 0 and 255 reads as a label image with one cell, and is scored or trained on without a
word. What gives it away is that its few labels lie in many separate pieces. Such a mask is refused,
or its pieces become cells where the user says so.

The number of labels comes first, because only images of few are looked at again; they are read in
strips with what the last row carries over, so that memory does not grow with the image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import CapacityError, InputError
from densebatch.base.log import log_event
from densebatch.base.machine import measure_memory
from densebatch.cells.pixels import as_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from densebatch.cells.pixels import PixelSource

log = logging.getLogger(__name__)

# An image of 8 bits has no more, so that a mask whose edges were smoothed is looked at too.
MAX_FEW = 255
# So many pieces a label, on average, are too many: of drawn cells one in hundreds has a second
# piece. Among few labels a single shattered one raises the average, so that there more are allowed.
HANDFUL = 16
PIECES_PER_LABEL = {"handful": 3.0, "more": 1.5}
PREDICTED_PIECES = 5  # of the one label of a prediction, from which it is a mask
# A piece of fewer pixels is a slip of the pen where its label has a piece ten times as large.
SLIP_PX = 10
SLIP_RATIO = 10
# From so many pieces on the rest of an image changes nothing.
ENOUGH_PIECES = 1000
_STRIP_PX = 2**22
_BLOCK_PX = 2**20
_N_LISTED = 4
_KEEP = "say --no-label-components if {} one cell, in however many pieces"


def settle_masks(
    source: PixelSource, label_components: bool | None, where: str
) -> tuple[PixelSource, bool]:
    """What to do with an image that may be a mask: take it, label its pieces, or refuse it.

    Parameters
    ----------
    source
        Two-dimensional label image or mask.
    label_components
        True: 8-connected pieces of an image with one label become cells. False: each label is a
        cell, in however many pieces. None: as False, and masks are refused.
    where
        Names the source in errors.

    Returns
    -------
    source : PixelSource
        As it was, or uint32 labels in memory.
    labelled : bool
        Whether pieces became cells.

    Raises
    ------
    InputError
        For a mask that is not to be labelled, a mask of several classes, and pixels that are no
        labels.
    CapacityError
        Where the labels of pieces do not fit into memory.
    """
    if not check_masks(source, label_components, where):
        return source, False
    pieces = _label_pieces(source, where)
    return pieces, bool(pieces.any())


def check_masks(source: PixelSource, label_components: bool | None, where: str) -> bool:
    """Whether pieces are to become cells; parameters and `InputError` as for `settle_masks`."""
    if label_components is False:
        return False
    if label_components:
        only = list_labels(source, 1, where)
        if only is not None:
            if only.size and int(count_pieces(source, only, where)[0].sum()) == 1:
                _refuse_net(source, only, where)
            return bool(only.size) or getattr(source, "dtype", None) == np.dtype(bool)
    refuse_mask(source, where)
    return False


def refuse_mask(
    source: PixelSource,
    where: str,
    labels: NDArray[np.uint32] | None = None,
    *,
    is_prediction: bool = False,
) -> None:
    """Refuse an image whose few labels lie in many pieces.

    Parameters
    ----------
    source
        Two-dimensional label image.
    where
        Names it in the error.
    labels
        Its labels without 0, ascending, where they are known.
    is_prediction
        Whether it is the work of a program, which may well leave a cell or two in pieces: then only
        one label in `PREDICTED_PIECES` and more is refused.

    Raises
    ------
    InputError
        For one label in two pieces or more (a yes/no mask: of the two readings of an image with
        one label and two pieces, one cell cut in two is by far the rarer), or in one piece around
        two holes or more (an inverted mask, or cells that all touch); for two to 255 labels
        of which each has two pieces or more, or which have three each on average, 1.5 if they are
        more than 16 (a mask of classes, or one with smoothed edges). Pieces of a few pixels beside
        a large one do not count.
    """
    if labels is None:
        found = list_labels(source, MAX_FEW, where)
        if found is None:
            return
        labels = found
    if not 0 < labels.size <= MAX_FEW:
        return
    pieces, whole = count_pieces(source, labels, where)
    total, most = int(pieces.sum()), "" if whole else "at least "
    if is_prediction and (labels.size > 1 or total < PREDICTED_PIECES):
        return
    if labels.size == 1 and total > 1:
        raise InputError(
            f"{where} looks like a yes/no mask: its only label {labels[0]} lies in {most}{total} "
            "separate pieces; label the pieces first (--label-components, or another tool), or "
            + _KEEP.format("they are")
        )
    allowed = PIECES_PER_LABEL["handful" if labels.size <= HANDFUL else "more"]
    if labels.size == 1:
        _refuse_net(source, labels, where)
    if labels.size > 1 and (total >= allowed * labels.size or pieces.min() > 1):
        listed = "".join(f" {label} in {n}," for label, n in zip(labels, pieces, strict=True))
        detail = f" (label{listed[:-1]})" if labels.size <= _N_LISTED else ""
        raise InputError(
            f"{where} looks like a mask of classes: its {labels.size} labels lie in {most}{total} "
            f"separate pieces{detail}; make a mask of the class that is cells, or label the pieces "
            "with another tool, or " + _KEEP.format("each label is")
        )


def _refuse_net(source: PixelSource, labels: NDArray[np.uint32], where: str) -> None:
    """Refuse one piece around several holes, of which no labelling makes cells."""
    holes = count_holes(source, labels, where)
    if holes > 1:
        raise InputError(
            f"{where} looks like a yes/no mask that is inverted or whose cells all touch: its only "
            f"label {labels[0]} lies in one piece around {holes} holes; invert it, or label its "
            "cells with another tool, or " + _KEEP.format("it is")
        )


def list_labels(source: PixelSource, most: int, where: str) -> NDArray[np.uint32] | None:
    """The labels of an image without 0, ascending; None if there are more than `most`."""
    found = np.zeros(1, np.uint32)
    height, width = source.shape
    unit_y, unit_x = _find_unit(source)
    cols = min(width, unit_x * max(1, _BLOCK_PX // (unit_x * unit_y)))
    rows = unit_y * max(1, _BLOCK_PX // (cols * unit_y))
    for y in range(0, height, rows):
        for x in range(0, width, cols):
            part = source[y : y + rows, x : x + cols]
            flat = as_labels(part, where, masks=True).ravel()
            changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
            found = np.union1d(found, flat[[0, *changes]])
            if found.size > most + 1:
                return None
    return found[1:]


@dataclass
class _Tally:
    """Finished pieces of each label, by their pixels up to `SLIP_PX`, and the largest of each."""

    n_labels: int
    counts: NDArray[np.int64] = field(init=False)
    largest: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.n_labels + 1, SLIP_PX + 1), np.int64)
        self.largest = np.zeros(self.n_labels + 1, np.int64)

    def add(self, codes: NDArray[np.uint8], areas: NDArray[np.int64]) -> None:
        np.add.at(self.counts, (codes, np.minimum(areas, SLIP_PX)), 1)
        np.maximum.at(self.largest, codes, areas)

    @property
    def is_enough(self) -> bool:
        return int(self.counts[:, SLIP_PX].sum()) >= ENOUGH_PIECES

    def count(self) -> NDArray[np.int64]:
        """Pieces of each label, without slips."""
        smallest = np.minimum(SLIP_PX, -(-self.largest // SLIP_RATIO))
        counted = np.arange(SLIP_PX + 1) >= smallest[:, None]
        total: NDArray[np.int64] = (self.counts * counted).sum(1)[1:]
        return total


def count_pieces(
    source: PixelSource, labels: NDArray[np.uint32], where: str
) -> tuple[NDArray[np.int64], bool]:
    """Count the 8-connected pieces that each label lies in, in one pass over strips of rows.

    Parameters
    ----------
    source
        Two-dimensional label image.
    labels
        All of its labels without 0, ascending, at most 255.
    where
        Names it in errors.

    Returns
    -------
    pieces : ndarray of int64
        For each label; without pieces of less than 10 px and a tenth of the label's largest.
    whole : bool
        False where counting ended early, because there were 1000 pieces.
    """
    return _count_strips(_read_strips(source, labels, where), source.shape[1], labels.size)


def count_holes(source: PixelSource, labels: NDArray[np.uint32], where: str) -> int:
    """Count the 8-connected pieces of background that no way leads out of; as `count_pieces`."""

    def invert() -> Iterator[NDArray[np.uint8]]:
        # All background at the image's edge is one piece with the frame.
        edge = np.ones((1, source.shape[1] + 2), np.uint8)
        yield edge
        for strip in _read_strips(source, labels, where):
            yield np.pad((strip == 0).astype(np.uint8), ((0, 0), (1, 1)), constant_values=1)
        yield edge

    pieces, _ = _count_strips(invert(), source.shape[1] + 2, 1)
    return int(pieces[0]) - 1


def _count_strips(
    strips: Iterable[NDArray[np.uint8]], width: int, n_labels: int
) -> tuple[NDArray[np.int64], bool]:
    """Count the pieces of codes 1 to `n_labels` in an image that comes in strips of rows."""
    # These are slow to import, and most images never come here.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from skimage.measure import label

    tally = _Tally(n_labels)
    # The last row that was read, the place of each pixel's piece in the pieces that it touches,
    # and their codes and areas so far. Before the first row there is background.
    row, places = np.zeros(width, np.uint8), np.zeros(width, np.int64)
    open_codes, open_areas = np.zeros(0, np.uint8), np.zeros(0, np.int64)
    for strip in strips:
        pieces, n = label(strip, background=0, return_num=True, connectivity=2)
        codes = np.zeros(n + 1, np.uint8)
        codes[pieces] = strip
        areas = np.bincount(pieces.ravel(), minlength=n + 1)
        # Pieces of the rows above and of this strip are joined where they meet with one code.
        joints = []
        for above, below in ((_ALL, _ALL), (_LEFT, _RIGHT), (_RIGHT, _LEFT)):
            met = (row[above] == strip[0, below]) & (row[above] > 0)
            ends = places[above][met], open_codes.size + pieces[0, below][met] - 1
            joints.append(np.stack(ends))
        ends = np.concatenate(joints, axis=1)
        size = open_codes.size + n
        graph = coo_array((np.ones(ends.shape[1], bool), tuple(ends)), shape=(size, size))
        n_joined, joined = connected_components(graph, directed=False)
        all_codes = np.concatenate((open_codes, codes[1:]))
        all_areas = np.concatenate((open_areas, areas[1:]))
        joined_codes = np.zeros(n_joined, np.uint8)
        joined_codes[joined] = all_codes
        joined_areas = np.zeros(n_joined, np.int64)
        np.add.at(joined_areas, joined, all_areas)
        # Those which the last row does not touch are finished.
        row = strip[-1]
        inside = row > 0
        touched, kept = np.unique(
            joined[open_codes.size + pieces[-1][inside] - 1], return_inverse=True
        )
        finished = np.ones(n_joined, bool)
        finished[touched] = False
        tally.add(joined_codes[finished], joined_areas[finished])
        if tally.is_enough:
            return tally.count(), False
        places = np.zeros(width, np.int64)
        places[inside] = kept
        open_codes, open_areas = joined_codes[touched], joined_areas[touched]
    tally.add(open_codes, open_areas)
    return tally.count(), True


_ALL, _LEFT, _RIGHT = slice(None), slice(None, -1), slice(1, None)


def _read_strips(
    source: PixelSource, labels: NDArray[np.uint32], where: str
) -> Iterator[NDArray[np.uint8]]:
    """Whole rows from top to bottom, as places of labels from 1; each chunk is decoded once."""
    known = np.concatenate((np.zeros(1, np.uint32), labels))
    height, width = source.shape
    unit_y, unit_x = _find_unit(source)
    rows = unit_y * max(1, _STRIP_PX // (width * unit_y))
    cols = unit_x * max(1, _BLOCK_PX // (rows * unit_x))
    thin = max(1, _STRIP_PX // width)
    for y in range(0, height, rows):
        strip = np.empty((min(rows, height - y), width), np.uint8)
        for x in range(0, width, cols):
            part = source[y : y + rows, x : x + cols]
            strip[:, x : x + cols] = np.searchsorted(known, as_labels(part, where, masks=True))
        # A row of chunks of a wide slide is more than is labelled at once.
        for top in range(0, len(strip), thin):
            yield strip[top : top + thin]


def _label_pieces(source: PixelSource, where: str) -> NDArray[np.uint32]:
    """Number the 8-connected pieces of what is not zero, over the whole image."""
    from scipy import ndimage

    height, width = source.shape
    needed, available = 9 * height * width, measure_memory().available // 2
    if needed > available:
        raise CapacityError(
            f"{where} is {height}x{width} px, whose pieces need {needed / 1e9:.1f} GB to label, "
            f"and half of the free memory is {available / 1e9:.1f} GB; label them with another tool"
        )
    mask = np.empty((height, width), bool)
    unit_y, _ = _find_unit(source)
    rows = unit_y * max(1, _STRIP_PX // (width * unit_y))
    for y in range(0, height, rows):
        part = source[y : y + rows, 0:width]
        mask[y : y + rows] = as_labels(part, where, masks=True) > 0
    pieces = np.empty(mask.shape, np.uint32)
    n_pieces = ndimage.label(mask, np.ones((3, 3), bool), output=pieces)
    log_event(log, "pieces labelled", image=where, pieces=int(n_pieces))
    return pieces


def _find_unit(source: Any) -> tuple[int, int]:  # noqa: ANN401
    """Rows and columns that are decoded at once."""
    unit = getattr(source, "shards", None) or getattr(source, "chunks", None) or (1, 1)
    return int(unit[-2]), int(unit[-1])
