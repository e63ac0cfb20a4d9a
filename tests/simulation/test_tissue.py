import hashlib
import itertools
from dataclasses import replace

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import ome_zarr_models
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import CHANNELS, Tissue, render, render_with_nuclei
from tests.helpers.simulated_tissue import find_tissue

HEIGHT, WIDTH = 420, 510
TISSUE = Tissue(HEIGHT, WIDTH, seed=7, empty_fraction=0.2)
WHOLE = Region(0, 0, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def whole():
    return render(TISSUE, WHOLE)


@pytest.fixture(scope="module")
def field():
    """A square of tissue large enough for statistics."""
    tissue = Tissue(1024, 1024, seed=3)
    return tissue, *render(tissue, Region(0, 0, 1024, 1024))


def count_pieces(labels):
    """Pieces of equal id; neighbours of different ids are kept apart by doubling the image."""
    doubled = np.kron(labels, np.ones((2, 2), labels.dtype))
    doubled[1::2][doubled[1::2] != np.roll(doubled, -1, 0)[1::2]] = 0
    doubled[:, 1::2][doubled[:, 1::2] != np.roll(doubled, -1, 1)[:, 1::2]] = 0
    return ndimage.label(doubled)[1]


@st.composite
def regions(draw, height=HEIGHT, width=WIDTH):
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Region(y0, x0, draw(st.integers(y0 + 1, height)), draw(st.integers(x0 + 1, width)))


@settings(max_examples=30, deadline=None)
@given(region=regions())
def test_a_region_equals_the_same_part_of_the_whole(whole, region):
    image, truth = render(TISSUE, region)
    np.testing.assert_array_equal(image, whole[0][:, *region.slices])
    np.testing.assert_array_equal(truth, whole[1][region.slices])


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    diameter=st.floats(6, 60),
    empty=st.sampled_from([0.0, 0.5]),
    corner=st.tuples(st.integers(0, 32768 - 160), st.integers(0, 32768 - 160)),
    cut=st.tuples(st.integers(1, 159), st.integers(1, 159)),
)
def test_neighbouring_regions_of_a_large_slide_join(seed, diameter, empty, corner, cut):
    tissue = Tissue(32768, 32768, seed, cell_diameter_px=diameter, empty_fraction=empty)
    y0, x0 = corner
    image, truth = render(tissue, Region(y0, x0, y0 + 160, x0 + 160))
    for (top, bottom), (left, right) in itertools.product(
        [(0, cut[0]), (cut[0], 160)], [(0, cut[1]), (cut[1], 160)]
    ):
        part = render(tissue, Region(top, left, bottom, right).shift(y0, x0))
        np.testing.assert_array_equal(part[0], image[:, top:bottom, left:right])
        np.testing.assert_array_equal(part[1], truth[top:bottom, left:right])


@settings(max_examples=10, deadline=None)
@given(region=regions())
def test_nuclei_of_a_region_are_those_of_the_whole(region):
    whole = render_with_nuclei(TISSUE, WHOLE)
    part = render_with_nuclei(TISSUE, region)
    np.testing.assert_array_equal(part[2], whole[2][region.slices])
    np.testing.assert_array_equal(part[0], render(TISSUE, region)[0])


@pytest.mark.parametrize("diameter", [9.0, 15.0, 40.0])
def test_nuclei_are_inside_their_cells_and_bright(diameter):
    tissue = Tissue(500, 600, seed=4, cell_diameter_px=diameter)
    image, cells, nuclei = render_with_nuclei(tissue, Region(0, 0, 500, 600))
    both = (cells > 0) & (nuclei > 0)
    assert (cells[both] == nuclei[both]).all()
    named, areas = np.unique(nuclei[nuclei > 0], return_counts=True)
    inside = np.isin(np.unique(cells[cells > 0]), named)
    assert inside.mean() > (0.5 if diameter < 10 else 0.97)
    assert named.size > 1.1 * inside.sum()  # dark cells have nuclei too
    # Those that the slide's edge cuts may be smaller.
    edge = np.unique(np.concatenate([nuclei[0], nuclei[-1], nuclei[:, 0], nuclei[:, -1]]))
    assert areas[~np.isin(named, edge)].min() >= 12
    assert count_pieces(nuclei) == named.size
    # Half as bright as inside, on average, is the light at the outline.
    dapi = image[1].astype(float)
    away = ndimage.distance_transform_edt(nuclei == 0)
    deep = ndimage.distance_transform_edt(nuclei > 0)
    core = np.median(dapi[deep > 3]) if diameter > 10 else np.median(dapi[deep > 1])
    dark = np.median(dapi[away > 2])
    rim = np.median(dapi[(deep == 1) | (away == 1)])
    assert 0.25 < (rim - dark) / (core - dark) < 0.75


def test_a_seed_means_one_slide_everywhere(whole):
    image, truth = whole
    digest = hashlib.sha256(image.tobytes() + truth.tobytes()).hexdigest()
    # Benchmarks name slides by seed: change this number only with the look of the tissue.
    assert digest[:16] == "1f51c80de45162f2"
    other_image, other_truth = render(replace(TISSUE, seed=8), WHOLE)
    assert (other_truth != truth).mean() > 0.1
    assert (other_image != image).mean() > 0.8


@pytest.mark.parametrize(
    "tissue",
    [
        Tissue(600, 500, seed=11),
        Tissue(600, 500, seed=12, stained_fraction=1.0),
        Tissue(600, 500, seed=13, cell_diameter_px=8, min_area_px=25),
        Tissue(600, 500, seed=14, cell_diameter_px=40),
        Tissue(5, 300, seed=15),
    ],
)
def test_each_cell_is_one_piece_of_at_least_the_least_area(tissue):
    _, truth = render(tissue, Region(0, 0, tissue.height, tissue.width))
    ids = np.unique(truth)
    ids = ids[ids > 0]
    assert ids.size > 0
    assert count_pieces(truth) == ids.size
    assert np.bincount(np.searchsorted(ids, truth[truth > 0])).min() >= tissue.min_area_px


def test_tissue_resembles_the_annotated_fields(field):
    """Figures of the seven training fields of Han et al. 2024 in brackets, 0.5 µm per pixel."""
    _, image, truth = field
    ids, areas = np.unique(truth[truth > 0], return_counts=True)
    diameters = 2 * np.sqrt(areas / np.pi)
    assert 13 < np.median(diameters) < 17  # [13.1 to 17.3]
    assert 1000 < ids.size / truth.size * 2**20 < 2200  # [370 to 1960]
    assert 0.2 < (truth > 0).mean() < 0.36  # [0.08 to 0.33]

    low, high = np.percentile(image[0], [1, 99])
    shown = (image[0] - low) / (high - low)
    assert np.percentile(shown, 50) < 0.08  # [0.00 to 0.03]
    assert 0.25 < np.percentile(shown, 90) < 0.5  # [0.05 to 0.41]
    different = np.zeros(truth.shape, bool)
    free = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        for shift in (1, -1):
            other = np.roll(truth, shift, axis)
            different |= (truth > 0) & (other > 0) & (other != truth)
            free |= (truth > 0) & (other == 0)
    # Touching cells share a bright border; the outline of a free one is dim.
    assert different.sum() > 0.15 * free.sum()
    assert shown[different].mean() > 2 * shown[free & ~different].mean()  # [0.45, 0.14]


def test_pixels_stay_in_the_range_of_the_camera(field):
    tissue, image, truth = field
    assert image.dtype == np.uint16
    assert truth.dtype == np.uint32
    assert image.max() <= 4095
    for channel in image:
        assert tissue.offset - 5 * tissue.read_noise < channel.min()
        assert (channel == 4095).mean() < 0.01
        assert channel.std() > 20 * tissue.read_noise


def test_share_of_stained_cells_is_a_setting():
    shares = []
    for stained in (0.0, 0.2, 0.6, 1.0):
        tissue = Tissue(512, 512, seed=5, stained_fraction=stained, clustering=0.0)
        image, truth = render(tissue, Region(0, 0, 512, 512))
        shares.append(np.unique(truth).size - 1)
        assert image[1].std() > 100  # nuclei are there whether stained or not
    assert shares[0] == 0
    assert shares[1] / shares[3] == pytest.approx(0.2, abs=0.06)
    assert shares[2] / shares[3] == pytest.approx(0.6, abs=0.08)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.7, 1.0])
def test_empty_share_is_honoured_and_dark(fraction):
    tissue = Tissue(512, 768, seed=2, empty_fraction=fraction)
    region = Region(0, 0, 512, 768)
    image, truth = render(tissue, region)
    empty = ~find_tissue(tissue, region)
    assert empty.mean() == pytest.approx(fraction, abs=0.02)
    assert not truth[empty].any()
    if fraction:
        dark = image[:, empty]
        assert abs(dark.mean() - tissue.offset) < 0.1
        assert abs(dark.std() - tissue.read_noise) < 0.1
        assert dark.max() <= tissue.offset + 4 * tissue.read_noise
        columns = empty.mean(0)
        assert columns[:100].mean() >= columns[-100:].mean()
    if fraction < 1:
        assert truth.any()


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_written_slide_opens_and_equals_the_rendered_one(tmp_path, whole, ngff):
    path = tmp_path / "slide.ome.zarr"
    write_slide(TISSUE, path, chunk=64, shard=256, tile=100, ngff=ngff, threads=2)
    image, truth = whole
    nodes = list(ome_zarr.reader.Reader(ome_zarr.io.parse_url(path))())
    assert nodes[0].metadata["channel_names"] == list(CHANNELS)
    levels, labels = nodes[0].data, nodes[-1].data
    assert [level.shape[1:] for level in levels] == [level.shape[-2:] for level in labels]
    assert len(levels) == 3
    np.testing.assert_array_equal(levels[0], image)
    np.testing.assert_array_equal(np.squeeze(labels[0]), truth)
    np.testing.assert_array_equal(np.squeeze(labels[1]), truth[::2, ::2])
    mean = image.astype(float).reshape(2, HEIGHT // 2, 2, WIDTH // 2, 2).mean((2, 4))
    assert np.abs(np.asarray(levels[1]) - mean).max() <= 0.5

    model = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    attributes = model.attributes if ngff == "0.4" else model.ome_attributes
    datasets = attributes.multiscales[0].datasets
    assert datasets[1].coordinateTransformations[0].scale == [1.0, 1.0, 1.0]
    ome_zarr_models.open_ome_zarr(zarr.open_group(path / "labels" / "truth", mode="r"))


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_written_slide_has_the_truth_of_its_nuclei_if_asked(tmp_path, ngff):
    sizes = {"chunk": 64, "shard": 256, "tile": 100, "ngff": ngff}
    write_slide(TISSUE, tmp_path / "plain.zarr", **sizes)
    write_slide(TISSUE, tmp_path / "both.zarr", nuclei=True, **sizes)
    write_slide(TISSUE, tmp_path / "apart.zarr", tmp_path / "t.zarr", nuclei=True, **sizes)
    expected = render_with_nuclei(TISSUE, WHOLE)
    for name, labels in (("both.zarr", {"truth", "nuclei"}), ("apart.zarr", {"nuclei"})):
        group = zarr.open_group(tmp_path / name / "labels", mode="r")
        attributes = group.attrs if ngff == "0.4" else group.attrs["ome"]
        assert set(attributes["labels"]) == set(group.group_keys()) == labels
        np.testing.assert_array_equal(group["nuclei/0"][...], expected[2])
        np.testing.assert_array_equal(group["nuclei/1"][...], expected[2][::2, ::2])
        ome_zarr_models.open_ome_zarr(group["nuclei"])
    assert not (tmp_path / "plain.zarr" / "labels" / "nuclei").exists()
    np.testing.assert_array_equal(
        zarr.open_array(tmp_path / "both.zarr" / "labels" / "truth" / "0", mode="r")[...],
        expected[1],
    )


def test_truth_can_be_a_plain_array_and_tiles_do_not_matter(tmp_path, whole):
    for tile in (64, 500):
        path, truth_path = tmp_path / f"{tile}.zarr", tmp_path / f"truth{tile}.zarr"
        write_slide(TISSUE, path, truth_path, chunk=64, shard=128, tile=tile)
        written = zarr.open_array(truth_path, mode="r")
        assert written.dtype == np.uint32
        np.testing.assert_array_equal(written[...], whole[1])
        np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], whole[0])


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"tissue: empty_fraction is 1\.5; accepted is 0 to 1"):
        Tissue(10, 10, empty_fraction=1.5)
    with pytest.raises(InputError, match="32 bits hold 4294967295"):
        Tissue(2**20, 2**20, cell_diameter_px=6)
    with pytest.raises(InputError, match="not a part of a slide of 420 by 510 px"):
        render(TISSUE, Region(0, 0, 421, 510))
    with pytest.raises(InputError, match="not a part"):
        render(TISSUE, Region(5, 5, 5, 9))
    with pytest.raises(InputError, match="whole number of chunks"):
        write_slide(TISSUE, tmp_path / "a", chunk=100, shard=256)
    with pytest.raises(InputError, match=r"accepted are '0\.4' and '0\.5'"):
        write_slide(TISSUE, tmp_path / "a", ngff="0.3")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="exists already"):
        write_slide(TISSUE, tmp_path / "a")
