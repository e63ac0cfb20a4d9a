"""Cuts that are found, against scikit-learn and scikit-image, and whether they are trusted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from densebatch.measuring.cuts import draw_histogram, find_cut, fit_mixture


def make_groups(seed, n=2000, share=0.2, apart=2.5):
    """Values of two groups of cells, log-normal each, and which are of the brighter one."""
    rng = np.random.default_rng(seed)
    is_bright = rng.random(n) < share
    logs = rng.normal(4 + apart * is_bright, 0.4)
    return np.exp(logs), is_bright


@pytest.mark.parametrize(("seed", "share", "apart"), [(0, 0.2, 2.5), (1, 0.5, 1.8), (2, 0.05, 2)])
def test_the_mixture_is_that_of_scikit_learn(seed, share, apart):
    sklearn = pytest.importorskip("sklearn.mixture")
    values, _ = make_groups(seed, share=share, apart=apart)
    found = fit_mixture(values)
    logs = np.log(values)[:, None]
    expected = sklearn.GaussianMixture(2, tol=1e-10, max_iter=10**4, reg_covar=0, random_state=0)
    expected.fit(logs)
    order = np.argsort(expected.means_[:, 0])
    np.testing.assert_allclose(found.weights, expected.weights_[order], atol=1e-3)
    np.testing.assert_allclose(found.means, expected.means_[order, 0], atol=1e-3)
    deviations = np.sqrt(expected.covariances_[order, 0, 0])
    np.testing.assert_allclose(found.deviations, deviations, atol=1e-3)
    one = sklearn.GaussianMixture(1, reg_covar=0).fit(logs)
    assert found.gain == pytest.approx(one.bic(logs) - expected.bic(logs), rel=1e-3)
    # At the cut a cell is as likely to be of one component as of the other.
    cut = find_cut(values, "mixture")
    assert cut.note == ""
    assert expected.predict_proba([[np.log(cut.value)]])[0] == pytest.approx([0.5, 0.5], abs=0.01)


@settings(max_examples=20)
@given(st.integers(0, 999), st.floats(0.05, 0.5), st.floats(2, 4))
def test_two_groups_are_told_apart(seed, share, apart):
    values, is_bright = make_groups(seed, share=share, apart=apart)
    cut = find_cut(values, "mixture")
    assert cut.note == ""
    assert np.mean((values >= cut.value) == is_bright) > 0.97
    assert find_cut(values, "otsu").value == threshold_otsu(values)


@pytest.mark.parametrize("how", ["otsu", "mixture"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: np.exp(rng.normal(5, 0.5, 3000)),
        lambda rng: np.abs(rng.normal(500, 60, 3000)),
        lambda rng: rng.gamma(2, 100, 3000),
        lambda rng: rng.uniform(10, 1000, 3000),
        lambda rng: np.exp(np.r_[rng.normal(4, 0.3, 3000), rng.normal(4.3, 1, 300)]),
        lambda rng: rng.exponential(100, 50),
        lambda rng: rng.normal(-1000, 10, 50),
    ],
)
def test_a_cut_through_one_group_says_so(how, draw):
    cut = find_cut(draw(np.random.default_rng(0)), how)
    assert cut.note.startswith("the cut is not" if cut.value is not None else "there is no cut")
    assert cut.value is not None or how == "mixture"


def test_a_handful_of_bright_cells_is_no_group():
    rng = np.random.default_rng(0)
    values = np.exp(np.r_[rng.normal(4, 0.3, 200), rng.normal(7, 0.3, 5)])
    assert find_cut(values, "mixture").note.endswith("one of the two groups has 5 cells")


@pytest.mark.parametrize("values", [[], [3.0], [3.0] * 50])
def test_cells_that_do_not_differ_have_no_cut(values):
    for how in ("otsu", "mixture"):
        cut = find_cut(np.array(values), how)
        assert (cut.value, cut.note) == (None, "there is no cut: the cells do not differ")


def test_cells_at_zero_are_below_the_cut_of_a_mixture():
    values, _ = make_groups(3)
    with_dark = np.concatenate([np.zeros(500), values])
    assert find_cut(with_dark, "mixture").value == find_cut(values, "mixture").value


def test_the_histogram_has_every_cell():
    values, _ = make_groups(4)
    drawn = draw_histogram(np.concatenate([values, [0.0, -2.0]]), is_share=False)
    assert sum(drawn["counts"]) == values.size
    assert drawn["not_above_0"] == 2
    assert drawn["edges"] == pytest.approx([np.log10(values.min()), np.log10(values.max())])
    shares = draw_histogram(np.array([0, 0.1, 1]), is_share=True)
    assert (shares["counts"][0], shares["counts"][-1], sum(shares["counts"])) == (1, 1, 3)
