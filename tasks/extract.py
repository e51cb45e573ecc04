"""First step: reads the source once, and turns each row into a request or an error."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from engine.failpoint import failpoint
from engine.model.tokenizer import load_tokenizer
from engine.stages import checkpoint
from tasks.job.job import ROW_COLUMN, Source
from tasks.request.columns import find_columns
from tasks.request.requests import NewRequest, RequestBuilder
from tasks.source.ids import check_ids
from tasks.source.kept import kept_type
from tasks.source.row_error import RowError
from tasks.source.snapshot import take_snapshot
from tasks.source.source_rows import SourceBatch, read_batches
from tasks.step import as_task
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.run import Run
from tasks.storage.run_adapters import are_unchanged
from tasks.storage.stored_plan import REQUESTS, ROWS, find_open_plan, load_plan, plan_folder
from tasks.storage.token_arrays import TOKEN_LIST, TOKEN_LISTS, to_list_array, to_lists_array

log = logging.getLogger(__name__)

NEW_REQUESTS = "new_requests.parquet"
SNAPSHOT = "source.parquet"

_QUOTING = (
    "%s rows hold the text of a special token, which stays text; if it is meant as the token, say "
    "prompt.special_tokens: parsed"
)

_REQUEST_SCHEMA = pa.schema(
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
    """`folder` holds `rows.parquet` and `new_requests.parquet`. With `reused_plan`, nothing was read: that plan,
    of a run that did not finish, has all rows. `notes` are for the user.
    """

    rows: int
    rejected: int
    folder: Path
    source_digest: str
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
    folder.mkdir(mode=0o700)
    snapshot = take_snapshot(
        source, columns.schema, folder / SNAPSHOT, lambda digest: _open_plan(run, digest) is not None
    )
    plan_id = _open_plan(run, snapshot.digest)
    if plan_id is not None:
        return _reuse(run, plan_id, folder)
    if source.id is not None:
        check_ids(read_batches(snapshot.files, [source.id]), source.id, folder)
    rows, rejected = _write_rows(run, snapshot.files, columns.schema, builder, folder)
    snapshot.check_unchanged()
    (folder / SNAPSHOT).unlink(missing_ok=True)
    failpoint("extract.done")
    if builder.quoting_rows:
        log.warning(_QUOTING, f"{builder.quoting_rows:,}")
    notes = () if source.id is not None else ("no source.id: a row's id is its position, counted from 0",)
    return Extracted(rows, rejected, folder, snapshot.digest, notes=notes)


def _open_plan(run: Run, digest: str) -> str | None:
    """One whose adapters are what they were."""
    found = find_open_plan(run.folder, run.fingerprint, digest, retry_failed=run.retry_failed, full=run.full)
    return found if found and are_unchanged(plan_folder(run.folder, found) / REQUESTS) else None


def _reuse(run: Run, plan_id: str, folder: Path) -> Extracted:
    planned = load_plan(run.folder, plan_id)
    note = f"taking up {plan_id} of {planned.run_id}, which did not finish"
    return Extracted(planned.rows, planned.rejected, folder, planned.source_digest, plan_id, (note,))


def _write_rows(
    run: Run, files: Sequence[Path], columns: pa.Schema, builder: RequestBuilder, folder: Path
) -> tuple[int, int]:
    """Returns the numbers of rows and of rejected rows."""
    source = run.job.source
    schema = _row_schema(columns, source)
    rows = rejected = 0
    with parquet_sink(folder / ROWS, schema) as kept, parquet_sink(folder / NEW_REQUESTS, _REQUEST_SCHEMA) as requests:
        for batch in read_batches(files, columns.names):
            failpoint("extract.batch")
            checkpoint()
            ids = batch.custom_ids(source.id)
            built = builder.build(batch, ids)
            kept.write(_row_batch(batch, ids, built, source, schema))
            requests.write(_request_batch(batch.first_row, built))
            rows += len(built)
            rejected += sum(isinstance(one, RowError) for one in built)
    return rows, rejected


def _row_schema(columns: pa.Schema, source: Source) -> pa.Schema:
    kept = [(name, kept_type(columns.field(column))) for column, name in source.keep.items()]
    own = [(ROW_COLUMN, pa.int64()), ("prompt_tokens", pa.int32())]
    texts = [(name, pa.string()) for name in ("custom_id", "request_hash", "error_type", "error_message")]
    return pa.schema([*own, *texts, *kept])


def _row_batch(
    batch: SourceBatch, ids: Sequence[str], built: Sequence[NewRequest | RowError], source: Source, schema: pa.Schema
) -> pa.RecordBatch:
    requests = [one if isinstance(one, NewRequest) else None for one in built]
    errors = [one if isinstance(one, RowError) else None for one in built]
    columns = [
        _positions(batch),
        pa.array([None if one is None else len(one.asked.prompt_token_ids) for one in requests], pa.int32()),
        pa.array(ids, pa.string()),
        pa.array([None if one is None else one.request_hash for one in requests], pa.string()),
        pa.array([None if one is None else one.type for one in errors], pa.string()),
        pa.array([None if one is None else one.message for one in errors], pa.string()),
        *(batch.kept(column, schema.field(name).type) for column, name in source.keep.items()),
    ]
    return pa.record_batch(columns, schema=schema)


def _request_batch(first_row: int, built: Sequence[NewRequest | RowError]) -> pa.RecordBatch:
    """Each request of the batch once, at its first row."""
    first: dict[str, int] = {}
    for offset, one in enumerate(built):
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
    return pa.record_batch(columns, schema=_REQUEST_SCHEMA)


def _positions(batch: SourceBatch) -> pa.Array:
    return pa.array(range(batch.first_row, batch.first_row + batch.num_rows), pa.int64())


extract = as_task(extract_rows, "extract")
