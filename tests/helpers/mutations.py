"""Files with something wrong in them, and what a reader makes of them."""

from __future__ import annotations

import random

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide

_MAX_PX = 4096**2


def read_or_be_refused(path, most_values, **chosen):
    """All pixels of a damaged slide; "refused" if it was, in one sentence that names it.

    One that says it has more than `most_values` is not read: "another size".
    """
    try:
        slide = open_slide(path, **chosen)
        info = slide.info
        if info.height * info.width * len(info.channels) > most_values:
            return "another size"
        return slide.read_planes(0, len(info.channels), Region(0, 0, info.height, info.width))
    except InputError as error:
        text = str(error)
        assert "\n" not in text
        assert "Traceback" not in text
        assert path.name in text
        return "refused"


def mutate(data: bytes, seed: int, heads: tuple[int, ...] = (0,)) -> bytes:
    """Cut, flipped, or with other numbers near a place where a header is (`heads`; -1 the end)."""
    rng, damaged = random.Random(seed), bytearray(data)
    kind = seed % 4
    if kind == 0:
        return data[: rng.randrange(1, len(data))]
    if kind == 1:
        for _ in range(rng.randint(1, 20)):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(damaged)
    head = rng.choice(heads)
    start = head if head >= 0 else max(0, len(data) - 6000)
    for _ in range(rng.randint(1, 3)):
        at = min(start + rng.randrange(6000), len(data) - 8)
        if kind == 2:
            damaged[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        else:
            n = rng.choice([1, 2, 4, 8])
            damaged[at : at + n] = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
    return bytes(damaged)


def read_damaged(path, planes, *, is_coded=False, **chosen):
    """What comes of reading a damaged file: one sentence, or pixels that are mostly right.

    Where pixels come they must be those of `planes`, but for a few that were themselves changed;
    and a part that is lost is an error, never 0 without a word. Of blocks that are coded
    (`is_coded`) nothing tells wrong ones from right ones if both can be decoded, so that only the
    form is looked at.
    """
    found = read_or_be_refused(path, _MAX_PX, **chosen)
    if isinstance(found, str):
        return found
    if found.shape != planes.shape or found.dtype != planes.dtype:
        return "another size"
    wrong = ~((found == planes) | (np.isnan(found) & np.isnan(planes)))
    lost = wrong & (found == 0)
    if is_coded:
        return "read"
    if any("ended early" in note for note in open_slide(path, **chosen).info.notes):
        return "said to be incomplete"
    assert lost.mean() < 0.005, f"{lost.mean():.2%} of the pixels are 0 and should not be"
    assert wrong.mean() < 0.02, f"{wrong.mean():.2%} of the pixels are others"
    return "read"
