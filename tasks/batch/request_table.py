"""A batch file as a table: a row, or several, for each of its lines."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from engine.failpoint import failpoint
from tasks.batch.batch_line import BatchLine, parse_line
from tasks.batch.endpoint import BadRequestError, Json, RowAsk
from tasks.batch.line_file import LONGEST_LINE, read_lines
from tasks.storage.commit import replace_file, sha256_of
from tasks.storage.duck import BATCH_ROWS, working_connection
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.statements import statement

# Counted up when lines become other rows than before.
_FORMAT = 2
_BATCH_BYTES = 8_000_000
_DIGEST = b"trunkline.batch"

# `prompt`, `task` and `sampling` are what a job reads of a row; `reply` is what its response says of the request again,
# and `fault` what is wrong with a line that has none of these. All of them are JSON.
SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("line", pa.int64()),
        ("batch_id", pa.string()),
        ("prompt", pa.large_string()),
        ("task", pa.large_string()),
        ("sampling", pa.large_string()),
        ("reply", pa.large_string()),
        ("fault", pa.string()),
    ]
)
_ID_SCHEMA = pa.schema([("line", pa.int64()), ("custom_id", pa.string())])


def write_table(source: Path, target: Path, models: Collection[str]) -> None:
    """Writes `target`, unless it is this source's already. Only one process may do so at a time.

    Of lines with one id the first is a request, the others are faults. Raises UserError for a file that cannot be read,
    or has no line.
    """
    digest = _digest(source, models)
    if target.is_file() and (pq.read_schema(target).metadata or {}).get(_DIGEST) == digest:
        return
    with TemporaryDirectory(dir=target.parent, prefix="staging-") as folder:
        staged, ids = Path(folder, "requests.parquet"), Path(folder, "ids.parquet")
        schema = SCHEMA.with_metadata({_DIGEST: digest})
        lines = _write(_parsed(source, models), staged, schema, ids)
        if lines == 0:
            raise UserError(f"{source}: has no line; a batch file has a JSON object in each")
        repeated = _repeated(ids)
        first = next(repeated, None)
        if first is not None:
            staged.unlink()
            ids.unlink()
            _write(_refused(_parsed(source, models), first, repeated), staged, schema, ids)
        failpoint("requests.staged")
        replace_file(staged, target)


def _digest(source: Path, models: Collection[str]) -> bytes:
    try:
        content = sha256_of(source)
    except OSError as problem:
        raise UserError(f"{source}: cannot be read ({problem.strerror})") from None
    return hashlib.sha256(json.dumps([_FORMAT, content, sorted(models)]).encode()).hexdigest().encode()


def _parsed(source: Path, models: Collection[str]) -> Iterator[BatchLine]:
    for number, line in read_lines(source):
        if line is None:
            fault = BadRequestError("invalid_json_line", f"the line is longer than {LONGEST_LINE // 2**20} MiB")
            yield BatchLine(number, None, None, None, fault)
        else:
            yield parse_line(number, line, models)


def _refused(lines: Iterable[BatchLine], first: int, repeated: Iterator[int]) -> Iterator[BatchLine]:
    """Lines whose number is among `first` and the others of `repeated`, which rise, as faults."""
    bad: int | None = first
    for line in lines:
        if line.number == bad:
            said = "an earlier line has this custom_id; each line needs its own"
            fault = BadRequestError("duplicate_custom_id", said, "custom_id")
            line = BatchLine(line.number, line.custom_id, line.url, line.model, fault)
            bad = next(repeated, None)
        yield line


def _repeated(ids: Path) -> Iterator[int]:
    """Lines with an id that an earlier one has; DuckDB groups them out of core."""
    with working_connection(ids.parent) as connection:
        query = connection.sql(statement("steps/repeated_ids"), params={"ids": str(ids)})
        for batch in query.to_arrow_reader(BATCH_ROWS):
            yield from batch.column("line").to_pylist()


def _write(lines: Iterable[BatchLine], target: Path, schema: pa.Schema, ids: Path) -> int:
    """Returns the number of lines."""
    count = 0
    with parquet_sink(target, schema) as rows, parquet_sink(ids, _ID_SCHEMA) as named:
        for part in _bounded(lines):
            count += len(part)
            rows.write(pa.RecordBatch.from_pylist([row for _, own in part for row in own], schema))
            ids_there = [
                {"line": line.number, "custom_id": line.custom_id} for line, _ in part if line.custom_id is not None
            ]
            named.write(pa.RecordBatch.from_pylist(ids_there, _ID_SCHEMA))
    return count


def _bounded(lines: Iterable[BatchLine]) -> Iterator[list[tuple[BatchLine, list[Json]]]]:
    """Lines with their rows, bounded in lines and in what they hold."""
    part: list[tuple[BatchLine, list[Json]]] = []
    held = 0
    for line in lines:
        own = _rows(line)
        part.append((line, own))
        held += sum(len(cell) for row in own for cell in row.values() if isinstance(cell, str))
        if len(part) == BATCH_ROWS or held > _BATCH_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def _rows(line: BatchLine) -> list[Json]:
    head = {"row": str(line.number), "line": line.number, "batch_id": line.custom_id}
    if isinstance(line.asked, BadRequestError):
        fault = {"code": line.asked.code, "message": str(line.asked), "param": line.asked.param}
        return [head | {"fault": json.dumps(fault)}]
    reply = json.dumps(line.asked.reply | {"url": line.url, "model": line.model})
    asked = line.asked.rows
    return [
        head | _cells(one) | {"row": str(line.number) if len(asked) == 1 else f"{line.number}.{place}", "reply": reply}
        for place, one in enumerate(asked)
    ]


def _cells(asked: RowAsk) -> Json:
    sampling = json.dumps(asked.sampling) if asked.sampling else None
    return {"prompt": json.dumps(asked.prompt), "task": json.dumps(asked.task), "sampling": sampling}
