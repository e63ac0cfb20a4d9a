"""Weights and what must be known to use them: bundled, or any Cellpose 1-3 checkpoint file.

A model's resolution, patch, percentiles and inputs belong to it and are read from its card, which
is kept in the safetensors header. Checkpoints are read by name and as tensors only: no pickle is
ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from densebatch.errors import InputError
from densebatch.network import CPnet, infer_widths

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_MODEL = "dense"
_CARD_KEY = "densebatch"


@dataclass(frozen=True)
class ModelSpec:
    """A model's identity and the conditions it was trained under.

    Attributes
    ----------
    name : how the user names it
    path : file with the weights
    sha256 : of that file
    widths : channels of the network's input and resolutions
    diameter_px : mean cell diameter at the network's scale, pixels
    um_per_px : resolution of the network's scale; None if the model fixes a diameter only
    default_diameter_px : diameter that a slide's cells are taken to have if nothing is known
        (Cellpose's `diam_labels`)
    patch_px : side of a network patch
    margin_px : pixels at a patch's border that are not trusted
    percentiles : of a slide's tissue that become 0 and 1
    nuclei : whether the network was trained with a nuclear channel
    card : provenance as written by training
    """

    name: str
    path: str
    sha256: str
    widths: tuple[int, ...]
    diameter_px: float
    um_per_px: float | None
    default_diameter_px: float
    patch_px: int = 224
    margin_px: int = 8
    percentiles: tuple[float, float] = (1.0, 99.0)
    nuclei: bool = True
    card: dict[str, Any] = field(default_factory=dict, hash=False)


def list_bundled() -> list[str]:
    """Names of the models in the package."""
    folder = resources.files("densebatch") / "weights"
    return sorted(
        item.name.removesuffix(".safetensors")
        for item in folder.iterdir()
        if item.name.endswith(".safetensors")
    )


def find_model(name: str) -> ModelSpec:
    """Resolve a bundled model's name or a checkpoint file.

    Parameters
    ----------
    name
        A bundled name, or the path of a `.safetensors` file written by `densebatch train` or of a
        Cellpose 1-3 checkpoint.

    Returns
    -------
    ModelSpec
        With the sha256 of the file.

    Raises
    ------
    InputError
        If there is no such model, or the file is not a CPnet's; nothing is substituted.
    """
    path = Path(name)
    if name in list_bundled():
        path = Path(str(resources.files("densebatch") / "weights" / f"{name}.safetensors"))
    elif not path.is_file():
        known = ", ".join(list_bundled()) or "none"
        raise InputError(
            f"model {name!r} is neither bundled ({known}) nor a file; "
            "give a bundled name or the path of a .safetensors or Cellpose 1-3 checkpoint"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    state, card = _read_state(str(path), digest)
    try:
        widths = infer_widths(state)
    except ValueError as error:
        raise InputError(f"model {path}: {error}; accepted are Cellpose 1-3 networks") from error
    if widths[0] != 2:
        raise InputError(f"model {path}: takes {widths[0]} input channels; accepted are 2")
    diameter = float(state["diam_mean"][0]) if "diam_mean" in state else 30.0
    labels = float(state["diam_labels"][0]) if "diam_labels" in state else diameter
    spec = ModelSpec(
        name=name if name in list_bundled() else path.stem,
        path=str(path.resolve()),
        sha256=digest,
        widths=widths,
        diameter_px=diameter,
        um_per_px=None,
        default_diameter_px=labels,
    )
    use = card.get("use")
    if use:
        use = {**use, "percentiles": tuple(use["percentiles"])}
        spec = replace(spec, **use, card=card)
    return spec


@lru_cache(maxsize=2)
def _read_state(path: str, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and card of a weights file; `digest` keys the cache, so a changed file is re-read."""
    card: dict[str, Any] = {}
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {}).get(_CARD_KEY, "{}"))
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"model {path}: cannot be read as weights ({reason[:120]}); "
            "accepted are .safetensors and Cellpose 1-3 checkpoints (tensors only)"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise InputError(
            f"model {path}: holds no named tensors; accepted are Cellpose 1-3 checkpoints"
        )
    if "W2" in state or any("encoder." in key for key in state):
        raise InputError(
            f"model {path}: is a Cellpose-SAM (4.x) model; accepted are Cellpose 1-3 networks"
        )
    state = {key.removeprefix("module."): value for key, value in state.items()}
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise InputError(f"model {path}: weights {bad[0]!r} are not finite ({len(bad)} tensors)")
    return state, card


def load_network(spec: ModelSpec) -> CPnet:
    """Build the network of a model and load its weights, in evaluation mode on the CPU.

    Raises
    ------
    InputError
        If a weight is missing, left over or of another shape.
    """
    state, _ = _read_state(spec.path, spec.sha256)
    network = CPnet(spec.widths)
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    expected = network.state_dict()
    for name in ("diam_mean", "diam_labels"):
        state.setdefault(name, expected[name])
    for name, tensor in expected.items():
        # batch-norm counters are of no use in evaluation and absent from old files
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
        found = state.get(name)
        if found is None:
            raise InputError(f"model {spec.path}: weights {name!r} are missing")
        if found.shape != tensor.shape:
            raise InputError(
                f"model {spec.path}: weights {name!r} are {tuple(found.shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    surplus = sorted(set(state) - set(expected))
    if surplus:
        raise InputError(f"model {spec.path}: unknown weights {surplus[0]!r} ({len(surplus)})")
    network.load_state_dict(state)
    return network.eval()


def save_model(
    network: CPnet,
    path: Path,
    *,
    um_per_px: float | None,
    patch_px: int,
    margin_px: int,
    percentiles: tuple[float, float],
    nuclei: bool,
    card: Mapping[str, Any],
    half: bool = True,
) -> None:
    """Write weights and card as safetensors.

    Parameters
    ----------
    network
        Trained network.
    path
        Output, `.safetensors`.
    um_per_px, patch_px, margin_px, percentiles, nuclei
        Conditions of use, see `ModelSpec`.
    card
        Provenance: data hashes, recipe, seed, scores.
    half
        Store weights as float16.
    """
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        # running variances can be far below float16's range; they are small, keep them exact
        narrow = half and tensor.is_floating_point() and "running_" not in name
        state[name] = tensor.to(torch.float16 if narrow else tensor.dtype).contiguous().clone()
    use = {
        "um_per_px": um_per_px,
        "patch_px": patch_px,
        "margin_px": margin_px,
        "percentiles": list(percentiles),
        "nuclei": nuclei,
    }
    document = json.dumps({**card, "use": use}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={_CARD_KEY: document})


def choose_rescale(
    spec: ModelSpec, um_per_px: float | None, diameter_px: float | None
) -> tuple[float, str]:
    """Factor from slide pixels to network pixels, and the reason for it in words.

    A stated diameter decides; else pixel sizes, if both are known; else the model's own default.
    A factor within 3 % of 1 is taken as 1: interpolation would cost more than it corrects.

    Raises
    ------
    InputError
        If the factor is outside 1/16 to 8.
    """
    if diameter_px is not None:
        if not (math.isfinite(diameter_px) and diameter_px > 0):
            raise InputError(f"diameter {diameter_px} px: accepted are positive numbers")
        factor = spec.diameter_px / diameter_px
        reason = f"cells of {diameter_px:g} px, network trained on {spec.diameter_px:.3g} px"
    elif spec.um_per_px is not None and um_per_px is not None:
        factor = um_per_px / spec.um_per_px
        reason = f"slide {um_per_px:g} um/px, network {spec.um_per_px:g} um/px"
    elif spec.um_per_px is not None:
        factor = 1.0
        reason = f"pixel size unknown, taken as the network's {spec.um_per_px:g} um/px"
    else:
        factor = spec.diameter_px / spec.default_diameter_px
        reason = (
            f"model's default cell diameter {spec.default_diameter_px:.3g} px, "
            f"network trained on {spec.diameter_px:.3g} px"
        )
    if not 1 / 16 <= factor <= 8:
        raise InputError(
            f"the slide would be rescaled by {factor:.3g} ({reason}); accepted is 0.0625 to 8: "
            "check --pixel-size or --diameter"
        )
    return (1.0 if abs(factor - 1) < 0.03 else factor), reason


def describe(spec: ModelSpec) -> dict[str, Any]:
    """The model's part of a run's record."""
    record = asdict(replace(spec, card={}))
    record.pop("card")
    return record
