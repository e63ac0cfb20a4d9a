"""The merging of `densebatch.merging.decision`, written again with sets of pixels and loops.

It follows the rules as the module's docstring states them, and shares no code with it.
"""

from __future__ import annotations

import itertools

INFINITE = 2**31 - 1


def cells_of(tile):
    """`{label: set of slide pixels}` of a tile `(y0, x0, labels)`."""
    y0, x0, labels = tile
    found = {}
    for y, row in enumerate(labels.tolist()):
        for x, label in enumerate(row):
            if label:
                found.setdefault(label, set()).add((y + y0, x + x0))
    return found


def distance(pixels, own, ground):
    """To the nearest pixel just outside the tile, in the rows and columns of the box of `pixels`,
    that another tile holds; less one."""
    ys, xs = [y for y, _ in pixels], [x for _, x in pixels]
    rows, cols = range(min(ys), max(ys) + 1), range(min(xs), max(xs) + 1)
    y0, x0, y1, x1 = own
    gaps = [INFINITE]
    if any((y0 - 1, x) in ground for x in cols):
        gaps.append(min(ys) - y0)
    if any((y1, x) in ground for x in cols):
        gaps.append(y1 - 1 - max(ys))
    if any((y, x0 - 1) in ground for y in rows):
        gaps.append(min(xs) - x0)
    if any((y, x1) in ground for y in rows):
        gaps.append(x1 - 1 - max(xs))
    return min(gaps)


def box_of(tile):
    y0, x0, labels = tile
    return y0, x0, y0 + labels.shape[0], x0 + labels.shape[1]


def pixels_of(box):
    y0, x0, y1, x1 = box
    return {(y, x) for y in range(y0, y1) for x in range(x0, x1)}


def components(nodes, edges):
    group = {node: node for node in nodes}
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            low = min(group[a], group[b])
            for node in (a, b):
                if group[node] != low:
                    group[node], changed = low, True
    found = {}
    for node in nodes:
        root = node
        while group[root] != root:
            root = group[root]
        found.setdefault(root, []).append(node)
    return sorted(found.values())


def merge(tiles):
    """`(cells as lists of pixel sets in the order of painting, boxes of cells that none holds)`."""
    tiles = sorted(tiles, key=lambda tile: tile[:2])
    boxes = [box_of(tile) for tile in tiles]
    grounds = [pixels_of(box) for box in boxes]
    pixels, trust = {}, {}
    for t, tile in enumerate(tiles):
        beyond = set().union(*(g for k, g in enumerate(grounds) if k != t), set())
        cells = cells_of(tile)
        for k, label in enumerate(sorted(cells, key=lambda label: min(cells[label]))):
            pixels[t, k] = cells[label]
            trust[t, k] = distance(cells[label], boxes[t], beyond)
    nodes = sorted(pixels)
    far = dict(trust)
    for a, b in itertools.permutations(nodes, 2):
        shared = 2 * len(pixels[a] & pixels[b]) if a[0] != b[0] else 0
        if shared >= len(pixels[a]) and len(pixels[a]) < len(pixels[b]) and far[a] and far[b]:
            others = set().union(*(g for k, g in enumerate(grounds) if k != a[0]), set())
            bound = distance(pixels_of_box(pixels[b]), boxes[a[0]], others)
            is_most = 3 * len(pixels[a]) > 2 * len(pixels[b])
            trust[a] = min(trust[a], max(1, bound) - (0.5 if is_most else 0))

    def shares_half(a, b):
        return 2 * len(pixels[a] & pixels[b]) >= min(len(pixels[a]), len(pixels[b]))

    edges = []
    for s, t in itertools.combinations(range(len(tiles)), 2):
        band = grounds[s] & grounds[t]
        if not band:
            continue
        ones = [node for node in nodes if node[0] == s]
        others = [node for node in nodes if node[0] == t]

        def score(a, b, band=band):
            u, v = pixels[a] & band, pixels[b] & band
            return (len(u & v) / max(1, len(u | v)), len(u & v))

        for a in ones:
            best = min(others, key=lambda b: (*(-n for n in score(a, b)), b), default=None)
            if best is None or score(a, best)[1] == 0:
                continue
            if a != min(ones, key=lambda c: (*(-n for n in score(c, best)), c)):
                continue
            iou = score(a, best)[0]
            both_cut = far[a] == far[best] == 0
            if (iou >= 0.3 and shares_half(a, best)) or (both_cut and iou >= 0.5):
                edges.append((a, best))

    while True:
        groups = components(nodes, edges)
        leaving = set()
        for group in groups:
            top = min(group, key=lambda node: (-trust[node], node))
            if trust[top] > 0:
                leaving |= {m for m in group if m != top and not shares_half(m, top)}
        kept = [(a, b) for a, b in edges if (a in leaving) == (b in leaving)]
        if len(kept) == len(edges):
            break
        edges = kept

    painted = []
    for group in groups:
        top = min(group, key=lambda node: (-trust[node], node))
        members = [top] if trust[top] > 0 else group
        is_fragment = all(far[m] < max(3, longest_side(pixels[m])) for m in group) and all(
            any(
                pixels_of_box(pixels[m]) <= ground
                and distance(pixels[m], boxes[t], set().union(*grounds[:t], *grounds[t + 1 :]))
                > far[m]
                for t, ground in enumerate(grounds)
                if t not in {n[0] for n in group}
            )
            for m in group
        )
        inside = sum(len(pixels[a] & pixels[b]) for a, b in itertools.combinations(members, 2))
        area = sum(len(pixels[m]) for m in members) - inside
        painted.append((-trust[top], is_fragment, -area if trust[top] == 0 else 0, members, area))
    painted.sort(key=lambda item: (item[1], item[0], item[2], min(item[3])))
    stands = []
    for item in painted:
        covered = sum(
            len(pixels[m] & pixels[n]) for m in item[3] for other in stands for n in other[3]
        )
        if 2 * covered < max(1, item[4]):
            stands.append(item)
    stands = [item for item in stands if not item[1]]
    cells = [set().union(*(pixels[m] for m in item[3])) for item in stands]
    larger = [cell for cell, item in zip(cells, stands, strict=True) if item[0] == 0]
    return cells, larger


def longest_side(pixels):
    return max(1 + max(p[axis] for p in pixels) - min(p[axis] for p in pixels) for axis in (0, 1))


def pixels_of_box(pixels):
    ys, xs = [y for y, _ in pixels], [x for _, x in pixels]
    return pixels_of((min(ys), min(xs), max(ys) + 1, max(xs) + 1))


def paint(cells, labels):
    """Fill an image, the first cell first; returns the pixels that several claim."""
    owner, contested = {}, set()
    for rank, cell in enumerate(cells, 1):
        contested |= cell & owner.keys()
        for pixel in cell - owner.keys():
            owner[pixel] = rank
    for (y, x), rank in owner.items():
        labels[y, x] = rank
    return len(contested)
