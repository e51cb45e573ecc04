"""A Prefect server asked over HTTP, as its own page asks it."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any


def get(api: str, path: str) -> Any:
    with urllib.request.urlopen(f"{api}/{path}", timeout=30) as answer:
        return json.load(answer)


def post(api: str, path: str, content: Any) -> Any:
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def last_run(api: str) -> Any:
    """The flow run that was asked for last."""
    return post(api, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
