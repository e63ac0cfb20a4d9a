"""Tissue is told from glass by the brightness of blocks, and not where there is no glass."""

import numpy as np
import pytest
import tifffile
import zarr
from imagecodecs import jpeg8_decode, jpeg8_encode
from scipy import ndimage

from densebatch.base.geometry import Region
from densebatch.planning.planner import draft_plan, find_slide_tissue, refine_draft
from densebatch.planning.settings import SegmentSettings
from densebatch.regions.read import RegionFiles, read_areas
from densebatch.simulation.tissue import Tissue, render
from densebatch.slides.slide import open_slide
from densebatch.survey.glass import looks_like_cells
from densebatch.survey.tissue import _average, find_blocks
from tests.helpers.damage import flip
from tests.helpers.real_tissue import DATA, FIELDS, needs_data, read_field
from tests.helpers.run_files import write_tiff
from tests.helpers.slide_files import edit_json, random_pixels, write_zarr

SHAPE = (900, 1200)
NAMES = ["M", "DAPI"]


@pytest.fixture(scope="module")
def scene():
    """Pixels with glass, and the true cells."""
    tissue = Tissue(*SHAPE, seed=2, empty_fraction=0.5)
    return render(tissue, Region(0, 0, *SHAPE))


@pytest.fixture(scope="module")
def slide(scene, tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.ome.tif", scene[0], NAMES)


def stretch(mask, shape=SHAPE):
    """A mask at the size of the slide, as a region is."""
    areas, _ = read_areas(RegionFiles(), shape, mask)
    return areas.find_inside(Region(0, 0, *shape))


def find(path, channels=(0, 1), um=0.5, areas=None):
    return find_blocks(open_slide(path), channels, um, areas)


@pytest.mark.parametrize("channels", [(0,), (1,), (0, 1)])
def test_no_cell_lies_outside(slide, scene, channels):
    """And every cell is further inside than five diameters of small cells, but for the border."""
    search, mask = find(slide, channels)
    inside = stretch(mask)
    truth = scene[1]
    assert not truth[~inside].any()
    assert search.share == pytest.approx(inside.mean(), abs=1e-3)
    assert 0.5 < search.share < 0.8
    assert [about.counts for about in search.channels] == [True] * len(channels)
    assert all(about.lower < about.threshold < 200 for about in search.channels)
    outside = np.argwhere(~inside)
    cells = np.argwhere(truth > 0)[::97]
    nearest = min(np.hypot(*(outside - cell).T).min() for cell in cells[::20])
    assert nearest > 50


@pytest.mark.parametrize(
    "more", [{}, {"stained_fraction": 0.1, "cluster_px": 1000.0}, {"offset": 0.0}]
)
def test_slides_that_are_all_tissue_stay_whole(more, tmp_path):
    pixels, _ = render(Tissue(*SHAPE, seed=1, **more), Region(0, 0, *SHAPE))
    search, mask = find(write_tiff(tmp_path / "a.ome.tif", pixels, NAMES))
    assert mask is None
    assert search.share is None
    assert "does not fall into two classes as different as tissue and glass" in search.reason


@needs_data
@pytest.mark.parametrize("name", FIELDS)
def test_real_fields_that_are_all_tissue_stay_whole(name, tmp_path):
    pixels = read_field(name)[0][None]
    for um in (2.0, 0.5, 0.25):  # blocks of 8, 32 and 64 px
        search, mask = find(write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3"], um), (0,), um)
        assert mask is None
        assert search.channels[0].separability < 0.81


@needs_data
def test_a_real_mosaic_that_is_all_tissue_stays_whole():
    path = DATA / "fields" / "M872956_JML_Position8.ome.tif"
    for channel in range(len(open_slide(path).info.channels)):
        assert find(path, (channel,))[1] is None


@needs_data
def test_no_cell_of_real_tissue_on_glass_is_lost(tmp_path):
    """Not one of those that people have drawn, whose faintest are hardly brighter than glass."""
    for name in FIELDS[1:3]:
        pixels, masks = read_field(name)
        place = np.s_[400 : 400 + pixels.shape[0], 300 : 300 + pixels.shape[1]]
        slide = np.random.default_rng(0).poisson(4, (1900, 2100))
        truth = np.zeros_like(slide)
        slide[place] += pixels
        truth[place] = masks
        path = tmp_path / "a.ome.tif"
        search, mask = find(
            write_tiff(path, np.minimum(slide, 255).astype(np.uint8)[None], ["M"]), (0,)
        )
        assert search.share < 0.6
        assert not truth[~stretch(mask, slide.shape)].any()


@pytest.fixture(scope="module")
def real():
    """A field that is all tissue; people's cells in it, and its pixels, on glass."""
    pixels, masks = read_field(FIELDS[0])
    around = ((400, 400), (400, 1200))
    truth, bright = (np.pad(each, around) for each in (masks, 10 * pixels.astype(float)))
    return pixels, truth, bright + np.random.default_rng(0).normal(100, 8, truth.shape)


def count_lost(slide, truth, tmp_path):
    """Cells that are not all inside, and the search."""
    planes = np.clip(slide, 0, 65535).astype(np.uint16).reshape(-1, *truth.shape)
    path = write_tiff(tmp_path / "a.ome.tif", planes, NAMES[: len(planes)])
    search, mask = find(path, range(len(planes)))
    outside = np.zeros(truth.shape, bool) if mask is None else ~stretch(mask, truth.shape)
    return np.unique(truth[outside & (truth > 0)]).size, search


@needs_data
@pytest.mark.parametrize("what", ["debris", "brighter tissue"])
def test_what_is_far_brighter_does_not_make_glass_of_tissue(real, what, tmp_path):
    """Though Otsu's threshold lies between the two, and both classes differ clearly."""
    _, truth, slide = real
    slide = slide.copy()
    if what == "debris":
        slide[50:500, -550:-100] = 65000
    else:
        slide[400:1440, 2000:2900] = 30 * slide[400:1440, 400:1300]
    lost, search = count_lost(slide, truth, tmp_path)
    assert lost == 0
    assert search.share < 0.7
    assert search.channels[0].counts


@needs_data
def test_what_looks_like_tissue_is_no_glass(real, tmp_path):
    """Tissue without glass, of which debris, or a marker, makes two classes."""
    pixels, _, _ = real
    whole = 10.0 * pixels + 100
    whole[100:400, 100:400] = 65000
    marked = 10.0 * pixels + 100
    marked[:, 600:] = np.random.default_rng(0).normal(110, 5, marked[:, 600:].shape)
    for slide in (whole, np.stack([marked, 10.0 * pixels[::-1] + 100])):
        lost, search = count_lost(slide, np.ones(pixels.shape, int), tmp_path)
        assert lost == 0
        assert search.channels[0].counts
        assert "of the places that are dark enough for glass have structures" in search.reason


@needs_data
@pytest.mark.parametrize("name", FIELDS)
def test_structures_tell_real_tissue_from_noise(name):
    """At any pixel size, in noise, and whatever a lens or a camera adds that is smooth."""
    rng, pixels = np.random.default_rng(0), read_field(name)[0].astype(float)
    y, x = np.mgrid[:128, :128]
    smooth = 50 * np.exp(-x / 400) + (y - 30.0) ** 2 / 80 + y * x / 50
    corners = [(row, col) for row in range(0, 900, 128) for col in range(0, 1200, 128)]
    places = [pixels[row : row + 128, col : col + 128] for row, col in corners]
    noisy = [0.3 * place + rng.normal(100, 20, place.shape) for place in places]
    coarse = [place.reshape(64, 2, 64, 2).mean((1, 3)) for place in places]
    assert np.mean([looks_like_cells(place, 4) for place in places]) > 0.85
    assert np.mean([looks_like_cells(place, 2) for place in coarse]) > 0.85
    assert np.mean([looks_like_cells(place, 4) for place in noisy]) > 0.65
    noise = [rng.normal(100, 8, (128, 128)) for _ in range(50)]
    noise += [ndimage.shift(each, (0.5, 0.5), order=1, mode="nearest") for each in noise]
    assert not any(looks_like_cells(each, 4) for each in noise)
    assert not any(looks_like_cells(each + smooth, 4) for each in noise)
    stripes = rng.normal(0, 20, 128)
    assert not any(looks_like_cells(each + stripes, 4) for each in noise)
    assert not any(looks_like_cells(each + stripes[:, None], 4) for each in noise)
    faint = [rng.normal(12, 1, (128, 128)).round().astype(np.uint8) for _ in range(50)]
    coded = [jpeg8_decode(jpeg8_encode(each, level=80)) for each in faint]
    assert sum(looks_like_cells(each, 4) for each in coded) <= 2
    assert not looks_like_cells(np.full((128, 128), 7, np.uint8), 4)
    assert not looks_like_cells(np.full((128, 128), np.nan), 4)
    assert not looks_like_cells(places[0][:40, :40], 4)


def tell(pixels, tmp_path, um=0.5):
    search, mask = find(write_tiff(tmp_path / "a.ome.tif", pixels, ["M"], um), (0,), um)
    assert mask is None
    return search.reason


def test_what_is_no_tissue_is_told(tmp_path):
    rng = np.random.default_rng(0)
    glass = rng.normal(100, 5, (1, 600, 600))
    assert "counts from 0.85" in tell(np.full((1, 600, 600), 7, np.uint16), tmp_path)
    assert "counts from 0.85" in tell(glass.astype(np.uint16), tmp_path)
    assert "counts from 0.85" in tell(np.full((1, 300, 300), np.nan, np.float32), tmp_path)
    small = glass.copy()
    small[:, 300:340, 300:340] += 2000
    assert "no piece of it is larger than 78 px" in tell(small.astype(np.uint16), tmp_path)
    wide = glass.copy()
    wide[:, :, 120:] += 2000
    assert "tissue with its margin is all of it" in tell(wide.astype(np.uint16), tmp_path)
    light = np.full((300, 400, 3), 235, np.uint8)
    light[100:200, 100:300] = rng.integers(90, 200, (100, 200, 3))
    tifffile.imwrite(tmp_path / "b.tif", light, photometric="rgb")
    assert "brightfield" in find(tmp_path / "b.tif", (0,))[0].reason


def test_holes_are_filled_and_dim_tissue_counts(tmp_path):
    """Tissue of a quarter of the brightness hangs together with the rest."""
    pixels = np.random.default_rng(0).normal(100, 5, (1, 1000, 1400))
    pixels[:, 200:800, 200:500] += 4000
    pixels[:, 420:580, 300:420] -= 4000
    pixels[:, 200:800, 500:900] += 1000
    _, mask = find(write_tiff(tmp_path / "a.ome.tif", pixels.astype(np.uint16), ["M"]), (0,))
    inside = stretch(mask, (1000, 1400))
    assert inside[120:880, 120:980].all()
    assert not inside[:, 1100:].any()


@pytest.mark.parametrize("grid", [(1, 1), (7, 11), (29, 13), (97, 130)])
def test_blocks_are_means(grid, tmp_path, monkeypatch):
    """However windows cut them; what is no number counts for nothing."""
    pixels = random_pixels((1, 97, 130), "float32")
    pixels[0, 5:9, 7:30] = np.nan
    path = write_zarr(tmp_path / "a.zarr", pixels)
    sizes = zip(grid, (97, 130), strict=True)
    edges = [np.round(np.arange(n + 1) * (size / n)).astype(int) for n, size in sizes]
    monkeypatch.setattr("densebatch.survey.tissue._READ_PX", 32)
    blocks = _average(open_slide(path), 0, 0, grid)
    for row in range(0, grid[0], 3):
        for col in range(grid[1]):
            part = pixels[0, edges[0][row] : edges[0][row + 1], edges[1][col] : edges[1][col + 1]]
            known = part[np.isfinite(part)]
            expected = known.mean(dtype=float) if known.size else np.nan
            assert blocks.means[row, col] == pytest.approx(expected, nan_ok=True)
    assert not blocks.unread.any()


def pyramid(scene, path, n_levels=5):
    """Levels of every second pixel."""
    return write_zarr(path, scene[0], labels=NAMES, n_levels=n_levels, chunks=(1, 64, 64))


def count_reads(monkeypatch, path):
    """Pixels that are read by level."""
    source, px = open_slide(path).source, {}
    read_level = type(source).read_level

    def count(self, level, first, stop, region):
        px[level] = px.get(level, 0) + region.area
        return read_level(self, level, first, stop, region)

    monkeypatch.setattr(type(source), "read_level", count)
    return px


def test_a_low_level_is_enough(scene, tmp_path, monkeypatch):
    path = pyramid(scene, tmp_path / "a.ome.zarr")
    px = count_reads(monkeypatch, path)
    search, mask = find(path)
    assert search.level == 4
    assert px[0] <= 2 * 32 * 128 * 128  # a few places, however large the slide is
    assert set(px) == {0, 4}
    assert not scene[1][~stretch(mask)].any()


def test_levels_of_a_tiff(scene, tmp_path, monkeypatch):
    path = tmp_path / "a.ome.tif"
    options = {"tile": (64, 64), "compression": "zlib", "photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        meta = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(scene[0], subifds=3, metadata=meta, **options)
        for level in range(1, 4):
            step = 2**level
            writer.write(scene[0][:, ::step, ::step], subfiletype=1, **options)
    px = count_reads(monkeypatch, path)
    search, mask = find(path)
    assert search.level == 3
    assert set(px) == {0, 3}
    assert not scene[1][~stretch(mask)].any()


def test_a_level_that_was_never_written_is_not_believed(scene, tmp_path):
    """Half of it is 0, where there is tissue."""
    path = pyramid(scene, tmp_path / "a.ome.zarr")
    level = zarr.open_array(path / "4", mode="r+")
    level[:, : level.shape[1] // 2] = 0
    search, mask = find(path)
    assert search.level == 0
    assert not scene[1][~stretch(mask)].any()


def test_a_chunk_of_a_level_that_was_never_written_is_not_believed(tmp_path):
    """Where tissue ends, so that it is no hole; of many places few lie in it."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 5, (1, 2400, 2400))
    pixels[:, :600, :1200] += rng.normal(2000, 500, (1, 600, 1200))
    path = write_zarr(
        tmp_path / "a.ome.zarr", pixels.astype(np.uint16), labels=["M"], n_levels=5,
        chunks=(1, 256, 256),
    )  # fmt: skip
    assert find(path, (0,))[0].level == 4
    zarr.open_array(path / "4", mode="r+")[:, 8:30, 62:75] = 0
    search, mask = find(path, (0,))
    assert search.level == 0
    assert stretch(mask, (2400, 2400))[:600, :1200].all()


def test_levels_that_contradict_the_metadata_are_left_alone(scene, tmp_path):
    path = pyramid(scene, tmp_path / "a.ome.zarr")
    source = open_slide(path).source
    assert source.can_read(3)
    assert source.read_level(3, 0, 1, Region(0, 0, 5, 7)).shape == (1, 5, 7)
    edit_json(path / "4" / "zarr.json", data_type="uint8")
    assert not open_slide(path).can_read(4)
    assert find(path)[0].level == 3


def test_what_cannot_be_read_counts(scene, tmp_path):
    path = write_zarr(
        tmp_path / "a.zarr", scene[0], labels=NAMES, chunks=(1, 128, 128),
        compressors=[zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    chunks = path / "0" / "c" / "0"
    inside = stretch(find(path, (0,))[1])
    row, col = np.argwhere(~inside[64::128, 64::128])[0]
    flip(chunks / str(row) / str(col), np.random.default_rng(0))
    mask = find(path, (0,))[1]
    place = np.s_[row * 128 : row * 128 + 128, col * 128 : col * 128 + 128]
    assert not inside[place].all()
    assert mask is None or stretch(mask)[place].all()


def settings(**more):
    return SegmentSettings(membrane=("M",), nuclei="DAPI", tissue="auto", **more)


def test_files_and_tissue_both_cut(slide, tmp_path):
    """What counts is tissue in `roi` and not in `exclude`."""
    roi = np.zeros((9, 12), np.uint8)
    roi[:, 5:9] = 1
    np.save(tmp_path / "roi.npy", roi)
    draft = draft_plan(slide, settings())
    tissue = find_slide_tissue(draft, settings(), None)
    own = settings(roi=tmp_path / "roi.npy")
    both = refine_draft(slide, own, draft_plan(slide, own))
    whole = Region(0, 0, *SHAPE)
    file = draft_plan(slide, own).region.find_inside(whole)
    inside = both.region.find_inside(whole)
    assert not inside[~file].any()
    assert 0 < inside.sum() < file.sum()
    assert set(both.region.files) == {"roi"}
    assert [about.name for about in both.tissue.channels] == NAMES
    assert both.fingerprint != draft_plan(slide, own).fingerprint
    assert refine_draft(slide, settings(), draft, None, tissue).region == tissue.region


def test_a_run_goes_on_with_what_it_began_with(slide):
    """As long as slide, channels and files are the same."""
    draft = draft_plan(slide, settings())
    began = refine_draft(slide, settings(), draft)
    assert find_slide_tissue(draft, settings(), began).region is began.region
    other = SegmentSettings(membrane=("M",), tissue="auto")
    again = find_slide_tissue(draft_plan(slide, other), other, began)
    assert again.region is not began.region
    assert refine_draft(slide, settings(tile=320), draft).fingerprint == began.fingerprint


def test_a_region_that_holds_no_tissue_counts_as_a_whole(slide, tmp_path):
    draft = draft_plan(slide, settings())
    inside = refine_draft(slide, settings(), draft).region.find_inside(Region(0, 0, *SHAPE))
    np.save(tmp_path / "glass.npy", ~inside)
    own = settings(roi=tmp_path / "glass.npy")
    plan = refine_draft(slide, own, draft_plan(slide, own))
    assert plan.region == draft_plan(slide, own).region
    assert plan.notes[-1].endswith(": all of the region counts")
    assert isinstance(plan.tissue.reason, str)
    assert plan.fingerprint == draft_plan(slide, own).fingerprint
