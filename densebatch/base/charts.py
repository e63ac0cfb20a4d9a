"""Small charts as SVG, inside a page or in files of their own, without a plotting library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Distinguishable with the common kinds of colour blindness (Wong 2011, Nature Methods 8:441).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = (
    "svg text{font:11px system-ui,sans-serif;fill:#444}"
    "svg text.title{font-size:13px;font-weight:600}"
    "svg text.x{text-anchor:middle}svg text.y,svg text.name{text-anchor:end}"
    "svg .grid{stroke:#e2e2e2}svg .line{fill:none;stroke-width:2}"
)
_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 46  # margins around the plotted area
_N_DIVISIONS = 4  # of the vertical axis
_KEY_PX = 18  # height of a line of the key below a picture


@dataclass(frozen=True)
class _Axes:
    """Where values lie in a chart, in px of the SVG."""

    n_positions: int
    low: float
    high: float

    @property
    def step(self) -> float:
        """Distance of two positions along the horizontal axis."""
        return (_WIDTH - _LEFT - _RIGHT) / self.n_positions

    @property
    def bottom(self) -> float:
        return _HEIGHT - _BOTTOM

    def x_at(self, position: float) -> float:
        """Middle of a position, of which the first is 0."""
        return _LEFT + (position + 0.5) * self.step

    def y_at(self, value: float) -> float:
        """Height of a value; what is above the axis is drawn at its end."""
        share = (min(value, self.high) - self.low) / (self.high - self.low)
        return _TOP + (self.bottom - _TOP) * (1 - share)


def draw_chart(
    title: str,
    x_label: str,
    x_ticks: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    bars: bool = False,
    y_max: float | None = None,
    y_min: float = 0.0,
    legend: bool = False,
) -> Element:
    """Draw one or more series over named positions.

    Parameters
    ----------
    title, x_label
        Texts.
    x_ticks
        Names of the positions; empty ones are not written.
    series
        Values of each series, one for each position; NaN leaves a gap.
    bars
        Bars side by side instead of lines.
    y_max
        Upper end of the axis; None takes the largest value.
    y_min
        Lower end of the axis.
    legend
        Write the names of the series, in their colours, at the right of the title.

    Returns
    -------
    Element
        An `svg` of 440 x 260 px that `STYLE` gives its looks; see `format_svg` and
        `compose_picture`.
    """
    values = [v for line in series.values() for v in line if not math.isnan(v)]
    axes = _Axes(max(1, len(x_ticks)), y_min, y_max or max(values, default=1) or 1)
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    chart = Element("svg", {"viewBox": box, "role": "img", "aria-label": title})
    _add_text(chart, _LEFT, 18, title, "title")
    if legend:
        _add_names(chart, list(series))
    _add_grid(chart, axes)
    for k, tick in enumerate(x_ticks):
        if tick:
            _add_text(chart, axes.x_at(k), axes.bottom + 16, tick, "x")
    _add_text(chart, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "x")
    for k, line in enumerate(series.values()):
        points = [(x, value) for x, value in enumerate(line) if not math.isnan(value)]
        if bars:
            _add_bars(chart, axes, points, k, len(series))
        else:
            _add_line(chart, axes, points, pick_colour(k))
    return chart


def pick_colour(series: int) -> str:
    """Colour of the series with this number; the first is 0."""
    return COLOURS[series % len(COLOURS)]


def _add_text(parent: Element, x: float, y: float, text: str, kind: str = "") -> Element:
    element = SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind})
    element.text = text
    return element


def _add_names(chart: Element, names: Sequence[str]) -> None:
    """Names of the series from left to right, the last at the right edge."""
    right = _WIDTH - _RIGHT
    for k, name in reversed([*enumerate(names)]):
        _add_text(chart, right, 18, name, "name").set("style", f"fill:{pick_colour(k)}")
        right -= 12 + 7 * len(name)


def _add_grid(chart: Element, axes: _Axes) -> None:
    for k in range(_N_DIVISIONS + 1):
        value = axes.low + (axes.high - axes.low) * k / _N_DIVISIONS
        y = axes.y_at(value)
        SubElement(chart, "path", {"d": f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}", "class": "grid"})
        text = f"{value:.2f}" if axes.high <= 2 else f"{value:,.0f}"
        _add_text(chart, _LEFT - 6, y + 4, text, "y")


def _add_bars(
    chart: Element, axes: _Axes, points: Sequence[tuple[int, float]], series: int, n_series: int
) -> None:
    width = 0.84 * axes.step / n_series
    for position, value in points:
        y = axes.y_at(value)
        place = {
            "x": f"{axes.x_at(position) - 0.42 * axes.step + series * width:.1f}",
            "y": f"{y:.1f}",
            "width": f"{width:.1f}",
            "height": f"{axes.bottom - y:.1f}",
        }
        SubElement(chart, "rect", {**place, "fill": pick_colour(series)})


def _add_line(
    chart: Element, axes: _Axes, points: Sequence[tuple[int, float]], colour: str
) -> None:
    places = [(f"{axes.x_at(x):.1f}", f"{axes.y_at(value):.1f}") for x, value in points]
    path = " ".join(f"{x},{y}" for x, y in places)
    SubElement(chart, "polyline", {"points": path, "stroke": colour, "class": "line"})
    for x, y in places:
        SubElement(chart, "circle", {"cx": x, "cy": y, "r": "2.5", "fill": colour})


def format_svg(chart: Element) -> str:
    """The text of a chart, to stand inside a page that has `STYLE`."""
    return tostring(chart, encoding="unicode")


def compose_picture(charts: Sequence[Element], names: Sequence[str] = ()) -> str:
    """Charts below each other as one SVG file that needs no page around it.

    Parameters
    ----------
    charts
        Of `draw_chart`.
    names
        Series to name at the bottom, beside their colours.
    """
    bottom = _HEIGHT * len(charts)
    picture = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": f"{_WIDTH}",
            "height": f"{bottom + _KEY_PX * len(names)}",
        },
    )
    SubElement(picture, "style").text = STYLE
    SubElement(picture, "rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    for k, chart in enumerate(charts):
        place = {"y": f"{k * _HEIGHT}", "width": f"{_WIDTH}", "height": f"{_HEIGHT}"}
        SubElement(picture, "svg", {**chart.attrib, **place}).extend(chart)
    for k, name in enumerate(names):
        y = bottom + _KEY_PX * k
        square = {"x": f"{_LEFT}", "y": f"{y}", "width": "10", "height": "10"}
        SubElement(picture, "rect", {**square, "fill": pick_colour(k)})
        _add_text(picture, _LEFT + 16, y + 9, name)
    return format_svg(picture) + "\n"
