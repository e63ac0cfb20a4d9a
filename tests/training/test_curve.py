"""The picture of a training curve."""

from __future__ import annotations

from densebatch.training.curve import CurvePoint, draw_curve


def test_curve_is_redrawn_without_validation(tmp_path):
    curve = [CurvePoint(step, 1 / step, {}) for step in range(1, 9)]
    draw_curve(curve, tmp_path / "a.svg")
    assert "held out" not in (tmp_path / "a.svg").read_text()
    curve[-1].scores["map"] = 0.5
    draw_curve(curve, tmp_path / "b.svg")
    assert "held out" in (tmp_path / "b.svg").read_text()
