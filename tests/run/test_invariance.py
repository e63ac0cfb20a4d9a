"""Labels, tables and stored bytes do not depend on how the work is divided."""

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.measure import regionprops_table

from densebatch.base.geometry import Grid, Region
from densebatch.base.process import Meter
from densebatch.models.model import find_model, load_network, save_model
from densebatch.planning.settings import DEFAULT_MODEL
from densebatch.run import flow_steps
from densebatch.run.segment import segment
from densebatch.simulation.tissue import Tissue, render
from densebatch.slides.slide import open_slide
from densebatch.stages.predict import PredictGroup
from densebatch.tracing.diffusion import compute_flows
from densebatch.tracing.tile import TraceSettings, halo_for_travel, trace_tile
from tests.helpers.real_tissue import needs_data, read_field
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    cells_alike,
    output_bytes,
    read_result,
    simulate,
    tasks_folder,
    write_tiff,
)

WHOLE = 2048


def plain(folder):
    path = write_tiff(folder / "plain.ome.tif", simulate(384, 420, seed=3), ["CD3", "DAPI"])
    return path, {"membrane": ("CD3",)}


def field(folder):
    pixels, _ = read_field("M872956_JML_Position8_CD3")
    path = folder / "field.ome.tif"
    write_tiff(path, pixels[None, 200:560, 500:900], ["CD3"])
    return path, {}


def panel(folder):
    """Two membrane channels that share the cells out, and nuclei; cells of 25 px, so scale 0.6."""
    membrane, nuclei = simulate(360, 400, seed=5, cell_diameter_px=25)
    share = np.linspace(0.2, 0.9, membrane.shape[1])
    pixels = np.stack([membrane * share, nuclei, membrane * (1 - share)]).astype(np.uint16)
    path = write_tiff(folder / "panel.ome.tif", pixels, ["CD3", "DAPI", "CD8"], 0.3)
    spec = find_model(DEFAULT_MODEL)
    model = folder / "nuclei.safetensors"
    network = load_network(spec)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") and tensor.shape == (2,):
            # the bundled network never saw nuclei; let it notice them without being dazzled
            tensor[1] = 1.0
    save_model(
        network,
        model,
        um_per_px=0.5,
        patch_px=spec.patch_px,
        margin_px=spec.margin_px,
        percentiles=spec.percentiles,
        nuclei=True,
        card={},
    )
    return path, {"membrane": ("CD3", "CD8"), "nuclei": "DAPI", "model": str(model)}


def coarse(folder):
    """Cells of 9 px at 0.8 um, enlarged by 1.6 for the network."""
    pixels = simulate(240, 260, seed=7, cell_diameter_px=9.4)
    path = write_tiff(folder / "coarse.ome.tif", pixels, ["CD3", "DAPI"], 0.7)
    return path, {"membrane": ("CD3",), "pixel_size": 0.8}


CASES = [plain, pytest.param(field, marks=needs_data), panel, coarse]
SCALES = {"plain": 1, "field": 1, "panel": 0.6, "coarse": 1.6}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """One run of each slide with a single tile, in this process."""
    done = {}

    def get(case):
        if case not in done:
            folder = tmp_path_factory.mktemp(case.__name__)
            slide, options = case(folder)
            out = folder / "reference"
            result = segment(slide, out, tile=WHOLE, workers=0, keep_flows=True, **options)
            assert result.cells > 50
            assert (result.report["plan"]["nuclei"] is not None) == (case is panel)
            assert result.report["plan"]["rescale"] == pytest.approx(SCALES[case.__name__])
            done[case] = slide, options, out, output_bytes(out)
        return done[case]

    return get


@pytest.mark.parametrize(
    ("case", "tile", "shuffle"),
    [
        (plain, 64, None),
        (plain, 250, 2),
        pytest.param(field, 97, 1, marks=needs_data),
        pytest.param(field, 200, None, marks=needs_data),
        (panel, 100, 3),
        (panel, 170, None),
        (coarse, 65, 4),
        (coarse, 150, None),
    ],
)
def test_tile_size_and_task_order(references, tmp_path, case, tile, shuffle):
    slide, options, _, expected = references(case)
    watcher = Watcher()
    segment(slide, tmp_path, tile=tile, workers=0, shuffle=shuffle, progress=watcher, **options)
    assert_same_output(tmp_path, expected)
    assert watcher.stages["trace"][0] > 3


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes(references, tmp_path, workers):
    slide, options, _, expected = references(plain)
    result = segment(slide, tmp_path, tile=150, workers=workers, shuffle=workers, **options)
    assert_same_output(tmp_path, expected)
    assert result.report["workers"] == workers


@pytest.mark.parametrize("case", CASES)
def test_ids_are_consecutive_in_the_order_of_the_seeds(references, case):
    _, _, out, _ = references(case)
    labels, table = read_result(out)
    n = table["id"].size
    assert np.array_equal(np.unique(labels), np.arange(n + 1))
    assert np.array_equal(table["id"], np.arange(1, n + 1))
    seeds = np.load(tasks_folder(out) / f"trace-{WHOLE}" / "keys.npy")
    assert seeds.size == n
    assert (np.diff(seeds) > 0).all()
    y, x = np.divmod(seeds, labels.shape[1])
    # a seed lies where its cell's pixels end, which need not be in the cell
    assert (y >= table["y0"] - 6).all()
    assert (y < table["y1"] + 6).all()
    assert (x >= table["x0"] - 6).all()
    assert (x < table["x1"] + 6).all()


@pytest.mark.parametrize("case", CASES)
def test_table_tells_what_the_labels_show(references, case):
    slide, _, out, _ = references(case)
    labels, table = read_result(out)
    pixels = open_slide(slide)
    names = pixels.info.channels
    height, width = labels.shape
    planes = [pixels.read(k, Region(0, 0, height, width)) for k in range(len(names))]
    expected = regionprops_table(
        labels.astype(np.int32),
        np.stack([*planes, planes[0]], axis=-1).astype(np.float64),  # a lone one is named otherwise
        properties=("label", "area", "bbox", "centroid", "mean_intensity"),
    )
    assert np.array_equal(table["id"], expected["label"])
    assert np.array_equal(table["area_px"], expected["area"])
    for k, name in enumerate(("y0", "x0", "y1", "x1")):
        assert np.array_equal(table[name], expected[f"bbox-{k}"])
    um = pixels.info.um_per_px if case is not coarse else 0.8
    for k, axis in enumerate("yx"):
        np.testing.assert_allclose(table[f"{axis}_px"], expected[f"centroid-{k}"], rtol=1e-12)
        np.testing.assert_allclose(table[f"{axis}_um"], (table[f"{axis}_px"] + 0.5) * um)
    for k, name in enumerate(names):
        means = expected[f"mean_intensity-{k}"]
        np.testing.assert_allclose(table[f"mean_{name}"], means, rtol=1e-12)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    assert np.array_equal(table["id"][table["touches_border"]], edge[edge > 0])


# tracing alone, on flow fields made by hand


def make_flows(shape, seed, *, noise=0.0, smooth=2.0, cells=True):
    """A flow field as a network might give it: of simulated cells, or of nothing at all."""
    rng = np.random.default_rng(seed)
    flows = np.zeros((3, *shape), np.float32)
    if cells:
        truth = render(Tissue(*shape, seed=seed, stained_fraction=0.8), Region(0, 0, *shape))[1]
        flows[:2] = 5 * compute_flows(truth)
        flows[2] = np.where(truth > 0, 3, -3)
    else:
        flows[2] = 4 * gaussian_filter(rng.normal(size=shape), smooth) * smooth
    for plane, scale in zip(flows, (5, 5, 3), strict=True):
        plane += noise * scale * smooth * gaussian_filter(rng.normal(size=shape), smooth)
    return flows.astype(np.float16).astype(np.float32)


def trace_tiled(flows, settings, step_y, step_x, halo):
    """Keys per pixel, 0 for background, and the furthest travel, of tiles put together."""
    shape = flows.shape[1:]
    grid = Grid(*shape, step_y, step_x)
    keys = np.full(shape, -1, np.int64)
    travel = 0.0
    for index in grid:
        core = grid[index]
        window = core.expand(halo).clip(*shape)
        tile = trace_tile(flows[:, *window.slices], window, core, shape, settings)
        assert tile.labels.shape == core.shape
        assert (np.diff(tile.keys) > 0).all()
        present = np.unique(tile.labels[tile.labels > 0])
        assert np.array_equal(present, 1 + np.arange(tile.keys.size))
        keys[core.slices] = np.concatenate([[-1], tile.keys])[tile.labels]
        travel = max(travel, tile.max_travel_px)
    return keys, travel


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(40, 160),
    width=st.integers(40, 160),
    step_y=st.integers(16, 100),
    step_x=st.integers(16, 100),
    noise=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    smooth=st.sampled_from([0.7, 2.0, 5.0]),
    cells=st.booleans(),
    iterations=st.sampled_from([15, 60, 200]),
    flow_threshold=st.sampled_from([0.0, 0.4, 1.5]),
    limit=st.sampled_from([6, 20, 256]),
)
def test_traced_tiles_agree_with_the_untiled_field(
    seed, height, width, step_y, step_x, noise, smooth, cells, iterations, flow_threshold, limit
):
    flows = make_flows((height, width), seed, noise=noise, smooth=smooth, cells=cells)
    options = TraceSettings(
        flow_threshold=flow_threshold, iterations=iterations, travel_limit_px=limit
    )
    expected, travel = trace_tiled(flows, options, height, width, 0)
    halo = halo_for_travel(int(np.ceil(min(travel, limit))))
    found, _ = trace_tiled(flows, options, step_y, step_x, halo)
    assert np.array_equal(found, expected)


def test_a_halo_that_is_too_small_would_show():
    flows = make_flows((200, 200), 4, noise=0.5)
    expected, travel = trace_tiled(flows, TraceSettings(), 200, 200, 0)
    assert travel > 9
    found, _ = trace_tiled(flows, TraceSettings(), 50, 50, 9)
    assert not np.array_equal(found, expected)
    found, _ = trace_tiled(flows, TraceSettings(), 50, 50, halo_for_travel(int(np.ceil(travel))))
    assert np.array_equal(found, expected)


# the whole pipeline on a flow field made by hand, whose pixels travel further than planned


def worm_field(shape, speed=1.0, *, beyond=False):
    """Ordinary cells, and a worm of 200 px whose pixels all flow to its right end.

    `beyond` leads its flow out of it, past any limit.
    """
    flows = make_flows(shape, 11, noise=0.3)
    y0, x0, x1 = shape[0] // 2, 50, 250
    worm = slice(y0 - 6, y0 + 6), slice(x0, x1)
    flows[:, y0 - 9 : y0 + 9, x0 - 3 : x1 + 3] = 0
    flows[2, y0 - 9 : y0 + 9, x0 - 3 : x1 + 3] = -5
    flows[2, *worm] = 5
    flows[1, *worm] = 5 * speed
    flows[0, *worm] = np.clip(y0 - np.arange(y0 - 6, y0 + 6), -1, 1)[:, None]
    if beyond:
        flows[1:, y0 - 6 : y0 + 6, x1:] = 5 * speed
    else:
        flows[1, worm[0], x1 - 3 : x1] = -5 * speed
    return flows.astype(np.float16), (y0, (x0 + x1) // 2)


@pytest.fixture
def written_flows(monkeypatch):
    """Makes the pipeline write a prepared field instead of the network's output."""

    def use(flows):
        def write(task):
            work, group = task.work, task.work.plan.groups[task.row, task.col]
            array = zarr.open_array(work.flows, mode="r+")
            assert array.shape == flows.shape
            array[:, *group.slices] = flows[:, *group.slices]
            facts = {"patches": 0, "bright_patches": 0, "device": None, **Meter().read()}
            chunk = work.flows / "c" / "0" / str(task.row) / str(task.col)
            return work.journal.record(task.name, [chunk], facts)

        monkeypatch.setattr(PredictGroup, "run", write)

    return use


@pytest.mark.parametrize(
    ("tile", "scale", "speed", "beyond"),
    [
        (75, 1, 1.0, False),
        (160, 1, 2.2, False),
        (90, 1, 4.0, True),  # four pixels a step lead beyond the limit
        (180, 2, 1.0, False),  # a slide at twice the network's scale: the limit is further away
    ],
)
def test_far_travellers(written_flows, tmp_path, tile, scale, speed, beyond):
    shape = (170, 330)
    flows, (y, x) = worm_field(shape, speed, beyond=beyond)
    written_flows(flows)
    pixels = np.kron(simulate(*shape), np.ones((1, scale, scale), np.uint16))
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"], 0.5 / scale)
    options = {"membrane": ("CD3",), "workers": 0, "flow_threshold": 0.0}
    whole = segment(slide, tmp_path / "whole", tile=WHOLE, **options)
    watcher = Watcher()
    tiled = segment(slide, tmp_path / "tiled", tile=tile, progress=watcher, **options)
    assert_same_output(tmp_path / "tiled", output_bytes(tmp_path / "whole"))
    for fact in ("dropped_px", "max_travel_px", "cells"):
        assert tiled.report[fact] == whole.report[fact]
    assert tiled.report["plan"]["travel_px"] < 100 < tiled.report["max_travel_px"]
    assert (tiled.report["dropped_px"] > 0) == beyond
    if not beyond:
        labels, _ = read_result(tmp_path / "tiled")
        assert (labels == labels[y * scale, x * scale]).sum() > 0.9 * 12 * 200 * scale**2
    again = [n for name, (n, _) in watcher.stages.items() if name.startswith("trace again")]
    assert again


def test_only_what_is_near_a_far_traveller_is_traced_again(written_flows, tmp_path):
    shape = (40, 2400)
    flows, _ = worm_field(shape)
    written_flows(flows)
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(*shape), ["CD3", "DAPI"])
    watcher = Watcher()
    options = {"membrane": ("CD3",), "workers": 0, "flow_threshold": 0.0}
    segment(slide, tmp_path / "out", tile=100, progress=watcher, **options)
    again = [n for name, (n, _) in watcher.stages.items() if name.startswith("trace again")]
    # the worm, and halo_for_travel(256) to its right
    assert again == [-(-(250 + halo_for_travel(256)) // 100)]


def test_without_tracing_again_far_travellers_would_be_cut(written_flows, tmp_path, monkeypatch):
    shape = (170, 330)
    flows, _ = worm_field(shape)
    written_flows(flows)
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(*shape), ["CD3", "DAPI"])
    options = {"membrane": ("CD3",), "workers": 0, "flow_threshold": 0.0}
    segment(slide, tmp_path / "whole", tile=WHOLE, **options)
    monkeypatch.setattr(flow_steps, "_trace_far_travellers", lambda *_: None)
    segment(slide, tmp_path / "tiled", tile=64, **options)
    whole, tiled = (read_result(tmp_path / name)[0] for name in ("whole", "tiled"))
    assert not cells_alike(whole, tiled)
