import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.io import imread

from densebatch.tracing.diffusion import compute_flows
from tests.helpers.real_tissue import DATA, needs_data


@pytest.fixture(scope="module")
def stock_flows():
    dynamics = pytest.importorskip("cellpose.dynamics")
    return lambda labels: dynamics.masks_to_flows_cpu(labels)[0]


def exact_flows(labels):
    """Slowly, as published, over the whole image and with longer floats.

    Returns the flows, and where they mean anything: the gradient of the heat is no rounding error.
    """
    flows = np.zeros((2, *labels.shape), np.longdouble)
    defined = np.ones(labels.shape, bool)
    for cell in np.unique(labels[labels > 0]):
        mask = np.pad(labels == cell, 1)
        y, x = np.nonzero(mask)
        centre = ((x - x.mean()) ** 2 + (y - y.mean()) ** 2).argmin()
        heat = np.zeros(mask.shape, np.longdouble)
        for _ in range(2 * (int(np.ptp(y)) + int(np.ptp(x)) + 6)):
            heat[y[centre], x[centre]] += 1
            around = sum(
                heat[1 + i : heat.shape[0] - 1 + i, 1 + j : heat.shape[1] - 1 + j]
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            )
            heat[1:-1, 1:-1] = np.where(mask[1:-1, 1:-1], around / 9, 0)
        dy, dx = heat[y + 1, x] - heat[y - 1, x], heat[y, x + 1] - heat[y, x - 1]
        length = np.sqrt(dy**2 + dx**2)
        flows[:, y - 1, x - 1] = np.stack([dy, dx]) / (length + 1e-60)
        defined[y - 1, x - 1] = length > 1e-12 * heat[y, x]
    return flows.astype(float), defined


def blobs(seed, side=40):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), rng.uniform(0.6, 3))
    return ndimage.label(noise > 0)[0].astype(np.int32)


small_images = hnp.arrays(
    np.int32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 1, 2, 7]),
)


@settings(max_examples=100, deadline=None)
@given(small_images)
def test_flows_are_the_gradient_of_heat(labels):
    expected, defined = exact_flows(labels)
    found = compute_flows(labels)
    assert np.allclose(found[:, defined], expected[:, defined], atol=1e-6)
    assert not found[:, labels == 0].any()


@pytest.mark.parametrize("seed", range(8))
def test_random_blobs_equal_stock(seed, stock_flows):
    labels = blobs(seed)
    _, defined = exact_flows(labels)
    error = np.abs(compute_flows(labels) - stock_flows(labels))
    assert np.count_nonzero(labels) > 300
    # at a level spot, the centre of a symmetric cell, both are normalised rounding errors
    assert np.count_nonzero(~defined) <= labels.max()
    assert error[:, defined].max() < 1e-6


def test_centre_equals_stock_where_distances_tie_but_for_rounding(stock_flows):
    """The mean of thirds is no float, so it matters in which frame distances are computed."""
    rng = np.random.default_rng(0)
    image = np.zeros((220, 220), np.int32)
    label = 0
    for y in range(0, 220, 10):
        for x in range(0, 220, 10):
            label += 1
            shape = tuple(rng.integers(1, 9, 2))
            image[y : y + shape[0], x : x + shape[1]] = label * (rng.random(shape) < 0.7)
    ours, stock = compute_flows(image), stock_flows(image)
    wrong = np.abs(ours - stock).max(axis=0) > 1e-6
    # another centre would turn most of a cell's flows; a level spot is one pixel
    assert np.bincount(image[wrong], minlength=2)[1:].max() <= 2
    assert np.count_nonzero(wrong) < 0.01 * np.count_nonzero(image)


@needs_data
def test_real_masks_equal_stock(stock_flows):
    paths = sorted((DATA / "test").glob("*_masks.png"))
    labels = imread(paths[0]).astype(np.int32)
    assert np.unique(labels).size > 400
    assert np.abs(compute_flows(labels) - stock_flows(labels)).max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40))
def test_flows_do_not_depend_on_the_place(seed, dy, dx):
    labels = blobs(seed, side=24)
    moved = np.zeros((70, 70), np.int32)
    moved[dy : dy + 24, dx : dx + 24] = labels
    flows = compute_flows(moved)[:, dy : dy + 24, dx : dx + 24]
    assert flows.tobytes() == compute_flows(labels).tobytes()


def test_neighbours_do_not_change_a_cell():
    labels = blobs(3)
    cell = np.bincount(labels[labels > 0]).argmax()
    alone = compute_flows(np.where(labels == cell, cell, 0))
    assert alone.any()
    assert np.array_equal(alone[:, labels == cell], compute_flows(labels)[:, labels == cell])


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64"])
def test_ids_may_have_gaps(dtype):
    labels = blobs(5)
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    ids = rng.choice(min(top, 10**9), labels.max(), replace=False).astype(dtype) + 1
    ids[0] = top
    gapped = np.concatenate([np.zeros(1, dtype), ids])[labels]
    assert gapped.dtype == dtype
    assert np.array_equal(compute_flows(gapped), compute_flows(labels))


def test_image_without_background():
    labels = np.repeat(np.repeat([[3, 9]], 6, axis=0), 6, axis=1).astype(np.uint8)
    padded = np.pad(labels, 1)
    assert np.array_equal(compute_flows(labels), compute_flows(padded)[:, 1:-1, 1:-1])
    assert compute_flows(labels).any()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (12, 7)])
def test_image_without_cells(shape):
    flows = compute_flows(np.zeros(shape, np.uint32))
    assert flows.shape == (2, *shape)
    assert flows.dtype == np.float32
    assert not flows.any()


def test_cell_of_one_pixel_has_no_flow(stock_flows):
    labels = np.zeros((5, 5), np.int32)
    labels[2, 3] = 1
    labels[0, 0] = 2
    assert not compute_flows(labels).any()
    assert not stock_flows(labels).any()


def test_flows_point_to_the_centre():
    """A disc, with the sign and the order of components spelt out."""
    y, x = np.mgrid[-8:9, -8:9]
    labels = (y**2 + x**2 <= 49).astype(np.int32)
    dy, dx = compute_flows(labels)
    assert dy[2, 8] == pytest.approx(1)
    assert dx[2, 8] == pytest.approx(0, abs=1e-6)
    assert dx[8, 14] == pytest.approx(-1)
    inside = (labels > 0) & (y**2 + x**2 > 1)
    assert np.hypot(dy, dx)[inside] == pytest.approx(1, abs=1e-6)
    assert (-(y * dy + x * dx) / np.maximum(np.hypot(y, x), 1))[inside].min() > 0.98


def test_negative_labels_are_refused():
    with pytest.raises(ValueError, match=r"label -3 is negative; accepted are 0 for background"):
        compute_flows(np.array([[0, -3, 1]]))
