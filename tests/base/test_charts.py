from math import nan
from xml.etree import ElementTree

import pytest

from densebatch.base.charts import COLOURS, compose_picture, draw_chart, format_svg, pick_colour

SVG = "{http://www.w3.org/2000/svg}"
LEFT, RIGHT, TOP, BOTTOM = 52, 428, 30, 214  # of the plotted area, px


def texts(chart, kind):
    return [element.text for element in chart.findall(f"text[@class='{kind}']")]


def numbers(element, *names):
    return [float(element.get(name)) for name in names]


def test_lines_go_through_their_values():
    chart = draw_chart("t", "x", ["a", "b", "c", "d"], {"one": [0, 0.5, 1, 2]}, y_max=1)
    step = (RIGHT - LEFT) / 4
    # what is above the axis is drawn at its end
    expected = [(LEFT + (k + 0.5) * step, y) for k, y in enumerate([BOTTOM, 122, TOP, TOP])]
    assert [tuple(numbers(c, "cx", "cy")) for c in chart.findall("circle")] == expected
    (line,) = chart.findall("polyline")
    assert line.get("points") == " ".join(f"{x:.1f},{y:.1f}" for x, y in expected)
    assert line.get("stroke") == COLOURS[0]


def test_bars_stand_side_by_side_on_the_axis():
    series = {"one": [10, 20], "two": [5, 0]}
    chart = draw_chart("t", "x", ["a", "b"], series, bars=True)
    bars = [numbers(bar, "x", "y", "width", "height") for bar in chart.findall("rect")]
    assert [bar.get("fill") for bar in chart.findall("rect")] == [
        *[COLOURS[0]] * 2,
        *[COLOURS[1]] * 2,
    ]
    assert [y + height for _, y, _, height in bars] == [BOTTOM] * 4
    assert [height for *_, height in bars] == [92, 184, 46, 0]
    for first, second in zip(bars[:2], bars[2:], strict=True):
        assert second[0] == pytest.approx(first[0] + first[2], abs=0.11)


def test_what_is_undefined_leaves_a_gap():
    chart = draw_chart("t", "x", ["a", "b", "c"], {"one": [nan, 1, nan], "two": [nan] * 3})
    assert len(chart.findall("circle")) == 1
    assert [line.get("points") for line in chart.findall("polyline")] == ["240.0,30.0", ""]
    assert not draw_chart("t", "x", ["a"], {"one": [nan]}, bars=True).findall("rect")


@pytest.mark.parametrize(
    ("values", "limits", "expected"),
    [
        ([1], {"y_max": 1}, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([0.4], {"y_min": 0.2, "y_max": 0.6}, ["0.20", "0.30", "0.40", "0.50", "0.60"]),
        ([4000], {}, ["0", "1,000", "2,000", "3,000", "4,000"]),
        ([0], {}, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([], {}, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
    ],
)
def test_axis_is_named_in_quarters(values, limits, expected):
    chart = draw_chart("t", "x", [""] * len(values), {"one": values}, **limits)
    assert texts(chart, "y") == expected
    assert len(chart.findall("path")) == 5


def test_names_are_text_and_no_markup():
    chart = draw_chart("a <b> & c", "<x>", ["<1>", ""], {"<s>": [1, 2]}, legend=True)
    read = ElementTree.fromstring(format_svg(chart))
    assert read.get("aria-label") == "a <b> & c"
    assert texts(read, "title") == ["a <b> & c"]
    assert texts(read, "x") == ["<1>", "<x>"]
    assert texts(read, "name") == ["<s>"]


def test_legend_is_written_in_the_colours_of_the_series():
    chart = draw_chart("t", "x", ["a"], {"one": [1], "second": [2]}, legend=True)
    names = {name.text: name for name in chart.findall("text[@class='name']")}
    assert [line.get("stroke") for line in chart.findall("polyline")] == [*COLOURS[:2]]
    for colour, name in zip(COLOURS, ("one", "second"), strict=False):
        assert names[name].get("style") == f"fill:{colour}"
    assert numbers(names["second"], "x") == [RIGHT]
    assert numbers(names["one"], "x") == [RIGHT - 12 - 7 * len("second")]


def test_colours_begin_again():
    assert pick_colour(len(COLOURS) + 2) == COLOURS[2]


def test_a_picture_holds_its_charts_below_each_other_and_a_key():
    charts = [draw_chart(title, "x", ["a"], {"one": [1]}) for title in ("first", "second")]
    root = ElementTree.fromstring(compose_picture(charts, ["<one>", "two"]))
    assert root.tag == f"{SVG}svg"
    assert numbers(root, "width", "height") == [440, 2 * 260 + 2 * 18]
    inner = root.findall(f"{SVG}svg")
    assert [numbers(chart, "y", "height") for chart in inner] == [[0, 260], [260, 260]]
    assert [chart.find(f"{SVG}text").text for chart in inner] == ["first", "second"]
    assert [text.text for text in root.findall(f"{SVG}text")] == ["<one>", "two"]
    squares = root.findall(f"{SVG}rect[@fill]")[1:]
    assert [square.get("fill") for square in squares] == [*COLOURS[:2]]
    assert "svg text" in root.find(f"{SVG}style").text
