"""Logs for a machine to read: a JSON line an event, on stderr, where `TRUNKLINE_LOG_FORMAT=json`.

A variable and no option, so that it holds in workers and deployments too, which have no command line of ours.

The words of an exception that is none of ours may quote a row: a line has its type and its places alone.
"""

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from engine.errors import TerminalError, TransientError, UserError

VARIABLE = "TRUNKLINE_LOG_FORMAT"
LOGGERS = ("flows", "tasks", "engine", "kernels", "prefect.flow_runs", "prefect.task_runs")
_OURS = (TerminalError, TransientError)
# Prefect's own lines about a failure, up to its words.
_PREFECTS = re.compile(r"(Finished in state \w+|Crash detected!).*", re.DOTALL)
# What Prefect adds to the records of a run.
_RUN = ("flow_run_id", "flow_run_name", "task_run_id", "task_run_name")


class JsonFormatter(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`, which Prefect run it is of, and an error's type."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line |= {name: str(value) for name in _RUN if (value := getattr(record, name, None)) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line["error.type"] = type(record.exc_info[1]).__name__
            line["traceback"] = "\n".join(_places(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    """What was logged, with the types of exceptions that are not ours in the place of their words."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    exceptions = [one for one in arguments if isinstance(one, BaseException)]
    if record.exc_info and record.exc_info[1] is not None:
        exceptions.append(record.exc_info[1])
    message = record.getMessage()
    if record.name.startswith("prefect."):
        message = _PREFECTS.sub(r"\1", message)
    for one in exceptions:
        if not isinstance(one, _OURS):
            for words in filter(None, (repr(one), str(one))):
                message = message.replace(words, type(one).__name__)
    return message


def _places(problem: BaseException) -> list[str]:
    """Where it was raised, outermost call first, and its type; before it those of what it came from."""
    chain: list[BaseException] = []
    cause: BaseException | None = problem
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    lines = []
    for one in reversed(chain):
        for frame, line in traceback.walk_tb(one.__traceback__):
            lines.append(f'File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}')
        lines.append(type(one).__name__)
    return lines


def is_wanted() -> bool:
    """Raises UserError for another form than `json` and `text`."""
    form = os.environ.get(VARIABLE, "text")
    if form not in ("json", "text"):
        raise UserError(f"{VARIABLE}: {form} is not a form of logs; take json or text")
    return form == "json"


@contextmanager
def json_logs() -> Iterator[None]:
    """What is logged within the context, from INFO on, is a line each."""
    if not is_wanted():
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
