"""The columns as the documentation has them."""

from itertools import permutations
from pathlib import Path

import pytest

from densebatch.compartments.names import COMPARTMENTS
from densebatch.exporting.columns import sort_columns
from densebatch.measuring.schema import (
    OF_CHANNELS,
    OF_LABELS,
    Measures,
    describe_schema,
    list_columns,
    name_channels,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "table.md"
OLD = [
    *("id", "y_px", "x_px", "y_um", "x_um", "area_px", "y0", "x0", "y1", "x1", "touches_border"),
    *("touches_missing", "mean_a", "mean_a_1", "mean_b"),
]


def test_the_documentation_has_every_column():
    """If it does not: put the lines of `describe_schema` into docs/table.md."""
    text = DOCUMENT.read_text()
    start = text.index("| column |")
    assert text[start:].split("\n\n")[0].splitlines() == list(describe_schema())


def test_the_first_columns_of_the_table_keep_their_order():
    names = [each.name for each in list_columns(Measures((0, 1, 2), (0.9,)), ("a", "a", "b"))]
    assert [name for name in names if name in OLD] == OLD
    assert len(set(names)) == len(names)


def test_a_name_does_not_depend_on_what_is_measured():
    channels = ("a", "a", "b", "a_1")
    every = [each.name for each in list_columns(Measures((0, 1, 2, 3), (0.025,)), channels)]
    for channel in range(4):
        names = [each.name for each in list_columns(Measures((channel,), (0.025,)), channels)]
        n = len(OF_CHANNELS) + 1
        first = len(OF_LABELS) + n * channel
        assert names[len(OF_LABELS) :] == every[first : first + n]


@pytest.mark.parametrize("compartments", [(), COMPARTMENTS])
def test_no_two_columns_have_one_name(compartments):
    """Whatever channels are called, also as a compartment of another."""
    for channels in permutations(["a", "a", "a_nucleus", "a_nucleus_1"]):
        measures = Measures((0, 1, 2, 3), (0.9,), compartments=compartments)
        names = [each.name for each in list_columns(measures, channels)]
        assert len(set(names)) == len(names)
        assert sort_columns(names).channels == tuple(name_channels(channels, compartments))


def test_the_median_is_always_ranked():
    assert Measures((0,)).fractions == (0.5,)
    assert Measures((0,), (0.9, 0.5, 0.1)).fractions == (0.1, 0.5, 0.9)
