"""InstanSeg: small TorchScript files with its interface; `benchmarks` has its own network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError, SegmenterError
from densebatch.segmenters import instanseg
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from densebatch.testing import check_segmenter
from tests.helpers.slide_facts import tell

# TorchScript is how InstanSeg publishes its models, whatever PyTorch plans for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Blocks(torch.nn.Module):
    """Nuclei are the bright pixels of a block of 16 px, cells all of the block if it has some.

    It writes into what it gets, as InstanSeg does.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x[0, -1] > 0.5).float()
        x.clamp_(0.0, 0.1)
        height, width = bright.shape
        rows, cols = torch.arange(height) // 16, torch.arange(width) // 16
        number = (1 + rows[:, None] * 1000 + cols[None]).float()
        any_bright = torch.nn.functional.max_pool2d(bright[None, None], 16, ceil_mode=True)[0, 0][
            rows
        ][:, cols]
        return torch.stack([number * bright, number * any_bright])[None]


class Half(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, x.shape[2], x.shape[3]), 0.5)


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0, 0]


@pytest.fixture
def save(tmp_path):
    instanseg._load.cache_clear()

    def put(module):
        path = tmp_path / "model.pt"
        torch.jit.save(torch.jit.script(module), path)
        return path

    return put


def label(path, image, um_per_px=0.5, **options):
    segmenter = find_segmenter("instanseg")
    complete = segmenter.complete_options(
        {"model": str(path), **options}, tell(*[0.5] * len(image))
    )
    return label_tile(segmenter, Tile(image, ("m", "n")[-len(image) :], um_per_px, complete))


def draw():
    image = np.zeros((1, 40, 64), np.float32)
    image[0, 2:8, 18:30] = image[0, 33:38, 50:55] = 1
    return image


def test_cells_or_nuclei_of_a_model_that_gives_both(save):
    path, image = save(Blocks()), draw()
    before = image.copy()
    cells, nuclei = (label(path, image, target=target) for target in ("cells", "nuclei"))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(nuclei > 0, image[0] > 0)
    assert np.issubdtype(cells.dtype, np.integer)
    assert set(np.unique(cells)) == set(np.unique(nuclei)) == {0, 2, 2004}
    assert (cells > 0).sum() == 16 * 16 + 8 * 16
    np.testing.assert_array_equal(label(path, image), cells)


def test_a_tile_is_resampled_to_the_models_pixels(save):
    path, image = save(Blocks()), draw()
    cells = label(path, image, um_per_px=0.25)
    np.testing.assert_array_equal(cells, label(path, image, um_per_px=None))
    finer = np.repeat(np.repeat(image, 2, 1), 2, 2)
    found = label(path, finer, um_per_px=0.25)
    given = {"model": str(path), "um_per_px": 0.5}
    asked = find_segmenter("instanseg").complete_options(given, tell(0.5, um_per_px=0.25))
    scaled = label_tile(find_segmenter("instanseg"), Tile(finer, ("n",), 0.25, asked))
    np.testing.assert_array_equal(scaled, np.repeat(np.repeat(cells, 2, 0), 2, 1))
    assert len(np.unique(found)) > len(np.unique(scaled))
    with pytest.raises(InputError, match=r"um_per_px is 0\.5 but the slide does not tell"):
        find_segmenter("instanseg").complete_options(given, tell(0.5))


def test_it_conforms(save):
    report = check_segmenter("instanseg", {"model": str(save(Blocks()))}, channels=2)
    assert len(report.checks) == 10
    assert report.findings  # blocks begin at the tile


def test_a_model_is_loaded_once(save, monkeypatch):
    path = save(Blocks())
    label(path, draw())
    monkeypatch.setattr(torch.jit, "load", None)
    label(path, draw())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Half, "the model returned fractions instead of labels"),
        (Flat, "the model returned an array of shape (40, 64) for a tile of (40, 64); accepted are "
         "(1, 1 or 2, 40, 64)"),
    ],
)  # fmt: skip
def test_what_is_no_label_model_is_told(save, module, message):
    with pytest.raises(SegmenterError) as caught:
        label(save(module()), draw())
    assert str(caught.value) == f"segmenter instanseg: {message}"


def test_files_that_are_no_model_are_told(tmp_path, save):
    with pytest.raises(InputError) as caught:
        label(tmp_path / "none.pt", draw())
    assert str(caught.value) == (
        f"options of the segmenter instanseg: {tmp_path / 'none.pt'} is no file; accepted is a "
        "TorchScript file, as InstanSeg exports it"
    )
    path = tmp_path / "text.pt"
    path.write_text("weights")
    with pytest.raises(SegmenterError, match=r"text\.pt cannot be loaded on cpu \(RuntimeError: "):
        label(path, draw())
    with pytest.raises(InputError, match=r"setting 'model' = .*: field required"):
        find_segmenter("instanseg").complete_options({}, tell(0.5))


def test_a_model_that_changes_after_planning_is_refused(save):
    segmenter, path = find_segmenter("instanseg"), save(Blocks())
    planned = segmenter.complete_options({"model": str(path)}, tell(0.5))
    save(Half())
    assert segmenter.complete_options({"model": str(path)}, tell(0.5)) != planned
    tile = Tile(draw(), ("n",), 0.5, planned)
    with pytest.raises(SegmenterError) as caught:
        label_tile(segmenter, tile)
    assert str(caught.value) == (
        f"segmenter instanseg: the model {path} is not the one with which the run was planned; "
        "accepted is that one, on every worker"
    )
    path.unlink()
    with pytest.raises(SegmenterError, match="cannot be read"):
        label_tile(segmenter, tile)
