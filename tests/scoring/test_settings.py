from fractions import Fraction
from itertools import combinations

import pytest

from densebatch.base.errors import InputError
from densebatch.scoring.settings import ScoreSettings, format_threshold, parse_threshold


@pytest.mark.parametrize("bad", ["0", "1.01", "-0.5", "nan", "half", "1/0", ""])
def test_bad_thresholds_are_refused(bad):
    with pytest.raises(InputError, match="an IoU threshold is a number above 0 and up to 1"):
        parse_threshold(bad)


def test_thresholds_are_written_as_decimals():
    assert [format_threshold(parse_threshold(t)) for t in ("1", ".5", 0.725, "1/3")] == [
        *("1.00", "0.50"),
        *("0.725", "1/3"),
    ]


def test_every_pair_of_settings_keeps_its_thresholds():
    for a, b in combinations(("0.9", "0.50", "0.75"), 2):
        assert ScoreSettings((a, b)).thresholds == tuple(sorted((Fraction(a), Fraction(b))))
    assert ScoreSettings(("0.75", "0.9")).focus == Fraction(3, 4)


def test_defaults_are_those_of_the_paper():
    settings = ScoreSettings()
    assert [format_threshold(t) for t in settings.thresholds] == [
        f"0.{k}" for k in range(50, 100, 5)
    ]
    assert (settings.matching, settings.min_size, settings.ignore_below) == ("any", 0, 0)
    assert settings.focus == Fraction(1, 2)


def test_thresholds_are_sorted_and_named_once():
    assert ScoreSettings(("0.9", 0.5, "0.50")).thresholds == (Fraction(1, 2), Fraction(9, 10))
    assert ScoreSettings(("0.5", "0.9")) == ScoreSettings((0.9, 0.5))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="no IoU threshold was given; at least one is needed"):
        ScoreSettings(())
    with pytest.raises(InputError, match="matching is 'any' or 'hungarian', not 'greedy'"):
        ScoreSettings(matching="greedy")
