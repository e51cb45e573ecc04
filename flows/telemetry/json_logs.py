"""Logs for a machine to read: a JSON line an event, on stderr, where `TRUNKLINE_LOG_FORMAT=json`.

A variable and no option, so that it holds in workers and deployments too, which have no command line of ours.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from engine.errors import UserError

VARIABLE = "TRUNKLINE_LOG_FORMAT"
LOGGERS = ("flows", "tasks", "engine", "kernels", "prefect.flow_runs", "prefect.task_runs")
# What Prefect adds to the records of a run.
_RUN = ("flow_run_id", "flow_run_name", "task_run_id", "task_run_name")


class JsonFormatter(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`, which Prefect run it is of, and an error's type."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: str(value) for name in _RUN if (value := getattr(record, name, None)) is not None}
        if record.exc_info and record.exc_info[0] is not None:
            line["error.type"] = record.exc_info[0].__name__
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


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
