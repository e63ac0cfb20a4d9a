"""Weights and what must be known to use them: bundled, fetched, or any checkpoint of a known kind.

A model's resolution, patch, percentiles and inputs belong to it and are read from its card
(`models.card`). Torch takes a second to import, so it is imported where weights are touched: a
plan with a bundled model does without.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import refuse_address, write_atomic
from densebatch.base.log import log_event
from densebatch.models import zoo
from densebatch.models.card import MAX_PATCH_PX, MIN_PATCH_PX, read_use
from densebatch.models.flow_models import get_kind
from densebatch.models.weights_file import CARD_KEY, DIAMETERS, digest_weights, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

log = logging.getLogger(__name__)

CPNET = "cpnet"
"""The kind of the bundled models, and of all that are trained here."""


@dataclass(frozen=True)
class Model:
    """A model's identity and the conditions it was trained under.

    Attributes
    ----------
    name : how the user names it
    path : file with the weights
    sha256 : of that file
    widths : channels of the network's input and resolutions; of another kind the sizes that
        `flow_models.FlowModel.infer_sizes` gives
    diameter_px : mean cell diameter at the network's scale, pixels
    um_per_px : resolution of the network's scale; None if the model fixes a diameter only
    default_diameter_px : diameter that a slide's cells are taken to have if nothing is known
        (Cellpose's `diam_labels`)
    patch_px : side of a network patch
    margin_px : pixels at a patch's border that are not trusted
    percentiles : of a slide's tissue that become 0 and 1
    nuclei : whether the network was trained with a nuclear channel
    card : provenance as written by training
    notes : what was assumed where the file does not tell, a sentence each
    kind : of network, a name that `flow_models.get_kind` takes
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
    notes: tuple[str, ...] = ()
    kind: str = CPNET


def list_bundled() -> list[str]:
    """Names of the models in the package."""
    folder = resources.files("densebatch.models") / "weights"
    return sorted(
        item.name.removesuffix(".safetensors")
        for item in folder.iterdir()
        if item.name.endswith(".safetensors")
    )


def bundled_path(name: str) -> Path:
    """Path of a bundled model's file."""
    return Path(str(resources.files("densebatch.models") / "weights" / f"{name}.safetensors"))


def _read_digests() -> dict[str, str]:
    """SHA-256 of the bundled files by name, as `sha256sum` writes them."""
    text = (resources.files("densebatch.models") / "weights" / "bundled.sha256").read_text()
    return {name: digest for digest, name in map(str.split, text.splitlines())}


def find_model(name: str) -> Model:
    """Resolve the name of a bundled or fetched model, or a checkpoint file.

    Parameters
    ----------
    name
        A bundled name; a name of `zoo.KNOWN` that was fetched; or the path of a `.safetensors`
        file written by `densebatch train` or of a Cellpose checkpoint. A known name is never
        taken for a file: `./NAME` is.

    Returns
    -------
    Model
        With the sha256 of the file.

    Raises
    ------
    InputError
        If there is no such model, a known one was not fetched or is no longer what was fetched,
        or the file is of no kind that is installed; nothing is substituted, and nothing is
        downloaded.
    """
    path, pin = Path(name), None
    if name in list_bundled():
        path = bundled_path(name)
        digest = digest_weights(path)
        # The digest vouches for the content, so the weights need not be read and checked here.
        if _read_digests().get(path.name) != digest:
            raise InputError(
                f"model {path}: is not the file that came with densebatch; install it again"
            )
        return _make_model(name, path, digest, CPNET, *read_header(path))
    if name in zoo.KNOWN:
        path, pin = zoo.locate(name)
    elif not path.is_file() and name in zoo.REFUSED:
        raise InputError(f"model {name!r} cannot be used: {zoo.REFUSED[name]}")
    elif not path.is_file():
        refuse_address(path)
        bundled = ", ".join(list_bundled()) or "none"
        raise InputError(
            f"model {name!r} is neither bundled ({bundled}), nor one that `densebatch models "
            f"fetch` knows ({', '.join(zoo.KNOWN)}), nor a file; give such a name or the path of a "
            ".safetensors or Cellpose checkpoint"
        )
    digest = digest_weights(path)
    if pin is not None:
        zoo.check_pinned(pin, digest, str(path))
        return _apply_zoo(_read_model(name, path, digest), pin)
    return _read_model(path.stem, path, digest)


def check_checkpoint(path: Path, kind: str) -> None:
    """Refuse a file that does not hold the weights of a network of a kind.

    Raises
    ------
    InputError
        If it does not.
    """
    found = _read_model(path.name, path, digest_weights(path)).kind
    if found != kind:
        raise InputError(
            f"model {path}: is of {get_kind(found).title}; accepted are {get_kind(kind).title}"
        )


def _apply_zoo(model: Model, pin: zoo.Pin) -> Model:
    """Add what stock Cellpose knows of its own models by name and their files do not say."""
    known = zoo.KNOWN[pin.name]
    model = replace(model, nuclei=known.nuclei, card={"source": pin.url, "fetched": pin.fetched})
    if known.diameter_px is None:
        return model
    from densebatch.models.checkpoint import read_state

    if model.kind != CPNET:
        return model
    # Stock ignores what the file of a built-in model states as its scale, and so do we.
    state, _ = read_state(model.path, model.sha256)
    default = model.default_diameter_px if "diam_labels" in state else known.diameter_px
    return replace(model, diameter_px=known.diameter_px, default_diameter_px=default, notes=())


def _read_model(name: str, path: Path, digest: str) -> Model:
    """Read a file that may come from anywhere, so its weights are checked first."""
    from densebatch.models.checkpoint import check_state, read_state, tell_kind

    state, card = read_state(str(path), digest)
    kind = tell_kind(str(path), state, card)
    check_state(str(path), state, kind)
    shapes = {key: value.shape for key, value in state.items()}
    diameters = {key: float(state[key][0]) for key in DIAMETERS if key in state}
    if kind.name != CPNET:
        read_state.cache_clear()  # a gigabyte, which planning does without
    return _make_model(name, path, digest, kind.name, card, shapes, diameters)


def _make_model(
    name: str,
    path: Path,
    digest: str,
    kind_name: str,
    card: dict[str, Any],
    shapes: Mapping[str, Sequence[int]],
    diameters: Mapping[str, float],
) -> Model:
    for key, value in diameters.items():
        if not 0.1 <= value <= 10_000:
            raise InputError(f"model {path}: {key} is {value:g} px; accepted are 0.1 to 10000")
    kind = get_kind(kind_name)
    sizes = kind.infer_sizes(shapes)
    model = Model(
        name=name,
        path=str(path.resolve()),
        sha256=digest,
        widths=sizes,
        um_per_px=None,
        kind=kind_name,
        **kind.describe(sizes, diameters),
    )
    if not MIN_PATCH_PX <= model.patch_px <= MAX_PATCH_PX:
        raise InputError(
            f"model {path}: takes patches of {model.patch_px} px; accepted are {MIN_PATCH_PX} to "
            f"{MAX_PATCH_PX}"
        )
    if kind_name == CPNET and "diam_mean" not in diameters:
        note = (
            f"model {name} states no diam_mean: its network is taken to know cells of "
            f"{model.diameter_px:g} px, as Cellpose takes it"
        )
        model = replace(model, notes=(note,))
    if "use" not in card:
        return model
    used = replace(model, **read_use(path, card["use"]), card=card)
    if not kind.stretches and used.patch_px != model.patch_px:
        raise InputError(
            f"model {path}: takes patches of {model.patch_px} px and no others, and is to have "
            f"{used.patch_px}"
        )
    # A card comes with diameters that are meant, whatever a bare file of its kind is taken to have.
    return replace(
        used,
        diameter_px=diameters.get("diam_mean", used.diameter_px),
        default_diameter_px=diameters.get("diam_labels", used.default_diameter_px),
    )


def load_network(model: Model) -> Any:  # noqa: ANN401  each kind has a type of its own
    """Build the network of a model and load its weights, in evaluation mode on the CPU.

    Returns
    -------
    torch.nn.Module
        Of the type that the model's kind builds; `network.CPnet` of most.

    Raises
    ------
    InputError
        If a weight is missing, left over or of another shape, or the file is no longer the one
        that `model` describes.
    """
    import torch

    from densebatch.models.checkpoint import check_state, read_state, tell_kind

    if digest_weights(Path(model.path)) != model.sha256:
        raise InputError(f"model {model.path}: has changed since the run was planned")
    state, card = read_state(model.path, model.sha256)
    kind = tell_kind(model.path, state, card)
    check_state(model.path, state, kind)
    if kind.name == CPNET:
        network = kind.build(model.widths)
        # Counters and diameters that an old file lacks keep the new network's values.
        network.load_state_dict(
            {**network.state_dict(), **{k: v.float() for k, v in state.items()}}
        )
    else:
        # A large network takes the file's tensors as they are, for a copy would be a gigabyte.
        with torch.device("meta"):
            network = kind.build(model.widths)
        diameters = {key: torch.full((1,), model.diameter_px) for key in DIAMETERS}
        read_state.cache_clear()
        held = {k: v.clone() if k in DIAMETERS else v.float() for k, v in state.items()}
        wanted = set(network.state_dict())
        network.load_state_dict(
            {**{k: v for k, v in diameters.items() if k in wanted}, **held}, assign=True
        )
    log_event(log, "model loaded", model=model.name, path=model.path, sha256=model.sha256)
    return network.eval()


def save_model(
    network: nn.Module,
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
        Conditions of use, see `Model`.
    card
        Provenance: data hashes, recipe, seed, scores.
    half
        Store weights as float16.

    Raises
    ------
    ValueError
        If `half` and a weight is out of its range.
    """
    import torch
    from safetensors.torch import save

    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        # Statistics and diameters stay exact: float16 would change them or round them to zero.
        exact = "running_" in name or name.startswith("diam_")
        narrow = half and tensor.is_floating_point() and not exact
        if narrow and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"weights {name!r} are beyond float16: the network has diverged")
        state[name] = tensor.to(torch.float16 if narrow else tensor.dtype).contiguous().clone()
    use = {
        "um_per_px": um_per_px,
        "patch_px": patch_px,
        "margin_px": margin_px,
        "percentiles": list(percentiles),
        "nuclei": nuclei,
    }
    document = json.dumps({**card, "use": use}, sort_keys=True)
    write_atomic(path, save(state, metadata={CARD_KEY: document}))


def count_weights(model: Model) -> int:
    """Number of trained parameters (statistics and counters are none)."""
    import torch

    with torch.device("meta"):
        network = get_kind(model.kind).build(model.widths)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
