"""The network in eight bits, for `openvino-int8`: made on the client, once, before a run.

NNCF's post-training quantisation needs to see what the network will see. It is shown patches of
the run's own slide, spread evenly over those that will be evaluated, so that the same run finds
the same numbers again. Weights and inputs of convolutions become 8-bit integers; style and last
layer stay in float32.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.plan import Plan

_PATCHES = 24
_FILE = "network-int8.zip"


def choose_patches(plan: Plan) -> list[tuple[int, int]]:
    """Cores whose patches calibrate: evenly spread over the active ones, in raster order."""
    active = np.argwhere(plan.active_cores)
    places = np.unique(np.linspace(0, len(active) - 1, _PATCHES).round().astype(int))
    return [(int(row), int(col)) for row, col in active[places]] if len(active) else []


def quantise(plan: Plan) -> bytes:
    """The plan's network in eight bits, calibrated on the plan's slide.

    Parameters
    ----------
    plan
        Surveyed.

    Returns
    -------
    bytes
        As `backend_openvino.pack_model`; the same numbers for the same plan, machine and versions.

    Raises
    ------
    InputError
        If the slide has no patch to calibrate on.
    """
    from densebatch.backend_openvino import convert_network, pack_model
    from densebatch.backends import check_backend, patch_shape
    from densebatch.inference import read_network_input
    from densebatch.models import load_network

    check_backend("openvino-int8", "cpu")
    wanted = choose_patches(plan)
    if not wanted:
        raise InputError(
            f"{plan.slide.path}: has no patch with signal to calibrate openvino-int8 on; choose "
            "the backend openvino"
        )
    patches = [read_network_input(plan, plan.lattice.patch(*core))[None] for core in wanted]
    model = convert_network(load_network(plan.model), patch_shape(plan.lattice))
    return pack_model(quantise_model(model, patches))


def quantise_model(model: Any, patches: list[NDArray[np.float32]]) -> Any:  # noqa: ANN401
    """An `openvino.Model` of `backend_openvino.convert_network` in eight bits.

    Parameters
    ----------
    model
        Left as it is.
    patches
        `(1, 2, h, w)` float32 each: what to calibrate on.
    """
    # see `backend_openvino.import_openvino`; NNCF reports likewise
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(patches),
        subset_size=len(patches),
        preset=nncf.QuantizationPreset.MIXED,
        # the style scales whole feature maps, and the last layer's errors are the flows' own
        ignored_scope=nncf.IgnoredScope(names=[_find_last_layer(model)], types=["MatMul"]),
    )


def _find_last_layer(model: Any) -> str:  # noqa: ANN401
    """Name of the convolution whose output, with its bias, is the network's."""
    node = model.outputs[0].get_node()
    while node.get_type_name() != "Convolution":
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def write_quantised(work: Path, packed: bytes) -> None:
    """Put the quantised network where workers look for it."""
    from densebatch.journal import write_atomic

    write_atomic(work / _FILE, packed)


def read_quantised(work: Path, digest: str) -> bytes:
    """The quantised network of a work folder.

    Raises
    ------
    InputError
        If it is missing or not the one with this sha256.
    """
    path = work / _FILE
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        found = digest_quantised(packed)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{path}: is damaged ({error})") from error
    if found != digest:
        raise InputError(f"{path}: is not the network that the run was planned with")
    return packed


def digest_quantised(packed: bytes) -> str:
    """Sha256 of the numbers in `quantise`'s result, for `backends.Engine.quantised`.

    The other part, the graph, has names in it that count up in every process.

    Raises
    ------
    zipfile.BadZipFile, KeyError
        If either part is damaged or missing.
    """
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        archive.read("network.xml")  # checks its CRC
        return hashlib.sha256(archive.read("network.bin")).hexdigest()
