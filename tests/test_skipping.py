"""No patch that is skipped as background holds a cell that the network would have found."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from real_tissue import DATA, needs_data
from run_files import write_tiff
from skimage.io import imread

from densebatch.config import SKIP_CONTRAST, SegmentSettings
from densebatch.geometry import Region
from densebatch.labels import read_labels
from densebatch.normalization import contrast_in, survey_channel
from densebatch.pipeline import segment
from densebatch.plan import build_plan, draft_plan, find_active_cores
from densebatch.slide import open_slide

IMAGES = sorted(p.stem for p in (DATA / "train").glob("*_img.png"))
MARGIN = 2.0  # times the threshold


def read_image(name):
    pixels = imread(DATA / "train" / f"{name}.png")
    return pixels[..., :3].max(axis=-1) if pixels.ndim == 3 else pixels


def contrast_of_cells(slide, out):
    """Contrast of the survey's blocks that each found cell touches."""
    plan = build_plan(slide, SegmentSettings())
    survey = survey_channel(open_slide(slide), 0, plan.model.percentiles)
    table = pq.read_table(out / "cells.parquet", columns=["y0", "x0", "y1", "x1"])
    boxes = np.stack([c.to_numpy() for c in table.columns], axis=1)
    return np.array([contrast_in([survey], Region(*map(int, box))) for box in boxes])


@needs_data
@pytest.mark.parametrize("name", IMAGES)
def test_the_faintest_cell_of_real_tissue(name, tmp_path, record_property):
    """Every cell stands in at least twice the contrast below which its patch would be skipped.

    A patch holds all blocks that its cells touch, so its contrast is at least that of any of them.
    """
    slide = write_tiff(tmp_path / "a.ome.tif", read_image(name)[None, :, :700], ["marker"])
    result = segment(slide, tmp_path / "out", workers=0, skip_background=False, image="none")
    assert result.cells > 100
    contrast = contrast_of_cells(slide, tmp_path / "out")
    record_property("smallest_contrast", float(contrast.min()))
    assert contrast.min() >= MARGIN * SKIP_CONTRAST


@needs_data
def test_dimmed_tissue_is_found_or_above_the_threshold(tmp_path, record_property):
    """The left of an image dimmed step by step, until the network finds no cell there.

    The normalisation is the bright part's. Wherever the network still finds a cell, the patch is
    evaluated; and the dimmest strips are skipped, so the threshold does something.
    """
    pixels = read_image(IMAGES[0])[:256].astype(np.float32)
    quiet = float(np.percentile(pixels, 1))
    strips = [
        quiet + (pixels[:, 600:856] - quiet) * share for share in (0.4, 0.2, 0.1, 0.05, 0.02, 0.01)
    ]
    image = np.concatenate([*strips, pixels[:, :856]], axis=1)
    slide = write_tiff(tmp_path / "a.ome.tif", image[None].astype(np.float32), ["marker"])
    out = tmp_path / "out"
    segment(slide, out, workers=0, skip_background=False, image="none")
    contrast = contrast_of_cells(slide, out)
    record_property("smallest_contrast", float(contrast.min()))
    settings = SegmentSettings()
    plan = build_plan(slide, settings)
    assert plan.network_patches < len(plan.lattice.cores)
    skipped = segment(slide, tmp_path / "skipped", workers=0, image="none")
    assert skipped.report["network_patches"] == plan.network_patches
    everything, kept = (read_labels(p / "segmentation.ome.zarr")[:] for p in (out, skipped.out))
    assert np.array_equal(everything, kept)


def test_a_cell_at_the_border_of_a_core_keeps_it_alive(tmp_path):
    """A patch is judged with its margin: one bright spot keeps all patches that see it."""
    pixels = np.zeros((1, 700, 700), np.uint16)
    slide = write_tiff(tmp_path / "flat.ome.tif", pixels, ["marker"])
    lattice = draft_plan(slide, SegmentSettings()).lattice
    step, margin = lattice.y.step, lattice.y.margin
    assert lattice.cores.rows > 1
    spot = step + margin - 4  # in the second core, and in the margin of the first
    pixels[0, spot : spot + 4, 40:44] = 1000
    pixels[0, :4, 600:] = 1000
    slide = write_tiff(tmp_path / "spot.ome.tif", pixels, ["marker"])
    survey = survey_channel(open_slide(slide), 0, (1.0, 99.0))
    active = find_active_cores(lattice, [survey], (1.0, 1.0), SKIP_CONTRAST)
    assert active[0, 0]
    assert active[1, 0]
