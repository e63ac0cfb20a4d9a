"""The network in eight bits, for `openvino-int8`: how it is made, and its file in a run's folder.

NNCF's post-training quantisation needs to see what the network will see. It is shown simulated
tissue, seeded, so that a model has one quantised network whatever the slide
(`planning.engine_choice`); `planning.gate` then compares it with the reference on other tissue.
Weights and inputs of convolutions become 8-bit integers; the style and the first and last layers
stay in float32.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.base.log import log_event

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

QUANTISED_BY = 1
"""Version of this recipe: a network that another one made is made again."""

_FILE = "network-int8.zip"


def quantise_model(model: Any, patches: list[NDArray[np.float32]]) -> Any:  # noqa: ANN401
    """An `openvino.Model` of `openvino.convert_network` in eight bits.

    Parameters
    ----------
    model
        Left as it is.
    patches
        `(1, 2, h, w)` float32 each: what to calibrate on.

    Returns
    -------
    openvino.Model
        A new one.
    """
    from densebatch.engines.openvino import import_openvino

    import_openvino()  # before NNCF, which would report its use
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    start = time.monotonic()
    quantised = nncf.quantize(
        model,
        nncf.Dataset(patches),
        subset_size=len(patches),
        preset=nncf.QuantizationPreset.MIXED,
        # The style scales whole feature maps, and the last layer's errors are the flows' own. The
        # first ones see intensities, which are few values where tissue is dim: in eight bits they
        # alone made nine tenths of the squared difference, for a hundredth of the arithmetic.
        ignored_scope=nncf.IgnoredScope(
            names=[_find_last_layer(model), *_find_first_layers(model)], types=["MatMul"]
        ),
    )
    seconds = round(time.monotonic() - start, 3)
    log_event(log, "network quantised", n_patches=len(patches), seconds=seconds)
    return quantised


def _find_first_layers(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the convolutions with as few input channels as the network: they see its pixels."""
    n_inputs = model.inputs[0].get_partial_shape()[1].get_length()
    return [
        str(node.get_friendly_name())
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        and node.input_value(0).get_partial_shape()[1].get_length() == n_inputs
    ]


def _find_last_layer(model: Any) -> str:  # noqa: ANN401
    """Name of the convolution whose output, with its bias, is the network's."""
    node = model.outputs[0].get_node()
    while node.get_type_name() != "Convolution":
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def write_quantised(work: Path, packed: bytes) -> None:
    """Write the quantised network to the work folder, where workers look for it."""
    write_atomic(work / _FILE, packed)


def read_quantised(work: Path, digest: str) -> bytes:
    """The quantised network of a work folder.

    Parameters
    ----------
    work
        The folder.
    digest
        Of the network that the run was planned with, as `digest_quantised` returns it.

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
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: is damaged ({error})") from error
    if found != digest:
        raise InputError(f"{path}: is not the network that the run was planned with")
    return packed


def digest_quantised(packed: bytes) -> str:
    """Sha256 of the numbers of a packed network, for `backend.Engine.quantised`.

    The graph has no part in it, because its names have numbers that count up in every process.

    Raises
    ------
    zipfile.BadZipFile
        If either part is damaged or missing.
    """
    try:
        with zipfile.ZipFile(BytesIO(packed)) as archive:
            archive.read("network.xml")  # checks its CRC
            return hashlib.sha256(archive.read("network.bin")).hexdigest()
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # Nearly anything can be raised where a damaged file is parsed.
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
