"""What the cookbook page shows is right."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from densebatch.segmenters.command import PLACEHOLDERS, CommandOptions
from densebatch.segmenters.find import list_segmenters
from densebatch.segmenters.instanseg import InstanSegOptions
from densebatch.segmenters.stardist import StarDistOptions
from densebatch.segmenters.watershed import WatershedOptions
from densebatch.testing import check_segmenter

PAGE = (Path(__file__).parents[2] / "docs/segmenters.md").read_text()


def test_the_function_in_ten_lines_conforms(tmp_path, monkeypatch):
    source = re.findall(r"```python\n# my_module.py\n(.*?)```", PAGE, re.DOTALL)[0]
    (tmp_path / "my_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert check_segmenter("my_module:label").findings == ()
        check_segmenter("my_module:label", {"threshold": 0.4}, um_per_px=None, channels=2)
    finally:
        sys.modules.pop("my_module")


def test_the_page_has_every_name_and_option():
    fields = [
        name
        for kind in (WatershedOptions, StarDistOptions, InstanSegOptions, CommandOptions)
        for name in kind.model_fields
    ]
    names = ["watershed", "stardist", "instanseg"]
    assert set(names) <= set(list_segmenters())
    for name in (*fields, *names):
        assert f"`{name}`" in PAGE, name
    for name in PLACEHOLDERS:
        assert f"`{{{name}}}`" in PAGE
