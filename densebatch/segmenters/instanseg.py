"""InstanSeg with a TorchScript file that the user has; nothing is downloaded.

Such a file has everything in it, from the network to the labels, so that PyTorch alone runs it. It
holds code, as TorchScript does: take it from where you would take a program from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from densebatch.base.errors import InputError, SegmenterError, describe_cause
from densebatch.base.settings import Positive  # noqa: TC001
from densebatch.segmenters.model_files import check_model, digest_model, resolve
from densebatch.segmenters.pixel_size import label_at, require_pixel_size
from densebatch.segmenters.segmenter import Options, Segmenter, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import SlideFacts, Tile

NAME = "instanseg"
SUMMARY = "InstanSeg with your own TorchScript file"
_BYTES_PER_PX = 2000
"""Measured with InstanSeg's default network: 1400, and 1000 with cells of 15 px side by side."""


class InstanSegOptions(Options):
    """Options of `instanseg`.

    Attributes
    ----------
    model
        TorchScript file; it gets all planes, membrane first.
    target
        Which labels are taken of a model that gives those of cells and of nuclei.
    um_per_px
        Pixel size that the model wants, to which tiles are resampled; as they are if not given.
    device
        Where PyTorch runs it.
    """

    model: str
    target: Literal["cells", "nuclei"] = "cells"
    um_per_px: Positive | None = None
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class InstanSeg(Segmenter):
    """See the module."""

    def complete_options(self, given: Mapping[str, Any], slide: SlideFacts) -> dict[str, Any]:
        """See `Segmenter`; adds `model_sha256`."""
        options = read_options(InstanSegOptions, NAME, given).model_dump()
        require_pixel_size(NAME, options["um_per_px"], slide)
        path = resolve(options["model"])
        if not Path(path).is_file():
            raise InputError(
                f"options of the segmenter {NAME}: {path} is no file; accepted is a TorchScript "
                "file, as InstanSeg exports it"
            )
        return options | {"model": path, "model_sha256": digest_model([Path(path)])}

    def label(self, tile: Tile) -> NDArray[Any]:
        """See `Segmenter`."""
        import torch

        options = tile.options
        model = _load(options["model"], options["model_sha256"], options["device"])

        def predict(image: NDArray[np.float32]) -> NDArray[Any]:
            # A copy, because the model writes into what it gets. An optimised graph would change
            # its arithmetic after the first tiles, and so labels.
            planes = torch.tensor(image, device=options["device"])[None]
            with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                labels = model(planes)
            return _choose(labels.cpu().numpy(), options["target"], image.shape[1:])

        return label_at(tile, options["um_per_px"], predict)


def _choose(output: NDArray[Any], target: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Labels of the target, which the model gives as float32: one plane, or nuclei, then cells."""
    if output.shape[:1] != (1,) or output.ndim != 4 or output.shape[2:] != shape:
        raise SegmenterError(
            f"segmenter {NAME}: the model returned an array of shape {output.shape} for a tile of "
            f"{shape}; accepted are (1, 1 or 2, {shape[0]}, {shape[1]})"
        )
    labels = output[0, 0 if target == "nuclei" else -1]
    whole: NDArray[np.int64] = labels.astype(np.int64)
    if (whole != labels).any():
        raise SegmenterError(f"segmenter {NAME}: the model returned fractions instead of labels")
    return whole


def make() -> InstanSeg:
    """The segmenter."""
    return InstanSeg(NAME, NAME, f"{NAME} 1", {"torch": version("torch")}, _BYTES_PER_PX)


@lru_cache(maxsize=1)
def _load(path: str, expected: str, device: str) -> Any:  # noqa: ANN401
    """The model, once for each process."""
    check_model(NAME, path, [Path(path)], expected)
    import torch

    try:
        return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise SegmenterError(
            f"segmenter {NAME}: {path} cannot be loaded on {device} ({describe_cause(error)}); "
            "accepted is a TorchScript file, as InstanSeg exports it"
        ) from error
