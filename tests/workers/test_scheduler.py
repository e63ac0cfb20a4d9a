"""A scheduler is named by its address or its file; `tests/cli/test_bad_input.py` has more."""

import re

import pytest

from densebatch.base.errors import InputError
from densebatch.planning.settings import load_settings
from densebatch.workers import scheduler as module
from densebatch.workers.cluster import open_executor
from densebatch.workers.scheduler import Scheduler, check_scheduler, find_address


@pytest.mark.parametrize("by", ["check", "open"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        ("", "holds no address"),
        ("[1]", "holds no address"),
        ('{"id": 1}', "holds no address"),
    ],
)
def test_scheduler_file_without_a_scheduler(tmp_path, monkeypatch, content, told, by):
    monkeypatch.setattr(module, "_FILE_WAIT_S", 0.3)
    monkeypatch.setattr(module, "_WRITE_WAIT_S", 0.3)
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    told = f"scheduler file {file}: {told}; accepted is the file that "
    use = check_scheduler if by == "check" else lambda it: open_executor(0, it).__enter__()
    with pytest.raises(InputError, match=f"^{re.escape(told)}"):
        use(Scheduler(file=file))


def test_a_scheduler_has_one_name(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://a:1"}')
    assert find_address(Scheduler(file=file)) == find_address(Scheduler("tcp://a:1")) == "tcp://a:1"
    told = f"scheduler address tcp://a:1 and scheduler file {file} are both given; accepted is one"
    with pytest.raises(InputError, match=f"^{re.escape(told)}$"):
        Scheduler("tcp://a:1", file)


def test_settings_name_a_scheduler_or_none(tmp_path):
    assert load_settings(None).scheduler is None
    assert load_settings(None, scheduler_address="a:1").scheduler == Scheduler("a:1")
    assert load_settings(None, scheduler_file=tmp_path).scheduler == Scheduler(file=tmp_path)
    check_scheduler(None)
