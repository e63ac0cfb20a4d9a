import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densebatch.base.errors import InputError
from densebatch.scoring.compare import compare_predictions, signed_rank_p
from densebatch.scoring.score import score_labels


def test_comparison_is_paired_by_image():
    truth = np.arange(1, 11)[None]
    spoiled = [np.where(np.arange(10) < k, 0, truth[0])[None] for k in range(6)]
    worse = [score_labels(truth, pred, name=str(k)) for k, pred in enumerate(spoiled)]
    best = [score_labels(truth, truth, name=str(k)) for k in range(6)]
    (found,) = compare_predictions({"best": best, "worse": worse})
    assert (found.unit, found.n, found.better, found.worse) == ("image", 6, 0, 5)
    assert found.difference == pytest.approx(-0.25)
    assert found.p_value == signed_rank_p([-0.1, -0.2, -0.3, -0.4, -0.5]) == 0.0625
    assert math.isnan(signed_rank_p([0.0, 0.0]))
    with pytest.raises(InputError, match="not predictions of the same images"):
        compare_predictions({"a": best, "b": best[:2]})


def test_comparison_is_paired_by_field_where_there_is_one_image():
    truth = np.arange(1, 401).reshape(20, 20)
    pred = truth.copy()
    pred[:5, :5] = 0
    scores = [score_labels(truth, p, field_px=10) for p in (truth, pred)]
    (found,) = compare_predictions({"a": scores[:1], "b": scores[1:]})
    assert (found.unit, found.n, found.worse, found.better) == ("field", 4, 1, 0)


@given(st.lists(st.integers(1, 2**20), min_size=1, max_size=9, unique=True), st.integers(0, 2**9))
def test_p_value_is_that_of_all_signs(sizes, signs):
    """The share of the 2^n ways to give signs to ranks that are as extreme as the given one."""
    differences = [size * (1 if signs >> k & 1 else -1) for k, size in enumerate(sizes)]
    ranks = [1 + sum(other < size for other in sizes) for size in sizes]
    total = sum(ranks)

    def lower_sum(positive):
        above = sum(rank for rank, plus in zip(ranks, positive, strict=True) if plus)
        return min(above, total - above)

    given_sum = lower_sum([value > 0 for value in differences])
    all_signs = [*product([False, True], repeat=len(sizes))]
    expected = sum(lower_sum(positive) <= given_sum for positive in all_signs) / len(all_signs)
    assert signed_rank_p(differences) == pytest.approx(min(1.0, expected))


def test_zeros_are_no_differences():
    assert signed_rank_p([0.0, 0.1, 0.0, 0.2, 0.3, 0.4]) == signed_rank_p([0.1, 0.2, 0.3, 0.4])


def test_images_without_cells_are_no_pairs():
    full, empty = np.arange(1, 5)[None], np.zeros((1, 4), int)
    first = [score_labels(full, full, name="a"), score_labels(empty, empty, name="b")]
    second = [score_labels(full, empty, name="a"), score_labels(empty, empty, name="b")]
    (found,) = compare_predictions({"first": first, "second": second})
    assert (found.name, found.reference, found.n) == ("second", "first", 1)
    assert (found.mean_ap, found.reference_ap, found.difference) == (0, 1, -1)
    (nothing,) = compare_predictions({"first": first[1:], "second": second[1:]})
    assert nothing.n == 0
    assert math.isnan(nothing.difference)
    assert math.isnan(nothing.p_value)


def test_a_field_in_which_one_prediction_alone_has_cells_is_no_pair():
    truth = np.zeros((4, 8), int)
    truth[:, :4] = np.arange(1, 17).reshape(4, 4)
    spurious = truth.copy()
    spurious[0, 6] = 99
    scores = {"a": [score_labels(truth, truth, field_px=4)],
              "b": [score_labels(truth, spurious, field_px=4)]}  # fmt: skip
    (found,) = compare_predictions(scores)
    assert (found.unit, found.n, found.worse) == ("field", 1, 0)
    assert [len(score.fields) for (score,) in scores.values()] == [1, 2]
