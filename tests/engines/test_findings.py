"""What is remembered of this machine, and when it is not believed."""

from __future__ import annotations

import json
import logging
import os

import pytest

from densebatch.base.files import cache_folder
from densebatch.engines import findings
from densebatch.engines.findings import recall, remember


def test_findings_are_remembered_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "not" / "there"))
    assert cache_folder() == tmp_path / "not" / "there"
    assert recall({"a": 1}) is None
    remember({"a": 1}, {"b": 2})
    assert recall({"a": 1}) == {"b": 2}
    assert recall({"a": 2}) is None
    (path,) = (tmp_path / "not" / "there" / "engines").iterdir()
    assert json.loads(path.read_text())["identity"]["machine"]["cores"] == os.cpu_count()
    whole = path.read_bytes()
    other = json.dumps({"identity": {"a": 2}, "finding": {"b": 3}}).encode()
    for content in (whole[:50], b"", b"[]", b"\xff", b'{"identity": 1}', other):
        path.write_bytes(content)
        assert recall({"a": 1}) is None
    remember({"a": 1}, {"b": 2})
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "file"))
    remember({"a": 1}, {"b": 2})
    assert recall({"a": 1}) is None


@pytest.mark.parametrize("changed", ["identify_machine", "list_versions"])
def test_a_finding_of_another_machine_or_version_is_not_recalled(tmp_path, monkeypatch, changed):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path))
    remember({"a": 1}, {"b": 2})
    with monkeypatch.context() as patch:
        patch.setattr(findings, changed, lambda: {"other": "one"})
        assert recall({"a": 1}) is None
    assert recall({"a": 1}) == {"b": 2}


def test_what_is_kept_recalled_or_lost_is_an_event(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "densebatch")
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    assert recall({"finding": "trial", "a": 1}) is None
    remember({"finding": "trial", "a": 1}, {"b": 2})
    recall({"finding": "trial", "a": 1})
    (file,) = (tmp_path / "cache" / "engines").iterdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "file"))
    remember({"finding": "trial", "a": 1}, {"b": 2})
    kept, recalled, lost = caplog.records
    assert (kept.event, kept.fields) == ("finding kept", {"finding": "trial", "file": str(file)})
    assert (recalled.event, recalled.fields) == ("finding recalled", kept.fields)
    assert (lost.event, lost.levelname) == ("finding not kept", "WARNING")
    assert "Not a directory" in lost.fields["reason"]
