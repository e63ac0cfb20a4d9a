"""Cards: what they may say of a model's use, and how anything else is refused."""

import json

import pytest
import safetensors.torch

from tests.helpers.checkpoint_files import USE, make_state, refusal


def save_with_card(path, card):
    state = {k: v for k, v in make_state().items() if "num_batches" not in k}
    safetensors.torch.save_file(state, path, metadata={"densebatch": card})
    return path


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("{", "cannot be read as weights ("),
        ("[]", "its card is a list; accepted is a mapping"),
        ('{"use": 3}', "its card tells of use 'int'; accepted are um_per_px, patch_px"),
        ('{"use": {}}', "its card tells of use ''; accepted are um_per_px, patch_px"),
        (
            json.dumps({"use": USE | {"sha256": "0" * 64}}),
            "its card tells of use 'margin_px, nuclei, patch_px, percentiles, sha256, um_per_px'",
        ),
        (
            json.dumps({"use": USE | {"um_per_px": 0}}),
            "its card says um_per_px = 0; accepted: null",
        ),
        (json.dumps({"use": USE | {"um_per_px": float("nan")}}), "its card says um_per_px = nan"),
        (json.dumps({"use": USE | {"um_per_px": "a"}}), "its card says um_per_px = a; accepted"),
        (json.dumps({"use": USE | {"patch_px": 10**9}}), "its card says patch_px = 1000000000;"),
        (json.dumps({"use": USE | {"patch_px": 96.0}}), "its card says patch_px = 96.0; accepted"),
        (json.dumps({"use": USE | {"patch_px": 8}}), "its card says patch_px = 8; accepted: an"),
        (json.dumps({"use": USE | {"margin_px": -1}}), "its card says margin_px = -1; accepted"),
        (json.dumps({"use": USE | {"margin_px": True}}), "its card says margin_px = True;"),
        (
            json.dumps({"use": USE | {"percentiles": [99, 1]}}),
            "its card says percentiles = [99, 1]",
        ),
        (json.dumps({"use": USE | {"percentiles": 3}}), "its card says percentiles = 3; accepted"),
        (
            json.dumps({"use": USE | {"percentiles": [1, 101]}}),
            "its card says percentiles = [1, 10",
        ),
        (json.dumps({"use": USE | {"nuclei": 1}}), "its card says nuclei = 1; accepted: true or"),
    ],
)
def test_card_that_says_something_else_is_refused(tmp_path, card, told):
    assert refusal(save_with_card(tmp_path / "m.safetensors", card)).startswith(told)
