"""Step 2: which labels are one cell, and which copy of it is kept, from the tables of step 1 alone.

A label is *whole* unless a border of its tile cuts it. Its *trust* is its distance from the nearest
border of its tile: the further from it, the more of its surroundings the segmenter saw. If half of
a label lies in a larger whole one of another tile, it may be what a border left of it, and is
trusted no more than its own tile would be with all of it, as the larger one's box lies there; and
a little less if it is more than `MOST` of the larger one, which then hardly is two cells.

1. **Mutual best.** In a band, two labels match if each is the other's best by IoU of what the band
   holds of them, the IoU is at least `MIN_IOU`, and they share half of the smaller one. Two labels
   that are both cut need an IoU of `MIN_IOU_CUT` instead, for of a cell larger than the overlap the
   band holds a small part only.
2. **Groups** are connected components of matches. The most trusted whole label of a group survives.
   What does not share half of the smaller one with it is another cell, and leaves with whatever
   matches it there: a chain of matches never makes one cell of two.
3. **Intersection over smaller.** Groups are looked at by falling trust. One that has half of its
   pixels under cells that are kept already is a piece of these, as a border leaves it, and joins
   the one that covers most of it. A label that no cell covers, that is nearer to a border than it
   is long (or than `NEAR_PX`), and that another tile holds altogether and further from its borders,
   is dropped if that tile has nothing of its group: it sees what lies behind the border, and knows
   better.
4. A group without a whole label is a cell larger than the overlap. All its labels are kept as one,
   for each holds a part that no other has.

Cells that touch share no pixel within a tile and hardly any between tiles, so they never match.
Everything is decided by numbers of pixels and places, ties by the order of tiles and labels, never
by a segmenter's ids or the order in which tiles were labelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from densebatch.base.geometry import Region
from densebatch.merging.facts import FIRST, IN_FIRST, IN_SECOND, SECOND, SHARED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.merging.facts import BandFacts, TileFacts
    from densebatch.merging.layout import Layout

MIN_IOU = 0.3
MIN_IOU_CUT = 0.5
SHARE = 0.5  # of the smaller label, or of a piece
MOST = 2 / 3  # of a larger label's area, above which one is taken for it without its edge
NEAR_PX = 3  # a piece of a cut cell may end just before the border, where outlines are ragged


@dataclass(frozen=True)
class Place:
    """Where something was found.

    Attributes
    ----------
    region : box around it, in pixels of the slide
    tiles : that saw it
    """

    region: Region
    tiles: tuple[int, ...]


@dataclass(frozen=True)
class Decision:
    """What becomes of every label.

    Attributes
    ----------
    ranks
        For each tile `(k + 1,)` uint32, by label: 0 where a label is not painted, else the rank of
        its cell. Where cells overlap, the one of the lower rank has the pixel.
    n_cells
        Ranks are 1 to this.
    candidate_pairs
        Pairs of labels of two tiles that share a pixel.
    merged
        Labels that became part of a cell beside its first: all labels are cells, merged or dropped.
    larger
        Cells that no tile holds whole: larger than the overlap.
    dropped
        Labels near a border of which another tile, which holds all of them, knows nothing.
    """

    ranks: tuple[NDArray[np.uint32], ...]
    n_cells: int
    candidate_pairs: int
    merged: int
    larger: tuple[Place, ...]
    dropped: tuple[Place, ...]


@dataclass(frozen=True)
class _Labels:
    """All labels of all tiles, one after another.

    Attributes
    ----------
    tile, area, distance, box : of each label; the distance is that of `Layout.distances`
    first : index of the first label of each tile, and their number
    """

    tile: NDArray[np.int64]
    area: NDArray[np.int64]
    distance: NDArray[np.int64]
    box: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def size(self) -> int:
        return self.tile.size


@dataclass(frozen=True)
class _Overlaps:
    """All pairs of labels that share pixels; `u`, `v` index the labels, `band` the pair of tiles.

    Attributes
    ----------
    shared, in_u, in_v : px, as of `BandFacts`
    """

    u: NDArray[np.int64]
    v: NDArray[np.int64]
    band: NDArray[np.int64]
    shared: NDArray[np.int64]
    in_u: NDArray[np.int64]
    in_v: NDArray[np.int64]


def decide(layout: Layout, tiles: Sequence[TileFacts], bands: Sequence[BandFacts]) -> Decision:
    """Decide which labels are painted, and as which cell.

    Parameters
    ----------
    layout
        Of the tiles.
    tiles
        Facts of each, in the order of the layout.
    bands
        Facts of each pair of `layout.bands`, in any order.
    """
    nodes = _gather_labels(layout, tiles)
    overlaps = _gather_overlaps(layout, nodes, bands)
    trust = _find_trust(layout, nodes, overlaps)
    group, is_painted = _group(nodes, overlaps, trust, _match(nodes, overlaps))
    n_groups = int(group.max(initial=-1)) + 1
    is_fragment = _find_fragments(layout, nodes, group, n_groups)
    order, parent = _settle(nodes, overlaps, trust, group, is_painted, is_fragment)
    stands = parent == np.arange(n_groups)
    is_dropped = stands & is_fragment
    rank_of_group = np.zeros(n_groups, np.uint32)
    kept = order[(stands & ~is_dropped)[order]]
    rank_of_group[kept] = np.arange(1, kept.size + 1, dtype=np.uint32)
    ranks = np.where(is_painted, rank_of_group[group], 0).astype(np.uint32)
    whole = np.zeros(n_groups, np.bool_)
    whole[group[nodes.distance > 0]] = True
    # A piece joins a group that stands, and is dropped with it.
    lost = is_dropped[parent[group]]
    return Decision(
        ranks=tuple(
            np.concatenate([np.zeros(1, np.uint32), ranks[start:stop]])
            for start, stop in zip(nodes.first, nodes.first[1:], strict=False)
        ),
        n_cells=kept.size,
        candidate_pairs=overlaps.u.size,
        merged=int(nodes.size - kept.size - lost.sum()),
        larger=_list_places(nodes, group, np.flatnonzero(rank_of_group.astype(bool) & ~whole)),
        dropped=_list_places(nodes, group, np.flatnonzero(is_dropped)),
    )


def _gather_labels(layout: Layout, tiles: Sequence[TileFacts]) -> _Labels:
    counts = [facts.areas.size for facts in tiles]
    distance = [layout.distances(tile, facts.boxes) for tile, facts in enumerate(tiles)]
    return _Labels(
        tile=np.repeat(np.arange(len(tiles)), counts),
        area=_join([facts.areas for facts in tiles]),
        distance=_join(distance),
        box=np.concatenate([*(facts.boxes for facts in tiles), np.zeros((0, 4), np.int64)]),
        first=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
    )


def _gather_overlaps(layout: Layout, nodes: _Labels, bands: Sequence[BandFacts]) -> _Overlaps:
    found = {(facts.first, facts.second): facts.pairs for facts in bands}
    if sorted(found) != layout.bands:
        raise ValueError("the bands are not those of the layout")
    pairs = np.concatenate([*(found[band] for band in layout.bands), np.zeros((0, 5), np.int64)])
    counts = [len(found[band]) for band in layout.bands]
    first, second = np.array(layout.bands, np.int64).reshape(-1, 2).T
    return _Overlaps(
        u=np.repeat(nodes.first[first], counts) + pairs[:, FIRST] - 1,
        v=np.repeat(nodes.first[second], counts) + pairs[:, SECOND] - 1,
        band=np.repeat(np.arange(len(counts)), counts),
        shared=pairs[:, SHARED],
        in_u=pairs[:, IN_FIRST],
        in_v=pairs[:, IN_SECOND],
    )


def _join(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([*parts, np.zeros(0, np.int64)])


def _share_smaller(nodes: _Labels, overlaps: _Overlaps) -> NDArray[np.bool_]:
    """Whether two labels share half of the smaller one."""
    smaller = np.minimum(nodes.area[overlaps.u], nodes.area[overlaps.v])
    return overlaps.shared >= SHARE * smaller


def _find_trust(layout: Layout, nodes: _Labels, overlaps: _Overlaps) -> NDArray[np.int64]:
    """Trust of each label: 0 if it is cut, and at least 1 if it is whole.

    It is twice the distance, so that one less decides between what is equally far.
    """
    trust = 2 * nodes.distance
    for inner, outer in ((overlaps.u, overlaps.v), (overlaps.v, overlaps.u)):
        asked = overlaps.shared >= SHARE * nodes.area[inner]
        asked &= nodes.area[inner] < nodes.area[outer]
        asked &= (nodes.distance[inner] > 0) & (nodes.distance[outer] > 0)
        pairs = np.flatnonzero(asked)
        pairs = pairs[np.argsort(nodes.tile[inner[pairs]], kind="stable")]
        tiles, starts = np.unique(nodes.tile[inner[pairs]], return_index=True)
        for tile, some in zip(tiles.tolist(), np.split(pairs, starts[1:]), strict=bool(pairs.size)):
            bound = 2 * np.maximum(layout.distances(tile, nodes.box[outer[some]]), 1)
            bound -= nodes.area[inner[some]] > MOST * nodes.area[outer[some]]
            np.minimum.at(trust, inner[some], bound)
    return trust


def _match(nodes: _Labels, overlaps: _Overlaps) -> NDArray[np.bool_]:
    """Which overlaps are matches: mutual best of their band, and good enough."""
    u, v, shared = overlaps.u, overlaps.v, overlaps.shared
    iou = shared / (overlaps.in_u + overlaps.in_v - shared)
    is_best = np.ones(u.size, np.bool_)
    for one, other in ((u, v), (v, u)):
        order = np.lexsort((other, -shared, -iou, one, overlaps.band))
        begins = np.ones(u.size, np.bool_)
        same = (one[order][1:] == one[order][:-1]) & (
            overlaps.band[order][1:] == overlaps.band[order][:-1]
        )
        begins[1:] = ~same
        is_best[order] &= begins
    both_cut = (nodes.distance[u] == 0) & (nodes.distance[v] == 0)
    alike = (iou >= MIN_IOU) & _share_smaller(nodes, overlaps)
    is_match: NDArray[np.bool_] = is_best & (alike | (both_cut & (iou >= MIN_IOU_CUT)))
    return is_match


def _group(
    nodes: _Labels,
    overlaps: _Overlaps,
    trust: NDArray[np.int64],
    is_match: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Group of each label, and whether it is painted: the survivor, or all if none is whole."""
    n = nodes.size
    close = _share_smaller(nodes, overlaps)
    close_pairs = np.sort(overlaps.u[close] * n + overlaps.v[close])
    u, v = overlaps.u[is_match], overlaps.v[is_match]
    by_trust = np.lexsort((np.arange(n), -trust))
    while True:
        graph = coo_array((np.ones(u.size, np.bool_), (u, v)), shape=(n, n))
        n_groups, group = connected_components(graph, directed=False)
        survivor = np.full(n_groups, -1, np.int64)
        # The last write stays, so the most trusted comes last.
        backwards = by_trust[::-1]
        survivor[group[backwards]] = backwards
        has_whole = trust[survivor] > 0
        chosen = survivor[group]
        low, high = np.minimum(np.arange(n), chosen), np.maximum(np.arange(n), chosen)
        stays = ~has_whole[group] | (low == high)
        stays |= np.isin(low * n + high, close_pairs)
        holds = stays[u] == stays[v]
        if holds.all():
            return group.astype(np.int64), ~has_whole[group] | (chosen == np.arange(n))
        u, v = u[holds], v[holds]


def _settle(
    nodes: _Labels,
    overlaps: _Overlaps,
    trust_of_label: NDArray[np.int64],
    group: NDArray[np.int64],
    is_painted: NDArray[np.bool_],
    is_fragment: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups by falling trust, and for each the group that it is a piece of, or itself."""
    n_groups = is_fragment.size
    painted = np.flatnonzero(is_painted)
    trust = np.zeros(n_groups, np.int64)
    area = np.zeros(n_groups, np.int64)
    index = np.full(n_groups, nodes.size, np.int64)
    np.maximum.at(trust, group[painted], trust_of_label[painted])
    np.add.at(area, group[painted], nodes.area[painted])
    np.minimum.at(index, group[painted], painted)
    seen = is_painted[overlaps.u] & is_painted[overlaps.v]
    a, b, shared = group[overlaps.u[seen]], group[overlaps.v[seen]], overlaps.shared[seen]
    inside = a == b
    np.subtract.at(area, a[inside], shared[inside])  # what two parts of a cell share is one
    # Among cut ones the larger says more; what may be dropped comes last and takes nothing along.
    order = np.lexsort((index, -np.where(trust == 0, area, 0), -trust, is_fragment))
    a, b, shared = a[~inside], b[~inside], shared[~inside]
    table = coo_array(
        (np.concatenate([shared, shared]), (np.concatenate([a, b]), np.concatenate([b, a]))),
        shape=(n_groups, n_groups),
    ).tocsr()
    table.sum_duplicates()
    # The pixels that three parts share are subtracted three times; a cell has one, at least.
    parent = _find_pieces(
        order, np.maximum(area, 1), table.indptr.astype(np.int64),
        table.indices.astype(np.int64), table.data.astype(np.int64), SHARE,
    )  # fmt: skip
    return order, parent


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_pieces(
    order: NDArray[np.int64],
    area: NDArray[np.int64],
    starts: NDArray[np.int64],
    others: NDArray[np.int64],
    shared: NDArray[np.int64],
    share: float,
) -> NDArray[np.int64]:
    """For each group the kept group that covers most of it, if such groups cover it; else itself.

    Parameters
    ----------
    order
        In which groups are looked at.
    area
        Of each, px.
    starts, others, shared
        Pixels that groups share, as a CSR matrix.
    share
        Of its area, from which a group is covered.
    """
    parent = np.full(order.size, -1, np.int64)
    for group in order:
        covered, most, best = 0, 0, group
        for k in range(starts[group], starts[group + 1]):
            other = others[k]
            if parent[other] == other:
                covered += shared[k]
                if shared[k] > most or (shared[k] == most and other < best):
                    most, best = shared[k], other
        parent[group] = best if covered >= share * area[group] else group
    return parent


def _find_fragments(
    layout: Layout, nodes: _Labels, group: NDArray[np.int64], n_groups: int
) -> NDArray[np.bool_]:
    """Groups whose labels are all near a border, where a tile that has none of them sees better."""
    is_fragment = np.ones(n_groups, np.bool_)
    long = (nodes.box[:, 2:] - nodes.box[:, :2]).max(axis=1, initial=0)
    is_fragment[group[nodes.distance >= np.maximum(long, NEAR_PX)]] = False
    n_tiles = nodes.first.size - 1
    knowing = np.unique(group * n_tiles + nodes.tile)
    asked = is_fragment[group]
    for tile, start in enumerate(nodes.first[:-1].tolist()):
        labels = start + np.flatnonzero(asked[start : int(nodes.first[tile + 1])])
        if not labels.size:
            continue
        seen = np.zeros(labels.size, np.bool_)
        for other in layout.neighbours[tile]:
            ignorant = ~np.isin(group[labels] * n_tiles + other, knowing)
            seen |= ignorant & layout.holds_better(other, nodes.box[labels], nodes.distance[labels])
        is_fragment[group[labels[~seen]]] = False
    return is_fragment


def _list_places(
    nodes: _Labels, group: NDArray[np.int64], chosen: NDArray[np.int64]
) -> tuple[Place, ...]:
    """Boxes and tiles of some groups, in raster order."""
    members: dict[int, list[int]] = {int(each): [] for each in chosen}
    for label in np.flatnonzero(np.isin(group, chosen)).tolist():
        members[int(group[label])].append(label)
    places = []
    for labels in members.values():
        box = nodes.box[labels]
        (y0, x0), (y1, x1) = box[:, :2].min(axis=0).tolist(), box[:, 2:].max(axis=0).tolist()
        tiles = tuple(sorted(set(nodes.tile[labels].tolist())))
        places.append(Place(Region(y0, x0, y1, x1), tiles))
    return tuple(sorted(places, key=lambda place: (place.region, place.tiles)))
