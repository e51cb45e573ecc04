"""A batch's results to its two files, line by line."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from engine.errors import UserError
from engine.failpoint import failpoint
from engine.model.checkpoint import ModelFiles
from engine.model.tokenizer import load_tokenizer
from tasks.batch.endpoint import Answered, Json, ResponseHead, TokenTexts
from tasks.batch.endpoints import ENDPOINTS
from tasks.batch.parameters import SAMPLING
from tasks.report.published import open_published
from tasks.report.views import open_views
from tasks.source.row_error import BAD_SAMPLING, BAD_TASK, CONTEXT_OVERFLOW
from tasks.storage.commit import open_private, replace_file
from tasks.storage.duck import BATCH_ROWS
from tasks.storage.interruptible import batches_of, open_reader
from tasks.storage.output_folder import OutputFolder
from tasks.storage.statements import statement

Row = Mapping[str, Any]

# A row's fault that is not the request's.
_OUR_FAULTS = ("NON_FINITE", "OUT_OF_MEMORY")
_CODES = {CONTEXT_OVERFLOW: "context_length_exceeded", BAD_SAMPLING: "invalid_value", BAD_TASK: "invalid_value"}
_STATUS = {"model_not_found": 404}
# How a job's faults name a key, or begin with the key of two that do not go together.
_KEY = re.compile(r"(?:sampling|task)\.(?=([\w.]+):)")
_PAIR = re.compile(r"sampling: (?=(\w+))")
_STRUCTURE = "structured_outputs"


@dataclass(frozen=True, slots=True)
class Exported:
    """How many lines are in each file."""

    responses: int
    errors: int


def export(results: OutputFolder, model: ModelFiles, model_name: str, out: Path, errors: Path) -> Exported:
    """Writes both files whole or not at all. Raises UserError where results are missing."""
    published = open_published(results)
    counts = {out: 0, errors: 0}
    tokens = _Tokens(model)
    with open_views(results, published.plan_id, published.manifests) as connection:
        warning = published.warning(connection)
        if warning is not None:
            raise UserError(warning)
        reader = open_reader(connection, connection.sql(statement("steps/batch_rows")), BATCH_ROWS)
        rows = (row for batch in batches_of(connection, reader) for row in batch.to_pylist())
        # What a killed run left under such a name is written over.
        staged = {path: path.with_name(f".{path.name}.staged") for path in (out, errors)}
        for path in staged.values():
            path.unlink(missing_ok=True)
        with open_private(staged[out]) as responses, open_private(staged[errors]) as faults:
            files = {out: responses, errors: faults}
            for line in to_lines(rows, tokens, model_name, f"fp_{model.fingerprint[:12]}"):
                path = out if line["error"] is None else errors
                files[path].write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                counts[path] += 1
    failpoint("batch.staged")
    for path in (errors, out):
        replace_file(staged[path], path)
    return Exported(counts[out], counts[errors])


def to_lines(rows: Iterable[Row], tokens: TokenTexts, model_name: str, fingerprint: str) -> Iterator[Json]:
    """A line for each that the batch's file had, of rows in its order."""
    for _, group in groupby(rows, key=lambda row: cast(int, row["line"])):
        yield _line(list(group), tokens, model_name, fingerprint)


def _line(rows: list[Row], tokens: TokenTexts, model_name: str, fingerprint: str) -> Json:
    first = rows[0]
    digest = _digest(rows)
    line: Json = {"id": f"batch_req_{digest}", "custom_id": first["batch_id"]}
    fault = next((found for row in rows if (found := _fault(row)) is not None), None)
    if fault is not None:
        return line | _error(fault, f"req_{digest}", first["line"])
    reply = json.loads(first["reply"])
    endpoint = ENDPOINTS[reply["url"]]
    created = max(row["created"] or 0 for row in rows)
    head = ResponseHead(f"{endpoint.id_prefix}-{digest}", created, reply["model"] or model_name, fingerprint)
    body = endpoint.response(Answered(head, reply, rows, tokens))
    return line | {"response": {"status_code": 200, "request_id": f"req_{digest}", "body": body}, "error": None}


def _digest(rows: list[Row]) -> str:
    """Of the line and of what it asks, so that it is the same in every export."""
    asked = [rows[0]["line"], rows[0]["batch_id"], [row["request_hash"] for row in rows]]
    return blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()


def _fault(row: Row) -> Json | None:
    """What is wrong with the line that the row is of, or with the row; None where nothing is."""
    if row["fault"] is not None:
        fault: Json = json.loads(row["fault"])
        return fault | {"status_code": _STATUS.get(fault["code"], 400)}
    if row["status"] == "ok":
        return None
    kind = row["error_type"] or "ERROR"
    ours = kind in _OUR_FAULTS
    code = "server_error" if ours else _CODES.get(kind, kind.lower())
    param, said = _in_request_names(str(row["error_message"]), json.loads(row["reply"]).get("structure"))
    return {"code": code, "message": said, "param": param, "status_code": 500 if ours else 400}


def _in_request_names(message: str, structure: str | None) -> tuple[str | None, str]:
    """The parameter that a row's fault is about, None where that is open, and the fault without the job's own keys.

    `structure` is the parameter that asks for a form.
    """
    pair = _PAIR.match(message)
    if pair is not None:
        return (pair[1] if pair[1] in SAMPLING else None), message.removeprefix(pair[0])
    named = _KEY.match(message)
    if named is None:
        return None, message
    said = message.removeprefix(named[0])
    if structure not in (None, _STRUCTURE) and named[1].partition(".")[0] == _STRUCTURE:
        return structure, f"{structure}{said.removeprefix(named[1])}"
    return named[1], said


def _error(fault: Json, request_id: str, line: int) -> Json:
    status = fault.pop("status_code")
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": fault["message"], "type": kind, "param": fault["param"], "code": fault["code"]}}
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"response": response, "error": fault | {"line": line}}


class _Tokens(TokenTexts):
    """Of a tokenizer that is loaded for the first token that a response shows."""

    def __init__(self, model: ModelFiles) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], str] = {}

    def text(self, token_ids: Sequence[int]) -> str:
        key = tuple(token_ids)
        if len(key) > 1:
            return self._decode(key)
        if key not in self._known:
            self._known[key] = self._decode(key)
        return self._known[key]

    def _decode(self, token_ids: tuple[int, ...]) -> str:
        decoded = self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._model)
