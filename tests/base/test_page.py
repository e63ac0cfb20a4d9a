import base64
from importlib.resources import files

import jinja2
import pytest

from densebatch.base.page import Picture, render_page


def test_a_picture_is_its_own_address():
    png = bytes(range(256))
    kind, coded = Picture("x", png).uri.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(coded) == png


def test_text_is_escaped():
    page = render_page("base.html", title="<script>alert('&')</script>")
    assert page.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;") == 2
    assert "<script>" not in page


def test_what_a_template_names_must_be_given():
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render_page("base.html")


def test_every_page_is_an_extension_of_the_base():
    folder = files("densebatch.base") / "templates"
    pages = {file.name: file.read_text() for file in folder.iterdir()}
    assert {"base.html", "macros.html", "score.html", "demo.html"} == pages.keys()
    for name in pages.keys() - {"base.html", "macros.html"}:
        assert pages[name].startswith('{% extends "base.html" %}')
        assert "<table" not in pages[name]
        assert "<figure" not in pages[name]
