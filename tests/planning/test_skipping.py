"""No patch that is skipped as background holds a cell that the network would have found."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from skimage.io import imread

from densebatch.base.geometry import Region
from densebatch.planning.flow_planner import SKIP_CONTRAST, find_active_cores
from densebatch.planning.planner import build_plan, draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import segment
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.slides.slide import open_slide
from densebatch.survey.channel import BLOCK_PX, contrast_in, survey_channel
from tests.helpers.real_tissue import DATA, needs_data
from tests.helpers.run_files import output_bytes, write_tiff
from tests.helpers.simulated_tissue import find_tissue

IMAGES = sorted(p.stem for p in (DATA / "train").glob("*_img.png"))
MARGIN = 2.0  # times the threshold


def read_image(name):
    pixels = imread(DATA / "train" / f"{name}.png")
    return pixels[..., :3].max(axis=-1) if pixels.ndim == 3 else pixels


def survey_of(slide):
    plan = build_plan(slide, SegmentSettings())
    return plan, survey_channel(open_slide(slide), 0, plan.model.percentiles)


def read_boxes(out):
    table = pq.read_table(out / "cells.parquet", columns=["y0", "x0", "y1", "x1"])
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


@needs_data
@pytest.mark.parametrize("name", IMAGES)
def test_the_faintest_cell_of_real_tissue(name, tmp_path):
    """Every cell's own neighbourhood spans twice the contrast below which a patch is skipped.

    A patch holds all blocks that its cells touch, so its contrast is at least that of any of them:
    the cell would be found also if nothing else were in the patch.
    """
    slide = write_tiff(tmp_path / "a.ome.tif", read_image(name)[None, :, :700], ["marker"])
    result = segment(slide, tmp_path / "out", workers=0, skip_background=False, image="none")
    assert result.cells > 100
    _, survey = survey_of(slide)
    boxes = read_boxes(tmp_path / "out")
    contrast = np.array([contrast_in([survey], Region(*map(int, box))) for box in boxes])
    assert contrast.min() >= MARGIN * SKIP_CONTRAST


@needs_data
@pytest.mark.parametrize("marker", ["CD4", "CD8"])
def test_dimmed_tissue(marker, tmp_path):
    """Tissue beside itself, dimmed more and more, until the network finds nothing.

    The bright part decides the normalisation, so the dim parts are faint tissue of a real slide.
    Every patch in which the network finds a cell spans twice the contrast of a skipped one; and
    the dimmest parts are skipped, so this is not for want of skipping.
    """
    pixels = read_image(next(name for name in IMAGES if marker in name))[:256].astype(np.float32)
    quiet = float(np.percentile(pixels, 1))
    shares = (0.1, 0.05, 0.02, 0.01, 0.006, 0.003)
    dimmed = [quiet + (pixels[:, :480] - quiet) * share for share in shares]
    image = np.concatenate([pixels, *dimmed], axis=1)
    slide = write_tiff(tmp_path / "a.ome.tif", image[None], ["marker"])
    options = {"workers": 0, "image": "none"}
    segment(slide, tmp_path / "all", skip_background=False, **options)

    plan, survey = survey_of(slide)
    boxes = read_boxes(tmp_path / "all")
    centres = (boxes[:, :2] + boxes[:, 2:]) // 2
    found, empty = [], []
    for index in plan.lattice.cores:
        core, patch = plan.lattice.cores[index], plan.lattice.patch(*index)
        inside = (centres >= (core.y0, core.x0)).all(axis=1) & (centres < (core.y1, core.x1)).all(
            axis=1
        )
        contrast = contrast_in([survey], patch.clip(*plan.shape))
        (found if inside.any() else empty).append(contrast)
    assert min(found) >= MARGIN * SKIP_CONTRAST
    assert min(empty) < SKIP_CONTRAST

    assert plan.network_patches < len(plan.lattice.cores)
    segment(slide, tmp_path / "skipped", **options)
    expected = output_bytes(tmp_path / "all")
    found_bytes = output_bytes(tmp_path / "skipped")
    pixels_only = {name: data for name, data in expected.items() if not name.endswith("zarr.json")}
    assert all(found_bytes[name] == data for name, data in pixels_only.items())


def test_glass_of_a_simulated_slide_is_skipped(tmp_path):
    """The camera's noise alone stays a third below the contrast of what is evaluated."""
    tissue = Tissue(2048, 2048, seed=3, empty_fraction=0.5)
    slide = tmp_path / "a.ome.zarr"
    write_slide(tissue, slide, threads=2)
    plan = build_plan(slide, SegmentSettings(membrane=("membrane",)))
    survey = survey_channel(open_slide(slide), plan.membrane[0].channel, plan.model.percentiles)
    shown = find_tissue(tissue, Region(0, 0, 2048, 2048))
    glass = []
    for index in plan.lattice.cores:
        patch = plan.lattice.patch(*index).clip(2048, 2048)
        y0, x0 = patch.y0 // BLOCK_PX * BLOCK_PX, patch.x0 // BLOCK_PX * BLOCK_PX
        if not shown[y0 : patch.y1 + BLOCK_PX, x0 : patch.x1 + BLOCK_PX].any():
            glass.append(contrast_in([survey], patch))
            assert not plan.active_cores[index]
    assert len(glass) > 20
    assert max(glass) < SKIP_CONTRAST / 1.5


def test_a_cell_at_the_border_of_a_core_keeps_it_alive(tmp_path):
    """A patch is checked with its margin: one bright spot keeps all patches that see it."""
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
