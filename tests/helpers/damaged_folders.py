"""OME-Zarr folders with something wrong in one file, and what the reader makes of them."""

from __future__ import annotations

import json
import random
from typing import NamedTuple

import numpy as np

from tests.helpers.mutations import mutate, read_or_be_refused

_MAX_PX = 2048**2
_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
_KINDS = (
    *("bits of a chunk", "a chunk that is cut", "a header", "a chunk that is gone"),
    *("bits of a document", "a document that lies", "a document that lies", "a lost document"),
)
_LIES = (
    *(None, True, 0, -1, 1, 2, 3, 7, 64, 2**31, 2**63, 1e300, "", "x", "/", ".", "<u2", "<u4"),
    *("uint8", "float64", "zstd", "gzip", "bytes", "blosc", [], {}, [1, 2], [0, 0, 0], "0", "../0"),
)


class Damage(NamedTuple):
    """What was done to a folder.

    Attributes
    ----------
    kind : one of the kinds, in words
    file : the file, relative to the folder
    """

    kind: str
    file: str

    @property
    def is_chunk(self):
        return "chunk" in self.kind or self.kind == "a header"


def damage_folder(folder, seed):
    """Change one file of a folder."""
    rng = random.Random(seed)
    kind = _KINDS[seed % len(_KINDS)]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    of_chunk = "chunk" in kind or kind == "a header"
    path = rng.choice(
        [
            file
            for file in files
            if (file.name in _DOCUMENTS) != of_chunk
            # Of the chunks of other levels nobody reads any.
            and (not of_chunk or file.is_relative_to(folder / "0"))
        ]
    )
    data = path.read_bytes()
    damage = Damage(kind, path.relative_to(folder).as_posix())
    if kind.startswith("bits"):
        path.write_bytes(mutate(data, 4 * seed + 1))
    elif kind == "a chunk that is cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "a header":
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(24)
            changed[at if rng.random() < 0.7 else -1 - at] = rng.choice([0, 1, 127, 128, 255])
        path.write_bytes(changed)
    elif kind == "a document that lies":
        path.write_text(json.dumps(_lie(json.loads(data), rng)))
    else:
        path.unlink()
    return damage


def _lie(document, rng):
    """Another value in one place of a document, or one entry less."""
    places = []

    def look(holder):
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                look(holder[key])

    look(document)
    if places:
        holder, key = rng.choice(places)
        value = holder[key]
        if rng.random() < 0.15:
            del holder[key]
        elif type(value) is int and rng.random() < 0.6:
            holder[key] = rng.choice([value + 1, value - 1, 2 * value, value // 2, 1000 * value])
        else:
            holder[key] = rng.choice(_LIES)
    return document


def read_damaged_folder(folder, planes, damage, chunk_px, *, is_checked):
    """What comes of reading a damaged folder: one sentence, or pixels that are right.

    Where a chunk was changed its pixels alone may be others, none at all if it `is_checked` by a
    checksum. No chunk whose file is there is 0.
    """
    found = read_or_be_refused(folder, _MAX_PX)
    if isinstance(found, str):
        return found
    if found.dtype != planes.dtype:
        return "another type"
    c, y, x = (min(pair) for pair in zip(found.shape, planes.shape, strict=True))
    both, truth = found[:c, :y, :x], planes[:c, :y, :x]
    wrong = both != truth
    lost = wrong & (both == 0)
    if damage.is_chunk:
        assert found.shape == planes.shape
        changed = {(c, y // chunk_px[0], x // chunk_px[1]) for c, y, x in np.argwhere(wrong)}
        assert len(changed) <= 1
    if damage.kind == "a chunk that is gone":
        assert (lost == wrong).all()
    else:
        assert not (is_checked and damage.is_chunk and wrong.any())
        # Of a chunk that can be decoded a few values may be 0, as any.
        is_zero = lost.sum() > 20 and not both[wrong].any()
        assert not is_zero, f"{lost.mean():.2%} of the pixels are 0 and should not be"
    if found.shape != planes.shape:
        return "another size"
    if wrong.any():
        return "a chunk lost" if lost.any() else "other values"
    return "read"
