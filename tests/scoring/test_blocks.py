import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import distributed
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.cells.read import open_labels
from densebatch.scoring.blocks import Part, count_fields, plan_blocks, run_tasks
from densebatch.scoring.contingency import Contingency
from tests.helpers.label_images import label_pairs


def cells(n=200, side=120, seed=0):
    """Two Voronoi tessellations with gaps: dense, touching cells."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(2):
        seeds = rng.integers(0, side, (n, 2))
        distance = (y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2
        ids = rng.choice(10**6, n, replace=False).astype(np.uint32) + 1
        images.append(np.where(distance.min(-1) < 40, ids[distance.argmin(-1)], np.uint32(0)))
    return images


@settings(max_examples=40, deadline=None)
@given(label_pairs(20), st.integers(1, 25), st.integers(1, 25))
def test_blocks_and_fields_change_no_number(pair, block_px, field_px):
    counts = count_fields(*pair, block_px=block_px, field_px=field_px)
    assert counts.total == Contingency.from_arrays(*pair)
    for k, table in enumerate(counts.tables):
        part = counts.region(k).slices
        assert table == Contingency.from_arrays(pair[0][part], pair[1][part])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same pair in memory and in zarr arrays with different chunks, versions and shards."""
    folder = tmp_path_factory.mktemp("stored")
    truth, pred = cells()
    layouts = [
        {"chunks": (16, 32)},
        {"chunks": (50, 7), "zarr_format": 2},
        {"chunks": (10, 10), "shards": (40, 60)},
        {"chunks": (120, 120)},
    ]
    paths = []
    for k, layout in enumerate(layouts):
        for name, image in (("truth", truth), ("pred", pred)):
            path = folder / f"{k}_{name}.zarr"
            array = zarr.create_array(path, shape=image.shape, dtype=image.dtype, **layout)
            array[:] = image
            paths.append(path)
    return truth, pred, paths[::2], paths[1::2]


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("j", range(4))
@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_of_either_side_and_threads_change_no_number(stored, k, j, workers):
    truth, pred, truths, preds = stored
    expected = count_fields(truth, pred, field_px=64)
    a, b = open_labels(truths[k]), open_labels(preds[j])
    counts = count_fields(a, b, field_px=64, block_px=32, workers=workers)
    assert counts.tables == expected.tables
    mixed = count_fields(truth, zarr.open_array(preds[j], mode="r"), block_px=50, workers=workers)
    assert mixed.total == expected.total


def test_processes_change_no_number(stored):
    truth, pred, truths, preds = stored
    expected = count_fields(truth, pred)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        from_disk = count_fields(
            open_labels(truths[0]), open_labels(preds[1]), block_px=64, workers=pool
        )
        from_memory = count_fields(truth, pred, block_px=64, workers=pool)
    assert from_disk.total == from_memory.total == expected.total


def test_a_dask_client_changes_no_number(stored):
    truth, pred, truths, preds = stored
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        counts = count_fields(
            open_labels(truths[0]), open_labels(preds[2]), block_px=64, workers=client
        )
    assert counts.total == Contingency.from_arrays(truth, pred)


def test_first_failure_stops_the_rest():
    class Broken:
        shape = (100, 100)
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            raise OSError("disk on fire")

    broken = Broken()
    with pytest.raises(OSError, match="disk on fire"):
        count_fields(np.zeros((100, 100), np.uint8), broken, block_px=10, workers=2)
    assert broken.reads < 10


def test_blocks_follow_the_larger_chunk_where_no_multiple_fits():
    class Chunked:
        def __init__(self, *chunks):
            self.shape, self.chunks = (5000, 5000), chunks

        def __getitem__(self, index):
            raise NotImplementedError

    assert plan_blocks(Chunked(512, 512), Chunked(700, 700)) == Grid(5000, 5000, 2800, 1400)
    # strips of a TIFF: as wide as the image, so that the height keeps the area
    assert plan_blocks(Chunked(16, 5000), Chunked(512, 512)) == Grid(5000, 5000, 512, 5000)


class Stored:
    """An image on disk, as far as planning sees it; it keeps what was asked of it."""

    def __init__(self, shape, chunks, where="x"):
        self.shape, self.chunks, self.where = shape, chunks, where
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return np.zeros((2, 2), np.uint8)


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(1, 2048),
)
def test_blocks_begin_where_chunks_of_one_image_do(shape, chunks, others, block_px):
    blocks = plan_blocks(Stored(shape, chunks), Stored(shape, others), block_px)
    assert (blocks.height, blocks.width) == shape
    for step, length, units in (
        (blocks.step_y, shape[0], (chunks[0], others[0])),
        (blocks.step_x, shape[1], (chunks[1], others[1])),
    ):
        assert step == length or any(step % unit == 0 for unit in units)
    # Blocks are as small as asked for, unless a chunk is larger.
    assert blocks.step_x <= max(block_px, chunks[1], others[1])


def test_arrays_in_memory_are_read_in_whole_rows():
    image = np.zeros((5000, 3000), np.uint8)
    assert plan_blocks(image, image, 1024) == Grid(5000, 3000, 349, 3000)


def test_tasks_wait_in_a_window_of_two_a_worker():
    started = []

    def arguments():
        for k in range(20):
            started.append(k)
            yield (k,)

    results = run_tasks(lambda k: k * k, arguments(), 3)
    first = next(results)
    # Six tasks are out, and one more was asked for when the window was full.
    assert len(started) == 7
    assert sorted([first, *results]) == [k * k for k in range(20)]


def test_one_worker_is_the_caller():
    asked = []

    def arguments():
        for k in range(3):
            asked.append(k)
            yield (k,)

    results = run_tasks(lambda k: (k, threading.get_ident()), arguments(), 1)
    assert next(results) == (0, threading.get_ident())
    assert asked == [0]
    assert [k for k, _ in results] == [1, 2]


def test_a_part_of_an_array_in_memory_holds_no_more_than_itself():
    image = np.arange(30, dtype=np.uint16).reshape(5, 6)
    part = Part.cut(image, Region(1, 2, 3, 5), "the truth")
    assert part.source.shape == (2, 3)
    assert part.read().tolist() == [[8, 9, 10], [14, 15, 16]]
    assert part.read().dtype == np.uint32


def test_a_part_of_a_stored_image_is_asked_for_by_its_place():
    image = Stored((100, 100), (10, 10), "labels.zarr")
    part = Part.cut(image, Region(4, 5, 6, 7), "the truth")
    assert part.read().shape == (2, 2)
    assert image.asked == [(slice(4, 6), slice(5, 7))]
    with pytest.raises(InputError, match=r"labels\.zarr returned \(2, 2\) px for Region\("):
        Part.cut(image, Region(0, 0, 3, 3), "the truth").read()
    with pytest.raises(InputError, match=r"^the prediction holds values of type complex128"):
        Part.cut(np.zeros((2, 2), complex), Region(0, 0, 2, 2), "the prediction").read()


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (0, 5)])
def test_only_images_with_rows_and_columns_have_fields(shape):
    image = np.zeros(shape, np.uint8)
    with pytest.raises(InputError, match="a label image has rows and columns"):
        count_fields(image, image)
