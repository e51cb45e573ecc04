"""A JSON line an event, where `TRUNKLINE_LOG_FORMAT` says so."""

import json
import logging

import pytest

from engine.errors import UserError
from flows.telemetry.json_logs import VARIABLE, json_logs


def test_each_event_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(VARIABLE, "json")
    tasks, flow = logging.getLogger("tasks.extract"), logging.getLogger("prefect.flow_runs")
    with json_logs():
        tasks.warning("two\nlines of %s", "ü")
        flow.info("shard 1 of 2", extra={"flow_run_id": "f-1", "flow_run_name": "score-test"})
        tasks.debug("too much")
        try:
            raise ValueError("why")
        except ValueError:
            tasks.exception("it failed")
    tasks.warning("after")
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {
        "time": first["time"],
        "level": "warning",
        "logger": "tasks.extract",
        "message": "two\nlines of ü",
    }
    assert first["time"].endswith("+00:00")
    assert (second["flow_run_id"], second["flow_run_name"], second["level"]) == ("f-1", "score-test", "info")
    assert third["error.type"] == "ValueError"
    assert "Traceback" in third["traceback"]


def test_without_the_variable_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = logging.getLogger("tasks").handlers[:]
    with json_logs():
        assert logging.getLogger("tasks").handlers == before


def test_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "yaml")
    with (
        pytest.raises(UserError, match="TRUNKLINE_LOG_FORMAT: yaml is not a form of logs; take json or text"),
        json_logs(),
    ):
        pass
