"""What precedes the weights in a file, read without torch."""

import subprocess
import sys

import numpy as np
import pytest

from densebatch.models.network import FULL_WIDTH, HALF_WIDTH, QUARTER_WIDTH, CPnet
from densebatch.models.weights_file import infer_widths, read_header
from tests.helpers.checkpoint_files import USE, WIDTHS, make_network, save


def test_header_of_a_saved_model(tmp_path):
    network = make_network(diam_mean=17.3)
    network.diam_labels.data.fill_(12.5)
    card, shapes, diameters = read_header(save(network, tmp_path / "m.safetensors"))
    assert card == {"name": "test", "recipe": {"seed": 0}, "use": USE}
    assert diameters == {"diam_mean": float(np.float32(17.3)), "diam_labels": 12.5}
    assert infer_widths(shapes) == WIDTHS
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == {n: s for n, s in expected.items() if not n.endswith("num_batches_tracked")}


def test_a_bundled_model_is_found_without_torch():
    code = (
        "import sys; from densebatch.models.model import find_model; "
        "find_model('dense-small'); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


@pytest.mark.parametrize("widths", [FULL_WIDTH, HALF_WIDTH, QUARTER_WIDTH, (2, 8, 16)])
def test_widths_are_read_from_a_checkpoint(widths):
    shapes = {name: tensor.shape for name, tensor in CPnet(widths).state_dict().items()}
    assert infer_widths(shapes) == widths


def test_foreign_names_are_no_widths():
    with pytest.raises(ValueError, match="not a Cellpose 1-3 network"):
        infer_widths({"conv.weight": (1,)})
