"""A line of a batch file: its request, or what is wrong with it."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tasks.batch.endpoint import Asked, BadRequestError, Json
from tasks.batch.endpoints import ENDPOINTS
from tasks.source.cells import is_utf8

_KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchLine:
    """`asked` is the request, or the fault of the line; `custom_id`, `url` and `model` are None where it has none."""

    number: int
    custom_id: str | None
    url: str | None
    model: str | None
    asked: Asked | BadRequestError


def parse_line(number: int, line: bytes, models: Collection[str]) -> BatchLine:
    """`models` are the names of the one that answers. A request that names none gets it too."""
    try:
        request = json.loads(line, object_pairs_hook=_once)
    except BadRequestError as fault:
        return BatchLine(number, None, None, None, fault)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        return BatchLine(number, None, None, None, BadRequestError("invalid_json_line", "the line is no JSON object"))
    custom_id, url = (value if isinstance(value := request.get(name), str) else None for name in ("custom_id", "url"))
    body = request.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    named = model if isinstance(model, str) and is_utf8(model) else None
    usable_id = custom_id if custom_id and is_utf8(custom_id) else None
    try:
        asked: Asked | BadRequestError = _read(request, usable_id, models)
    except BadRequestError as fault:
        asked = fault
    return BatchLine(number, usable_id, url, named, asked)


def _read(request: Json, custom_id: str | None, models: Collection[str]) -> Asked:
    if custom_id is None:
        said = "custom_id is required, and is a text that no other line has"
        raise BadRequestError("missing_required_parameter", said, "custom_id")
    unknown = next((name for name in request if name not in _KEYS), None)
    if unknown is not None:
        raise BadRequestError("unknown_parameter", f"a line has no key {unknown!r:.60}", unknown)
    if request.get("method") != "POST":
        raise BadRequestError("invalid_method", f"method is POST, not {request.get('method')!r:.60}", "method")
    endpoint = ENDPOINTS.get(str(request.get("url")))
    if endpoint is None:
        said = f"url is one of {', '.join(ENDPOINTS)}, not {request.get('url')!r:.60}"
        raise BadRequestError("invalid_url", said, "url")
    body = request.get("body")
    if not isinstance(body, dict):
        raise BadRequestError("missing_required_parameter", "body is required, and is an object", "body")
    given = {name: value for name, value in body.items() if value is not None}
    _check_model(given.get("model"), models)
    return endpoint.read(given)


def _check_model(model: object, models: Collection[str]) -> None:
    if model is not None and model not in models:
        said = f"the model {model!r:.100} is not the one that runs, {' or '.join(sorted(models))}"
        raise BadRequestError("model_not_found", said, "model")


def _once(pairs: Iterable[tuple[str, Any]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        if key in found:
            raise BadRequestError("invalid_json_line", f"the key {key[:60]!r} is there twice")
        found[key] = value
    return found
