"""First step: reads the source once, and turns each row into a request or an error."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from engine.failpoint import failpoint
from engine.model.tokenizer import load_tokenizer
from engine.stages import checkpoint
from tasks.job.job_source import ROW_COLUMN, Source
from tasks.known_rows import KnownRows, NamedRow, find_known_rows
from tasks.request.columns import find_columns
from tasks.request.requests import NewRequest, RequestBuilder
from tasks.request.row_digests import RowDigests
from tasks.source.ids import check_ids
from tasks.source.kept import kept_type
from tasks.source.row_error import RowError
from tasks.source.snapshot import take_snapshot
from tasks.source.source_rows import SourceBatch, read_batches
from tasks.step import as_task
from tasks.storage.duck import working_connection
from tasks.storage.file_mode import make_folder
from tasks.storage.interruptible import fetch_all
from tasks.storage.manifests import part_files, read_manifests
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.run import Run
from tasks.storage.run_adapters import are_unchanged
from tasks.storage.statements import statement
from tasks.storage.stored_plan import REQUESTS, ROWS, find_open_plan, load_plan, plan_folder
from tasks.storage.token_arrays import TOKEN_LIST, TOKEN_LISTS, to_list_array, to_lists_array

log = logging.getLogger(__name__)

NEW_REQUESTS = "new_requests.parquet"
SNAPSHOT = "source.parquet"

_QUOTING = (
    "%s rows hold the text of a special token, which stays text; if it is meant as the token, say "
    "prompt.special_tokens: parsed"
)

REQUEST_SCHEMA = pa.schema(
    [
        (ROW_COLUMN, pa.int64()),
        ("request_hash", pa.string()),
        ("prompt_token_ids", TOKEN_LIST),
        ("labels", TOKEN_LISTS),
        ("label_texts", pa.list_(pa.string())),
        ("max_tokens", pa.int32()),
        ("ask", pa.string()),
        ("adapter", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """`folder` holds `rows.parquet`, `new_requests.parquet` and, where `row_digests` is their key, `digests.parquet`.

    With `reused_plan`, nothing was read: that plan, of a run that did not finish, has all rows. `notes` are for people.
    """

    rows: int
    rejected: int
    folder: Path
    source_digest: str
    row_digests: str | None = None
    reused_plan: str | None = None
    notes: tuple[str, ...] = ()


def extract_rows(run: Run) -> Extracted:
    """Raises UserError for a missing column, an id that is NULL or not unique, a source that cannot be read."""
    failpoint("extract.start")
    source = run.job.source
    tokenizer = load_tokenizer(run.model)
    columns = find_columns(run.job)
    builder = RequestBuilder(run, columns.prompt, tokenizer)
    folder = run.folder.staged("extract")
    make_folder(folder)
    snapshot = take_snapshot(
        source, columns.schema, folder / SNAPSHOT, lambda digest: _open_plan(run, digest) is not None
    )
    plan_id = _open_plan(run, snapshot.digest)
    if plan_id is not None:
        return _reuse(run, plan_id, folder)
    digests = RowDigests(run, columns, tokenizer)
    if source.id is not None:
        check_ids(read_batches(snapshot.files, [source.id]), source.id, folder)
    known = find_known_rows(run, digests, snapshot.files, folder)
    rows, rejected = _write_rows(run, snapshot.files, columns.schema, builder, known, folder)
    snapshot.check_unchanged()
    (folder / SNAPSHOT).unlink(missing_ok=True)
    failpoint("extract.done")
    if builder.quoting_rows:
        log.warning(_QUOTING, f"{builder.quoting_rows:,}")
    notes = () if source.id is not None else ("no source.id: a row's id is its position, counted from 0",)
    return Extracted(rows, rejected, folder, snapshot.digest, digests.key, notes=notes)


def _open_plan(run: Run, digest: str) -> str | None:
    """One whose adapters are what they were, and each of whose requests is in its shards, or has its answer yet."""
    found = find_open_plan(run.folder, run.fingerprint, digest, retry_failed=run.retry_failed, full=run.full)
    if not found or not are_unchanged(plan_folder(run.folder, found) / REQUESTS):
        return None
    return None if _has_lost_answers(run, found) else found


def _has_lost_answers(run: Run, plan_id: str) -> bool:
    """Whether a part is gone that had an answer when the plan was made: it was damaged since, and set aside."""
    planned = load_plan(run.folder, plan_id)
    if planned.pending == planned.unique:
        return False
    plan, folder = plan_folder(run.folder, plan_id), run.folder.staged("extract")
    parts = [str(run.folder.root / name) for name in part_files(read_manifests(run.folder))]
    values = {"rows": str(plan / ROWS), "held": [str(plan / REQUESTS), *parts]}
    with working_connection(folder, run.folder.root) as connection:
        [(lost,)] = fetch_all(connection, statement("steps/unplanned"), values)
    return bool(lost)


def _reuse(run: Run, plan_id: str, folder: Path) -> Extracted:
    planned = load_plan(run.folder, plan_id)
    note = f"taking up {plan_id} of {planned.run_id}, which did not finish"
    return Extracted(planned.rows, planned.rejected, folder, planned.source_digest, reused_plan=plan_id, notes=(note,))


def _write_rows(
    run: Run, files: Sequence[Path], columns: pa.Schema, builder: RequestBuilder, known: KnownRows, folder: Path
) -> tuple[int, int]:
    """Returns the numbers of rows and of rejected rows. Of known rows no request is built."""
    source = run.job.source
    schema = _row_schema(columns, source)
    rows = rejected = 0
    with parquet_sink(folder / ROWS, schema) as kept, parquet_sink(folder / NEW_REQUESTS, REQUEST_SCHEMA) as requests:
        for batch in read_batches(files, columns.names):
            failpoint("extract.batch")
            checkpoint()
            ids = batch.custom_ids(source.id)
            named = known.between(batch.first_row, batch.first_row + batch.num_rows)
            others = [row for row in range(batch.num_rows) if row not in named]
            built = dict(zip(others, _build(builder, batch, others, ids), strict=True))
            named |= {row: _named(one) for row, one in built.items()}
            kept.write(_row_batch(batch, ids, [named[row] for row in range(batch.num_rows)], source, schema))
            requests.write(_request_batch(batch.first_row, built))
            rows += len(named)
            rejected += sum(one.error_type is not None for one in named.values())
    return rows, rejected


def _build(
    builder: RequestBuilder, batch: SourceBatch, rows: Sequence[int], ids: Sequence[str]
) -> list[NewRequest | RowError]:
    return builder.build(batch.choose(rows), [ids[row] for row in rows]) if rows else []


def _named(one: NewRequest | RowError) -> NamedRow:
    if isinstance(one, RowError):
        return NamedRow(None, None, one.type, one.message)
    return NamedRow(one.request_hash, len(one.asked.prompt_token_ids))


def _row_schema(columns: pa.Schema, source: Source) -> pa.Schema:
    kept = [(name, kept_type(columns.field(column))) for column, name in source.keep.items()]
    own = [(ROW_COLUMN, pa.int64()), ("prompt_tokens", pa.int32())]
    texts = [(name, pa.string()) for name in ("custom_id", "request_hash", "error_type", "error_message")]
    return pa.schema([*own, *texts, *kept])


def _row_batch(
    batch: SourceBatch, ids: Sequence[str], rows: Sequence[NamedRow], source: Source, schema: pa.Schema
) -> pa.RecordBatch:
    columns = [
        _positions(batch),
        pa.array([row.prompt_tokens for row in rows], pa.int32()),
        pa.array(ids, pa.string()),
        pa.array([row.request_hash for row in rows], pa.string()),
        pa.array([row.error_type for row in rows], pa.string()),
        pa.array([row.error_message for row in rows], pa.string()),
        *(batch.kept(column, schema.field(name).type) for column, name in source.keep.items()),
    ]
    return pa.record_batch(columns, schema=schema)


def _request_batch(first_row: int, built: Mapping[int, NewRequest | RowError]) -> pa.RecordBatch:
    """Each request of the batch once, at its first row; `built` are by their place in the batch, rising."""
    first: dict[str, int] = {}
    for offset, one in built.items():
        if isinstance(one, NewRequest):
            first.setdefault(one.request_hash, offset)
    new = [one for offset in first.values() if isinstance(one := built[offset], NewRequest)]
    requests = [one.asked for one in new]
    columns = [
        pa.array([first_row + offset for offset in first.values()], pa.int64()),
        pa.array(list(first), pa.string()),
        to_list_array([request.prompt_token_ids for request in requests]),
        to_lists_array([request.labels for request in requests]),
        pa.array([request.label_texts for request in requests], pa.list_(pa.string())),
        pa.array([request.max_tokens for request in requests], pa.int32()),
        pa.array([one.ask.text for one in new], pa.string()),
        pa.array([request.adapter for request in requests], pa.string()),
    ]
    return pa.record_batch(columns, schema=REQUEST_SCHEMA)


def _positions(batch: SourceBatch) -> pa.Array:
    return pa.array(range(batch.first_row, batch.first_row + batch.num_rows), pa.int64())


extract = as_task(extract_rows, "extract")
