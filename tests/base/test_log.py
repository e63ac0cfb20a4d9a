"""Events for the standard logging: named fields, and silence where nobody listens."""

from __future__ import annotations

import logging
import subprocess
import sys

from densebatch.base.log import log_event

log = logging.getLogger("densebatch.some.module")


def test_an_event_has_words_and_fields(caplog):
    caplog.set_level(logging.INFO, "densebatch")
    log_event(log, "tile traced", row=3, seconds=0.4)
    log_event(log, "tile lost", logging.WARNING)
    traced, lost = caplog.records
    assert (traced.event, traced.fields) == ("tile traced", {"row": 3, "seconds": 0.4})
    assert traced.getMessage() == "tile traced: row=3 seconds=0.4"
    assert (traced.name, traced.levelname) == ("densebatch.some.module", "INFO")
    assert traced.funcName == "test_an_event_has_words_and_fields"  # not `log_event`
    assert (lost.event, lost.fields, lost.getMessage()) == ("tile lost", {}, "tile lost")
    assert lost.levelname == "WARNING"


def test_percent_signs_are_plain_text(caplog):
    caplog.set_level(logging.INFO, "densebatch")
    log_event(log, "file fetched", url="https://a/b%20c")
    assert caplog.records[0].getMessage() == "file fetched: url=https://a/b%20c"


def test_what_nobody_asked_for_is_no_record(caplog):
    caplog.set_level(logging.WARNING, "densebatch")
    log_event(log, "tile traced")
    assert caplog.records == []


def test_a_program_without_handlers_prints_nothing():
    """In a process of its own, since pytest listens; `logging` alone would print warnings."""
    code = (
        "import logging\n"
        "from densebatch.base.log import log_event\n"
        "log_event(logging.getLogger('densebatch.a'), 'tile lost', logging.ERROR)\n"
        "assert logging.getLogger('densebatch').handlers == []\n"
        "assert logging.getLogger().handlers == []\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr) == ("", "")
