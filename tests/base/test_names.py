"""Names and indices: which of several is meant, and what is told of it."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densebatch.base.errors import SceneError, StackError
from densebatch.base.names import explain_choice, find_name, split_names


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["DAPI", "CD3", "CD8", "0"], "0", [3]),  # a name wins over an index
        (["DAPI", "CD3", "CD8", "0"], "#0", [0]),
        (["DAPI", "CD3"], "#2", []),
        (["a", "#0"], "#0", [1]),  # and over a forced one
        (["CD3", "cd3"], "cd3", [1]),  # exact before regardless of case
        (["CD3", "cd3"], "Cd3", [0, 1]),
        (["5", "x", "5"], "5", [0, 2]),
        (["5", "x", "5"], "#2", [2]),
        (["CD3", "DAPI"], " DAPI ", [1]),
        (["CD3 ", "CD3"], "CD3 ", [0]),
        (["A,B", "A", "B"], "a,b", [0]),
        (["A"], "9" * 5000, []),
        (["A"], "#", []),
        (["A", "B"], "-1", []),
    ],
)
def test_a_name_is_found_before_an_index(names, wanted, found):
    assert find_name(names, wanted) == found


@pytest.mark.parametrize(
    ("names", "text", "ways"),
    [
        (["Alexa 488, EGFP", "CD8, clone 4B"], "CD8, clone 4B", [("CD8, clone 4B",)]),
        (["CD8, clone 4B", "CD3"], "CD3,CD8, clone 4B", [("CD3", "CD8, clone 4B")]),
        (["CD8, clone 4B", "CD3"], " CD8, clone 4B , cd3,", [("CD8, clone 4B", "cd3")]),
        (["A,B", "A", "B"], "A,B", [("A,B",)]),
        (["A,B", "A", "B", "C"], "A,B,C", [("A", "B", "C"), ("A,B", "C")]),
        (["A,B,C", "D"], "A,B,C,#1", [("A,B,C", "#1")]),
        (["1,2", "x", "y"], "1,2", [("1,2",)]),
        (["1,5", "x", "y"], "1,2", [("1", "2")]),
        (["A", "B"], "A,C", []),
        (["A", "B"], "A", [("A",)]),
        (["A", "B"], ",,", [()]),
    ],
)
def test_a_text_is_split_only_at_commas_between_names(names, text, ways):
    assert split_names(names, text) == ways


NAME = st.text("AB, ", min_size=1, max_size=5).map(str.strip).filter(lambda s: s.strip(", "))


@given(st.lists(NAME, min_size=1, max_size=4, unique=True), st.data())
def test_chosen_names_are_among_the_ways_to_read_them(names, data):
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    ways = split_names(names, ",".join(chosen))
    assert ways
    assert len(set(ways)) == len(ways)
    for way in ways:
        assert all(find_name(names, name) for name in way)
    if len(ways) == 1 and not find_name(names, ",".join(chosen)):
        same = [[names[find_name(names, n)[0]] for n in way] for way in (ways[0], chosen)]
        assert same[0] == same[1]


@pytest.mark.parametrize(
    ("names", "wanted", "words"),
    [
        (["a", "b", "c", "d", "e", "2"], "2", "labelled '2', at index 5; the one at index 2 is"),
        (["1", "0"], "0", "labelled '0', at index 1; the one at index 0 is '#0'"),
        (["405", "488", "561"], "1", "is taken as an index and is '488'"),
        (["Channel 1", "Channel 2"], "1", "is taken as an index and is 'Channel 2'"),
        (["1: DAPI", "2: CD3"], "1", "is taken as an index and is '2: CD3'"),
        (["A,B", "A", "B"], "A,B", "is the channel of that name, not 'A' and 'B'"),
    ],
)
def test_a_choice_that_could_be_another_is_explained(names, wanted, words):
    assert words in explain_choice(names, wanted)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["0", "1", "2"], "2"),
        (["CD3", "1"], "0"),
        (["CD2", "CD3"], "1"),
        (["Channel 0", "Channel 1"], "1"),
        (["405", "488"], "#1"),
        (["405", "488"], "488"),
        (["CD8, clone 4B", "CD8"], "CD8, clone 4B"),
        (["CD3", "CD8"], "cd8"),
    ],
)
def test_an_ordinary_choice_is_not(names, wanted):
    assert explain_choice(names, wanted) is None


def test_what_was_to_be_chosen_travels_between_processes():
    scene = SceneError("two images", [("a", "1 plane"), ("b", "1 plane")])
    stack = StackError("three planes", {"z": 3})
    for error, name in ((scene, "scenes"), (stack, "stacks")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), getattr(again, name)) == (str(error), getattr(error, name))
