import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from densebatch.base.page import Picture
from densebatch.scoring.page import format_html
from densebatch.scoring.report import tabulate_scores
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Texts by element, attributes of all elements, and whether all are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], {}, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(" ".join(data.split()))


@pytest.fixture(scope="module")
def predictions():
    truth = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((8, 8), int))
    settings = ScoreSettings(min_size=3, ignore_below=4)

    def score(pred):
        return [score_labels(truth, pred, settings, name=name) for name in ("a", "<b>&'\"")]

    return {"stock": score(np.where(truth == 3, 0, truth)), "<i>ours</i>": score(truth)}


def test_the_page_says_what_the_tables_say(predictions):
    page = Page(format_html(predictions, {}, "Paired 2 <files>."))
    cells = iter(page.texts["td"])
    comparison = [next(cells) for _ in range(9)]
    assert comparison[:6] == ["<i>ours</i>", "stock", "2 images", "1.000", "0.960", "+0.040"]
    told = [*cells]
    expected = [text for images in predictions.values() for row in tabulate_scores(images)[1]
                for text in row]  # fmt: skip
    assert told == expected
    assert page.texts["h1"] == page.texts["title"] == ["Segmentation score"]
    assert page.texts["h2"] == ["Comparison", "Charts", "stock", "<i>ours</i>"]
    assert page.texts["p"][0] == (
        "matching: any; pictures and sizes at IoU ≥ 0.50; cells below 3 px removed on both sides; "
        "cells below 4 px ignored. Paired 2 <files>."
    )
    # of the two series, of the page that has no pictures
    assert page.texts["span"] == ["stock", "<i>ours</i>"]
    totals = [attributes for tag, attributes in page.attributes if tag == "tr" and attributes]
    assert totals == [{"class": "total"}] * 2


def test_names_cannot_become_markup(predictions):
    text = format_html(predictions, {"<i>ours</i>": [Picture("<script>x</script>", b"png")]}, "<u>")
    assert not re.findall(r"<(i|b|u|script)>", text)
    assert "&lt;script&gt;" in text


def test_pictures_stand_below_their_prediction(predictions):
    pictures = {"stock": [Picture("one", b"1"), Picture("two", b"2")], "<i>ours</i>": []}
    text = format_html(predictions, pictures)
    page = Page(text)
    images = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert [image["alt"] for image in images] == page.texts["figcaption"] == ["one", "two"]
    assert images[0]["src"] == "data:image/png;base64,MQ=="
    assert text.index("<h2>stock") < text.index(">one<") < text.index("<h2>&lt;i&gt;ours")
    # the key of the pictures, in the overlay's colours
    assert text.count("found (true positive)") == 1
    assert "background: #e62828" in text


def test_nothing_is_loaded_from_elsewhere(predictions):
    page = Page(format_html(predictions, {"stock": [Picture("one", b"1")]}))
    assert not {tag for tag, _ in page.attributes} & {"script", "link", "iframe", "object"}
    for _, attributes in page.attributes:
        for name in {"src", "href"} & {*attributes}:
            assert attributes[name].startswith("data:")
    assert not re.search(r"@import|url\(", page.texts["style"][0])


def test_charts_are_of_thresholds_sizes_and_iou(predictions):
    text = format_html(predictions)
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    titles = [chart.find("text[@class='title']").text for chart in charts]
    assert titles == [
        "AP over IoU threshold",
        "AP over cell size, IoU ≥ 0.50",
        "Best IoU of the truth's cells",
    ]
    thresholds, sizes, histogram = charts
    assert len(thresholds.findall("polyline")) == 2
    assert len(thresholds.findall("circle")) == 2 * 10
    # all cells have 64 px: one size, of each prediction
    assert len(sizes.findall("rect")) == 2
    assert len(histogram.findall("rect")) == 2 * 20
    tallest = max(float(bar.get("height")) for bar in histogram.findall("rect"))
    assert tallest == 260 - 30 - 46


def test_one_prediction_is_not_compared(predictions):
    page = Page(format_html({"stock": predictions["stock"][:1]}))
    assert page.texts["h2"] == ["Charts", "stock"]
    assert "span" not in page.texts
    assert not [a for tag, a in page.attributes if a.get("class") == "total"]


def test_templates_are_not_loaded_before_a_page_is_written():
    code = (
        "import sys, densebatch.scoring.page, densebatch.scoring.report\n"
        "before = 'jinja2' in sys.modules\n"
        "densebatch.scoring.page.render_page('base.html', title='x')\n"
        "print(before, 'jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False True\n"
