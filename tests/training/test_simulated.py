"""Simulated images to train on: varied around the annotated cells' size, decided by the seed."""

from __future__ import annotations

import numpy as np

from densebatch.training import simulated
from densebatch.training.annotated import EDGE_PX, measure_diameters
from densebatch.training.augmentation import sample_batch
from densebatch.training.simulated import simulate_annotated
from tests.helpers.small_training import SMALL, vary


def test_simulated_images_at_another_scale(images):
    recipe = vary(diameter_px=60.0, patch_px=800)
    tissue = simulate_annotated(images, recipe)
    diameters = [measure_diameters([image.labels]).mean() for image in tissue]
    assert max(diameters) > 1.3 * min(diameters)  # not all brought to one size
    inputs, _ = sample_batch(tissue, recipe, 0)
    assert inputs.shape[-1] == 800


def test_simulated_images(images, monkeypatch):
    monkeypatch.setattr(simulated, "_SIDE_PX", 256)
    first, second = (simulate_annotated(images, SMALL) for _ in range(2))
    assert len({image.sha256 for image in first}) == len(first) == 16
    assert [image.sha256 for image in first] == [image.sha256 for image in second]
    other = simulate_annotated(images, vary(seed=1))
    assert first[0].sha256 != other[0].sha256
    real = measure_diameters([image.labels for image in images]).mean()
    means = [measure_diameters([image.labels]).mean() / real for image in first]
    assert 0.6 < min(means) < 0.9  # smaller and larger ones than the annotated
    assert 1.1 < max(means) < 1.5
    assert all((image.image[1, EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] == 0).all() for image in first)
    nuclear = simulate_annotated(images, vary(nuclei="DAPI"))
    assert all(np.nanmax(image.image[1]) > 0.5 for image in nuclear)
