"""StarDist (2D) with a model folder that the user has; nothing is downloaded.

A model of one channel sees the last plane, nuclei; one of as many as there are planes sees all.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.settings import Positive, Share  # noqa: TC001
from densebatch.segmenters.model_files import check_model, digest_model, list_versions, resolve
from densebatch.segmenters.pixel_size import label_at, require_pixel_size
from densebatch.segmenters.segmenter import Options, Segmenter, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import SlideFacts, Tile

NAME = "stardist"
SUMMARY = "StarDist with your own model folder; pip install 'densebatch[stardist]'"
_BYTES_PER_PX = 400
"""Measured with its default network: 280 on tiles of 1024 px; one of 512 px takes 0.25 GB."""
_WINDOW_PX = 512
"""The network sees a tile in windows of this side, or its features would take 1 kB a pixel."""


class StarDistOptions(Options):
    """Options of `stardist`.

    Attributes
    ----------
    model
        Folder with `config.json` and the weights, as `StarDist2D` saves it.
    prob_threshold, nms_threshold
        Those in the folder's `thresholds.json` if not given, else 0.5 and 0.4.
    um_per_px
        Pixel size that the model wants, to which tiles are resampled; as they are if not given.
    """

    model: str
    prob_threshold: Share | None = None
    nms_threshold: Share | None = None
    um_per_px: Positive | None = None


@dataclass(frozen=True)
class StarDist(Segmenter):
    """See the module."""

    def complete_options(self, given: Mapping[str, Any], slide: SlideFacts) -> dict[str, Any]:
        """See `Segmenter`; adds `planes`, how many the model sees, and `model_sha256`."""
        options = read_options(StarDistOptions, NAME, given).model_dump()
        require_pixel_size(NAME, options["um_per_px"], slide)
        folder = Path(resolve(options["model"]))
        config = _read_json(folder / "config.json", {})
        planes = config.get("n_channel_in")
        if config.get("n_dim") != 2 or not any(folder.glob("weights*")):
            raise InputError(
                f"options of the segmenter {NAME}: {folder} is no model; accepted is a folder "
                "with config.json and weights of a 2D model, as StarDist saves it"
            )
        if planes not in (1, len(slide.levels)):
            all_planes = f", or {len(slide.levels)}" if len(slide.levels) > 1 else ""
            raise InputError(
                f"options of the segmenter {NAME}: the model {folder} takes {planes} channels; "
                f"accepted is 1, which is nuclei{all_planes}"
            )
        saved = _read_json(folder / "thresholds.json", {"prob": 0.5, "nms": 0.4})
        for name in ("prob", "nms"):
            if options[f"{name}_threshold"] is None:
                options[f"{name}_threshold"] = float(saved[name])
        found = digest_model(_list_files(folder))
        return options | {"model": str(folder), "planes": planes, "model_sha256": found}

    def label(self, tile: Tile) -> NDArray[Any]:
        """See `Segmenter`."""
        options = tile.options
        network = _load(options["model"], options["model_sha256"])

        def predict(image: NDArray[np.float32]) -> NDArray[Any]:
            seen = image[-options["planes"] :]
            n_windows = tuple(math.ceil(length / _WINDOW_PX) for length in seen.shape[1:])
            labels, _ = network.predict_instances(
                np.moveaxis(seen, 0, -1),
                axes="YXC",
                prob_thresh=options["prob_threshold"],
                nms_thresh=options["nms_threshold"],
                n_tiles=(*n_windows, 1),
                show_tile_progress=False,
            )
            result: NDArray[Any] = labels
            return result

        return label_at(tile, options["um_per_px"], predict)


def make() -> StarDist:
    """The segmenter.

    Raises
    ------
    InputError
        If its packages are not installed.
    """
    packages = list_versions(NAME, ("stardist", "tensorflow"), "densebatch[stardist]")
    return StarDist(NAME, NAME, f"{NAME} 1", packages, _BYTES_PER_PX)


def _list_files(folder: Path) -> list[Path]:
    found = [folder / "config.json", *sorted(folder.glob("weights*"))]
    return [file for file in found if file.is_file()]


def _read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return default
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or not set(default) <= set(found):
        raise InputError(f"{path}: is not as StarDist writes it")
    return found


@lru_cache(maxsize=1)
def _load(path: str, expected: str) -> Any:  # noqa: ANN401
    """The network, once for each process."""
    check_model(NAME, path, _list_files(Path(path)), expected)
    import tensorflow as tf
    from stardist.models import StarDist2D

    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # of a process that has used it already
            tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_op_determinism()
    with contextlib.redirect_stdout(io.StringIO()):  # StarDist tells which weights it loads
        return StarDist2D(None, name=Path(path).name, basedir=str(Path(path).parent))
