import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid
from densebatch.cells.pixels import MAX_LABEL, as_labels
from densebatch.cells.read import open_labels
from densebatch.scoring.blocks import count_fields, plan_blocks
from densebatch.scoring.contingency import Contingency

IDS = st.sampled_from([0, 0, 1, 2, 3, 7, 250, 70_000, MAX_LABEL])


@st.composite
def label_pairs(draw, side=10):
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    return tuple(
        draw(hnp.arrays(np.uint32, shape, elements=IDS, fill=st.nothing())) for _ in range(2)
    )


def rows(table):
    return list(zip(table.truth.tolist(), table.pred.tolist(), table.count.tolist(), strict=True))


def brute_force(truth, pred):
    counted = Counter(zip(truth.ravel().tolist(), pred.ravel().tolist(), strict=True))
    return [(t, p, n) for (t, p), n in sorted(counted.items())]


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


@settings(max_examples=150, deadline=None)
@given(label_pairs())
def test_table_is_the_count_of_pairs(pair):
    table = Contingency.from_arrays(*pair)
    assert rows(table) == brute_force(*pair)
    assert table.n_px == pair[0].size


@settings(max_examples=60, deadline=None)
@given(label_pairs(), st.integers(0, 10), st.integers(0, 10))
def test_tables_add_in_any_order(pair, cut, other_cut):
    truth, pred = pair
    first, last = sorted((cut, other_cut))
    parts = [
        Contingency.from_arrays(truth[part], pred[part])
        for part in (slice(0, first), slice(first, last), slice(last, None))
    ]
    whole = Contingency.from_arrays(truth, pred)
    a, b, c = parts
    assert (a + b) + c == whole
    assert c + (b + a) == whole
    assert Contingency.sum(reversed(parts)) == whole


def test_table_grows_beyond_its_first_slots():
    truth = np.arange(90_000, dtype=np.uint32).reshape(300, 300) * np.uint32(40_000)
    pred = truth[::-1].copy()
    table = Contingency.from_arrays(truth, pred)
    assert rows(table) == brute_force(truth, pred)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (7,), (2, 3, 4)])
def test_any_number_of_dimensions(shape):
    labels = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    assert rows(Contingency.from_arrays(labels, labels)) == brute_force(labels, labels)


def test_areas_leave_the_background_out():
    table = Contingency.from_arrays([[5, 5, 0, 9]], [[2, 0, 0, 2]])
    assert [a.tolist() for a in table.truth_areas] == [[5, 9], [2, 1]]
    assert [a.tolist() for a in table.pred_areas] == [[2], [2]]


@settings(max_examples=60, deadline=None)
@given(label_pairs(), st.integers(0, 6))
def test_small_cells_become_background_on_each_side_by_itself(pair, size):
    truth, pred = (image.copy() for image in pair)
    for image in (truth, pred):
        for label in np.unique(image):
            if (image == label).sum() < size:
                image[image == label] = 0
    assert Contingency.from_arrays(*pair).drop_small(size) == Contingency.from_arrays(truth, pred)


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
    distributed = pytest.importorskip("distributed")
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


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2)), "values of type float64"),
        (np.zeros((2, 2), np.complex64), "values of type complex64"),
        (np.zeros((2, 2), bool), r"a yes/no mask \(bool\)"),
        (np.array([[0, -3]]), "the negative label -3"),
        (np.array([[0, 2**32]]), "the label 4294967296"),
        (np.array([[0, 2**63]], np.uint64), "the label 9223372036854775808"),
    ],
)
def test_what_is_no_label_is_refused(array, message):
    with pytest.raises(InputError, match=f"^here holds {message}; "):
        as_labels(array, "here")


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<u4", ">u4", "i1", "i2", ">i4", "i8", "u8"])
def test_any_integer_type_is_accepted(dtype):
    image = np.array([[0, 1, 1], [100, 3, 3]], dtype)
    assert rows(Contingency.from_arrays(image, image)) == brute_force(image, image)


def test_a_pyramid_level_is_recognised():
    with pytest.raises(InputError, match=r"50x50 px but the truth is 100x100 px \(the smaller one"):
        count_fields(np.zeros((100, 100), int), np.zeros((50, 50), int))
    with pytest.raises(InputError, match=r"50x80 px but the truth is 100x100 px; both"):
        count_fields(np.zeros((100, 100), int), np.zeros((50, 80), int))


def test_scoring_imports_neither_torch_nor_dask():
    code = (
        "import sys, densebatch.scoring; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'dask', 'distributed', 'click')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
