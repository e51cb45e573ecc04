"""A JSON line an event, where `TRUNKLINE_LOG_FORMAT` says so."""

import json
import logging
import re

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
    assert third["message"] == "it failed"


@pytest.mark.fault(25)
def test_an_exceptions_words_are_in_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "json")
    log, prefects = logging.getLogger("tasks.extract"), logging.getLogger("prefect.task_runs")
    with json_logs():
        try:
            try:
                raise KeyError("a prompt")
            except KeyError as cause:
                raise ValueError("a prompt, whole") from cause
        except ValueError as problem:
            log.exception("rows are lost: %s", problem)
            prefects.error(f"Task run failed with exception: {problem!r} - Retries are exhausted", exc_info=True)
            prefects.info("Task run failed with %s: %r - Retry %s/%s", "exception", problem, 1, 3)
        prefects.info("Finished in state Failed('Task run encountered an exception ValueError: a prompt\\nwhole')")
        prefects.error("Crash detected! Execution was interrupted by an unexpected exception: ValueError: a prompt")
        log.warning("%s", UserError("model.path: no such folder"))
    # Prefect's console may have its own lines beside ours.
    written = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert "a prompt" not in "\n".join(written)
    lines = list(map(json.loads, written))
    assert [line["message"] for line in lines] == [
        "rows are lost: ValueError",
        "Task run failed with exception: ValueError - Retries are exhausted",
        "Task run failed with exception: ValueError - Retry 1/3",
        "Finished in state Failed",
        "Crash detected!",
        "model.path: no such folder",
    ]
    place = re.compile(rf'File "{re.escape(__file__)}", line \d+, in test_an_exceptions_words_are_in_no_line')
    where, kind, whence, last = lines[0]["traceback"].splitlines()
    assert place.fullmatch(where)
    assert place.fullmatch(whence)
    assert (kind, last, lines[0]["error.type"]) == ("KeyError", "ValueError", "ValueError")


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
