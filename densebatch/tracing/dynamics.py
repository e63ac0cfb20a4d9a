"""The two parts of tracing that take most of its time, behind one face for CPU and device.

`choose_dynamics` is where it is decided who follows pixels and measures flow errors; the rest of
tracing need not know, because the results are the same to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from densebatch.tracing import follow, quality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from densebatch.tracing.candidates import Candidates
    from densebatch.tracing.follow_plain import Bounds


class Dynamics(Protocol):
    """What can be done with the flows of one window."""

    def follow(
        self,
        foreground: NDArray[np.bool_],
        bounds: Bounds,
        iterations: int,
        limit: float,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Where each foreground pixel ends and how far it got; see `follow.follow`.

        Parameters
        ----------
        foreground
            `(h, w)` bool; the pixels to follow.
        bounds
            Of the slide, in pixels of the window.
        iterations
            Steps.
        limit
            A pixel that gets further than this from its start, along an axis, is dropped; px.

        Returns
        -------
        ends : `(h, w)` int32
        travel : `(h, w)` float32
        """
        ...

    def measure_errors(self, labels: NDArray[np.int32], cells: Candidates) -> NDArray[np.float64]:
        """Flow error of each kept candidate, 0 for the others; see `quality.measure_errors`."""
        ...


class CpuDynamics:
    """On the processor that calls, by one thread.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32, finite: dy, dx in pixels per step.
    """

    def __init__(self, flows: NDArray[np.float32]) -> None:
        self._flows = flows

    def follow(
        self,
        foreground: NDArray[np.bool_],
        bounds: Bounds,
        iterations: int,
        limit: float,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `Dynamics.follow`."""
        return follow.follow(self._flows, foreground, bounds, iterations, limit)

    def measure_errors(self, labels: NDArray[np.int32], cells: Candidates) -> NDArray[np.float64]:
        """See `Dynamics.measure_errors`."""
        errors: NDArray[np.float64] = quality.measure_errors(labels, cells, self._flows)
        return errors


def choose_dynamics(flows: NDArray[np.float32], device: str) -> Dynamics:
    """Who works on a window's flows.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32, finite: dy, dx in pixels per step.
    device
        `cpu`, which does without PyTorch, or a device of PyTorch.

    Raises
    ------
    MemoryError
        If the device has too little memory left; also from the methods of what is returned.
    """
    if device == "cpu":
        return CpuDynamics(flows)
    from densebatch.tracing.device import DeviceDynamics  # imports PyTorch, which takes seconds

    return DeviceDynamics(flows, device)
