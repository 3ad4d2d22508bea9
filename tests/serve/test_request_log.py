from __future__ import annotations

import json
import logging
import sys

import pytest

from vitrieve.serve.middleware import JsonFormatter


def spell(event: str, **fields: object) -> str:
    try:
        raise KeyError("no\nsuch\x1b[2J\u202e")
    except KeyError:
        record = logging.LogRecord("vitrieve.serve", logging.ERROR, "", 0, event, (), sys.exc_info())
    record.fields = fields
    return JsonFormatter().format(record)


def test_a_failure_is_one_line_that_no_name_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITRIEVE_DEBUG", raising=False)
    name = "a\nb\x1b\x7f\x9b\u202e\udcff"
    line = spell("failure", image_id=name)
    assert line.isascii()
    assert line.isprintable()
    values = json.loads(line)
    assert values["image_id"] == name
    assert values["error"].startswith("KeyError")
    assert values["where"].startswith("test_request_log.py:")
    assert "traceback" not in values


def test_a_failure_has_its_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_DEBUG", "1")
    line = spell("failure")
    assert line.isprintable()
    assert "Traceback (most recent call last)" in json.loads(line)["traceback"]
