"""Which arrays the output of a run has, and which task writes what of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from densebatch.cells import labels
from densebatch.stages.output import group_levels


@given(
    shape=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    shard_px=st.sampled_from([64, 128, 512]),
)
def test_levels_that_one_task_writes(shape, shard_px):
    """Each level once, in their order, and together only from a single shard on."""
    n_levels = labels.count_levels(*shape, top_px=32)
    spec = labels.PyramidSpec("a", "0.5", *shape, n_levels, 0.5, chunk_px=32, shard_px=shard_px)
    groups = group_levels(spec)
    assert [level for levels in groups for level in levels] == list(range(n_levels))
    assert groups[0] == range(1)
    for levels in groups[1:]:
        is_single = len(labels.shard_grid(spec, levels[0])) == 1
        assert len(levels) == (n_levels - levels[0] if is_single else 1)


def test_levels_of_a_slide_that_grow_again_have_their_own_tasks():
    shapes = ((900, 900), (100, 100), (400, 800), (50, 50), (60, 60))
    slide = labels.SlidePyramid(shapes, ((),) * 5)
    spec = labels.PyramidSpec("a", "0.5", 900, 900, 5, 0.5, shard_px=512, slide=slide)
    assert group_levels(spec) == [range(1), range(1, 2), range(2, 3), range(3, 5)]
