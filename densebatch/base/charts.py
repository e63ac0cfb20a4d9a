"""Small charts as SVG, inline or in files, for reports that need no plotting library."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Distinguishable with the common kinds of colour blindness (Wong 2011, Nature Methods 8:441).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 440, 260, 52, 46, 30, 12


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
) -> str:
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
    """
    values = [v for line in series.values() for v in line if not math.isnan(v)]
    top = y_max or max(values, default=1) or 1
    n = max(1, len(x_ticks))
    step = (_WIDTH - _LEFT - _RIGHT) / n
    height = _HEIGHT - _TOP - _BOTTOM

    def x_at(k: int) -> float:
        return _LEFT + (k + 0.5) * step

    def y_at(value: float) -> float:
        return _TOP + height * (1 - (min(value, top) - y_min) / (top - y_min))

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>',
    ]
    right = _WIDTH - _RIGHT
    for k, name in reversed([*enumerate(series)] if legend else []):
        style = f"fill:{COLOURS[k % len(COLOURS)]};text-anchor:end"
        parts.append(f'<text x="{right}" y="18" style="{style}">{escape(name)}</text>')
        right -= 12 + 7 * len(name)
    for k in range(5):
        value = y_min + (top - y_min) * k / 4
        y = y_at(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" class="grid"/>')
        text = f"{value:.2f}" if top <= 2 else f"{value:,.0f}"
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="y">{text}</text>')
    for k, tick in enumerate(x_ticks):
        if tick:
            y = _HEIGHT - _BOTTOM + 16
            parts.append(f'<text x="{x_at(k):.1f}" y="{y}" class="x">{escape(tick)}</text>')
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" class="x">{escape(x_label)}</text>')
    for i, line in enumerate(series.values()):
        colour = COLOURS[i % len(COLOURS)]
        points = [(k, v) for k, v in enumerate(line) if not math.isnan(v)]
        if bars:
            width = 0.84 * step / len(series)
            for k, v in points:
                x = x_at(k) - 0.42 * step + i * width
                parts.append(
                    f'<rect x="{x:.1f}" y="{y_at(v):.1f}" width="{width:.1f}" '
                    f'height="{_TOP + height - y_at(v):.1f}" fill="{colour}"/>'
                )
        else:
            path = " ".join(f"{x_at(k):.1f},{y_at(v):.1f}" for k, v in points)
            parts.append(f'<polyline points="{path}" stroke="{colour}" class="line"/>')
            parts += [
                f'<circle cx="{x_at(k):.1f}" cy="{y_at(v):.1f}" r="2.5" fill="{colour}"/>'
                for k, v in points
            ]
    return "".join([*parts, "</svg>"])


_KEY_PX = 18
_PICTURE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#222}.title{font-size:13px;font-weight:600}"
    ".x{text-anchor:middle}.y{text-anchor:end}.grid{stroke:#ddd;fill:none}"
    ".line{fill:none;stroke-width:1.6}"
)


def compose_picture(charts: Sequence[str], names: Sequence[str] = ()) -> str:
    """Charts below each other as one SVG file that needs no page around it.

    Parameters
    ----------
    charts
        Of `draw_chart`.
    names
        Series to name at the bottom, beside their colours.
    """
    bottom = _HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" '
        f'height="{bottom + _KEY_PX * len(names)}"><style>{_PICTURE_STYLE}</style>'
        '<rect width="100%" height="100%" fill="#fff"/>'
    ]
    parts += [
        chart.replace("<svg ", f'<svg y="{k * _HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" ', 1)
        for k, chart in enumerate(charts)
    ]
    for k, name in enumerate(names):
        y = bottom + _KEY_PX * k
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="10" height="10" fill="{COLOURS[k % len(COLOURS)]}"/>'
            f'<text x="{_LEFT + 16}" y="{y + 9}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def draw_legend(names: Sequence[str]) -> str:
    """Names of series beside their colours."""
    keys = []
    for k, name in enumerate(names):
        colour = COLOURS[k % len(COLOURS)]
        keys.append(f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>')
    return " ".join(keys)
