"""Outlines hold a cell's pixels and no other, in valid polygons, simplified or not."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label as label_pieces

from densebatch.exporting import outlines
from densebatch.exporting.options import DEFAULT_SIMPLIFY_PX
from densebatch.exporting.outlines import draw_outlines, iter_windows
from densebatch.simulation.tissue import Tissue


class Image:
    """A label image in memory."""

    where = "labels in memory"

    def __init__(self, labels):
        self.labels, self.shape, self.read = np.asarray(labels, np.uint32), np.shape(labels), []

    def __getitem__(self, index):
        self.read.append(index)
        return self.labels[index]


def find_boxes(labels):
    ids = np.unique(labels)
    ids = ids[ids > 0].astype(np.uint32)
    boxes = []
    for label in ids:
        y, x = np.nonzero(labels == label)
        boxes.append([y.min(), x.min(), y.max() + 1, x.max() + 1])
    return ids, np.array(boxes, np.int64).reshape(-1, 4)


def draw(labels, simplify):
    ids, boxes = find_boxes(labels)
    drawn, areas = draw_outlines(Image(labels), ids, boxes, simplify)
    assert areas.tolist() == [np.count_nonzero(labels == label) for label in ids]
    return ids, drawn


def hold_pixels(polygon, shape):
    """Pixels whose centre lies inside."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return shapely.contains_xy(polygon, x + 0.5, y + 0.5)


LABELS = hnp.arrays(
    np.uint32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 1, 1, 2, 7]),
)


@given(LABELS)
def test_exact_outlines_hold_the_pixels(labels):
    ids, drawn = draw(labels, 0)
    for label, polygon in zip(ids, drawn, strict=True):
        mask = labels == label
        assert shapely.is_valid(polygon), shapely.is_valid_reason(polygon)
        assert polygon.area == mask.sum()
        assert np.array_equal(hold_pixels(polygon, labels.shape), mask)
        pieces = label_pieces(mask, connectivity=1).max()
        assert shapely.get_num_geometries(polygon) == pieces
        assert polygon.geom_type == ("Polygon" if pieces == 1 else "MultiPolygon")
        around = shapely.length(polygon)
        padded = np.pad(mask, 1).astype(int)
        assert around == np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded)).sum()
        for part in shapely.get_parts(polygon):
            assert shapely.is_ccw(part.exterior)
            assert not any(shapely.is_ccw(hole) for hole in part.interiors)


@given(LABELS, st.sampled_from([0.1, 0.5, 1.0, 5.0]))
def test_simplified_outlines_keep_area_and_pieces(labels, tolerance):
    ids, exact = draw(labels, 0)
    _, drawn = draw(labels, tolerance)
    for label, before, polygon in zip(ids, exact, drawn, strict=True):
        area = np.count_nonzero(labels == label)
        assert shapely.is_valid(polygon), shapely.is_valid_reason(polygon)
        assert abs(polygon.area - area) <= max(0.02 * area, 2)
        assert shapely.get_num_geometries(polygon) == shapely.get_num_geometries(before)
        holes = [shapely.get_num_interior_rings(shapely.get_parts(p)) for p in (polygon, before)]
        assert np.array_equal(*holes)
        assert shapely.hausdorff_distance(polygon, before) <= tolerance + 1
        assert shapely.get_num_coordinates(polygon) <= 2 * shapely.get_num_coordinates(before)


def test_pieces_holes_and_pinched_corners():
    """By hand: what meets in a corner only, and holes that meet the outside in a corner."""
    ring = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    (_, [found]) = draw(np.array(ring), 0)
    assert [part.area for part in found.geoms] == [1, 1, 1, 1]
    pinched = [[1, 1, 1], [1, 0, 1], [1, 1, 0]]
    (_, [found]) = draw(np.array(pinched), 0)
    assert found.geom_type == "Polygon"
    assert [shapely.Polygon(hole).area for hole in found.interiors] == [1]
    holes = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
    (_, [found]) = draw(np.array(holes), 0)
    assert [shapely.Polygon(hole).area for hole in found.interiors] == [1, 1]


def test_cells_of_tissue_have_few_corners_and_no_lost_area():
    labels = Tissue(300, 300, seed=1)
    from densebatch.base.geometry import Region
    from densebatch.simulation.tissue import render

    truth = render(labels, Region(0, 0, 300, 300))[1]
    ids, exact = draw(truth, 0)
    _, drawn = draw(truth, DEFAULT_SIMPLIFY_PX)
    assert len(ids) > 100
    corners = [shapely.get_num_coordinates(each).sum() for each in (exact, drawn)]
    assert corners[1] < 0.5 * corners[0]
    assert abs(shapely.area(drawn).sum() / shapely.area(exact).sum() - 1) < 0.005


def test_windows_hold_every_cell_once_and_large_ones_alone(monkeypatch):
    monkeypatch.setattr(outlines, "_WINDOW_PX", 8)
    labels = np.zeros((40, 40), np.uint32)
    labels[1:39, 20] = 1
    labels[2:5, 3:6] = 2
    labels[6:10, 6:12] = 3
    labels[30:33, 30:33] = 4
    ids, boxes = find_boxes(labels)
    image = Image(labels)
    windows = list(iter_windows(image, boxes))
    assert sorted(np.concatenate([w.rows for w in windows]).tolist()) == [0, 1, 2, 3]
    assert sorted(w.rows.tolist() for w in windows) == [[0], [1, 2], [3]]
    for window in windows:
        assert max(window.labels.shape) <= 2 * 8 or window.rows.size == 1
        for row, (y0, x0, y1, x1) in zip(window.rows, window.boxes, strict=True):
            inside = window.labels[y0:y1, x0:x1] == ids[row]
            assert np.count_nonzero(inside) == np.count_nonzero(labels == ids[row])


def test_a_box_outside_of_the_labels_is_refused():
    from densebatch.base.errors import InputError

    with pytest.raises(InputError, match=r"does not hold the box \[0, 0, 5, 4\]"):
        list(iter_windows(Image(np.ones((4, 4))), np.array([[0, 0, 5, 4]])))
