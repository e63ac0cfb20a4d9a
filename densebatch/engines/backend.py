"""What a backend is: the protocol, the names of all kinds, and the shapes that go in and out.

A backend evaluates the network. It takes batches of one fixed shape and returns the trusted part
of each patch as float16. It must give a patch the same bits whatever else it is evaluating, in
whichever lane, beside whichever patches; `tests/engines/test_backend.py` holds every one to that.
Different backends round differently: a run uses one, and its name is part of the run's identity.
`make` makes them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from densebatch.base.geometry import Region

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Lattice

REFERENCE = "torch"
"""The backend that all others are compared with: PyTorch, eager, float32."""

Precision = Literal["f32", "bf16", "int8"]


@dataclass(frozen=True)
class Traits:
    """What a backend is.

    Attributes
    ----------
    library : that evaluates the network
    precision : of most of the arithmetic
    devices : that it runs on
    """

    library: Literal["torch", "compile", "openvino"]
    precision: Precision
    devices: tuple[str, ...]


BACKENDS: Mapping[str, Traits] = {
    "torch": Traits("torch", "f32", ("cpu", "cuda")),
    "torch-bf16": Traits("torch", "bf16", ("cpu", "cuda")),
    "compile": Traits("compile", "f32", ("cpu", "cuda")),
    "compile-bf16": Traits("compile", "bf16", ("cpu", "cuda")),
    "openvino": Traits("openvino", "f32", ("cpu",)),
    "openvino-bf16": Traits("openvino", "bf16", ("cpu",)),
    "openvino-int8": Traits("openvino", "int8", ("cpu",)),
}


@dataclass(frozen=True)
class Engine:
    """What evaluates a run's network: part of the run's identity, for it decides the last bits.

    Attributes
    ----------
    backend : a key of `BACKENDS`
    device : one of its devices
    quantised : sha256 of the quantised network in the work folder; None but for int8
    """

    backend: str = REFERENCE
    device: str = "cpu"
    quantised: str | None = None


@dataclass(frozen=True)
class PatchShape:
    """Size of a patch in pixels, and the part of it that is trusted."""

    height: int
    width: int
    kept: Region

    @property
    def area(self) -> int:
        """Pixels of a patch."""
        return self.height * self.width


def patch_shape(lattice: Lattice) -> PatchShape:
    """The shape of all patches of a lattice."""
    y, x = lattice.y, lattice.x
    kept = Region(y.margin, x.margin, y.margin + y.step, x.margin + x.step)
    return PatchShape(y.patch, x.patch, kept)


class Backend(Protocol):
    """A network ready to be evaluated.

    Attributes
    ----------
    device : where it runs, `cpu` or `cuda`
    batch : patches that a call takes, no fewer and no more
    lanes : calls that may run at the same time, from as many threads
    """

    device: str
    batch: int
    lanes: int

    def evaluate(self, patches: NDArray[np.float32]) -> NDArray[np.float16]:
        """Flows and logits of the trusted parts of a batch of patches.

        Parameters
        ----------
        patches
            `(batch, inputs, h, w)` float32: what the network sees, C-contiguous.

        Returns
        -------
        ndarray
            `(batch, 3, kept_h, kept_w)` float16, new.
        """
        ...


def evaluate_patches(
    backend: Backend, patches: Sequence[NDArray[np.float32]]
) -> NDArray[np.float16]:
    """Flows and logits of the trusted parts of any number of patches.

    Parameters
    ----------
    backend
        It gets batches of its own size, the last one padded, from as many threads as it has lanes.
    patches
        `(inputs, h, w)` float32 each.

    Returns
    -------
    ndarray
        `(n, 3, kept_h, kept_w)` float16, in order.
    """

    def evaluate(start: int) -> NDArray[np.float16]:
        some = patches[start : start + backend.batch]
        batch = np.zeros((backend.batch, *some[0].shape), np.float32)
        for place, patch in zip(batch, some, strict=False):
            place[:] = patch
        return backend.evaluate(batch)[: len(some)]

    starts = range(0, len(patches), backend.batch)
    if backend.lanes == 1:
        return np.concatenate([evaluate(start) for start in starts])
    return np.concatenate(list(_threads(backend.lanes).map(evaluate, starts)))


@lru_cache(maxsize=1)
def _threads(lanes: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(lanes, thread_name_prefix="densebatch-lane")
