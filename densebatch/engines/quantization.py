"""The network in eight bits, for `openvino-int8`: made once per machine, before a run.

NNCF's post-training quantisation needs to see what the network will see. It is shown simulated
tissue, seeded, so that a model has one quantised network whatever the slide; `parity` then judges
it on other tissue. Weights and inputs of convolutions become 8-bit integers; the style and the
first and last layers stay in float32.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


QUANTISED_BY = 1  # counts changes of what follows: what was kept before is made again
_FILE = "network-int8.zip"


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
        # The style scales whole feature maps, and the last layer's errors are the flows' own. The
        # first ones see intensities, which are few values where tissue is dim: in eight bits they
        # alone made nine tenths of the squared difference, for a hundredth of the arithmetic.
        ignored_scope=nncf.IgnoredScope(
            names=[_find_last_layer(model), *_find_first_layers(model)], types=["MatMul"]
        ),
    )


def _find_first_layers(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the convolutions that have as few inputs as the network: what they see is pixels."""
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
    """Put the quantised network where workers look for it."""
    from densebatch.base.files import write_atomic

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
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: is damaged ({error})") from error
    if found != digest:
        raise InputError(f"{path}: is not the network that the run was planned with")
    return packed


def digest_quantised(packed: bytes) -> str:
    """Sha256 of the numbers in `quantise`'s result, for `backends.Engine.quantised`.

    The other part, the graph, has names in it that count up in every process.

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
    except Exception as error:  # a damaged file can raise nearly anything in a parser
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
