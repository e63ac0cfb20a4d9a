"""How a step tells what it found."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def tell(**values: Any) -> None:  # noqa: ANN401
    """Print what was found, at once: a step that is ended has told what it found until then."""
    print(json.dumps(values), flush=True)


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Tell under this name how many seconds the block took."""
    start = time.perf_counter()
    yield
    tell(**{name: round(time.perf_counter() - start, 4)})
