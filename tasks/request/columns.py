"""The columns that a job reads, checked against the source before any work."""

from dataclasses import dataclass

import pyarrow as pa

from engine.errors import UserError
from tasks.job.job import ScoringJob
from tasks.request.prompts import prompt_columns, prompt_names
from tasks.request.template import SPELLING
from tasks.source.cells import has_cells
from tasks.source.kept import kept_type
from tasks.source.source import check_columns, read_schema
from tasks.source.source_rows import is_json


@dataclass(frozen=True, slots=True)
class JobColumns:
    """`prompt` are those that the prompt reads; `schema` has every column that the job does."""

    prompt: tuple[str, ...]
    schema: pa.Schema


def find_columns(job: ScoringJob) -> JobColumns:
    """Raises UserError, which names the job's key, for a column that the source lacks or whose type is of no use."""
    named = {f"source.keep.{column}": column for column in job.source.keep}
    if job.source.id is not None:
        named["source.id"] = job.source.id
    named |= job.columns
    available = read_schema(job.source, {*prompt_names(job.prompt), *named.values()})
    columns = prompt_columns(job.prompt, available.names)
    for column in columns:
        try:
            check_columns(available.names, {f"prompt.{job.prompt.key}": column})
        except UserError as problem:
            odd = job.prompt.template is not None and not all(map(str.isidentifier, available.names))
            raise UserError(f"{problem} ({SPELLING})" if odd else str(problem)) from None
    check_columns(available.names, named)
    schema = pa.schema([available.field(name) for name in dict.fromkeys([*columns, *named.values()])])
    _check_types(job, columns, schema)
    return JobColumns(columns, schema)


def _check_types(job: ScoringJob, columns: tuple[str, ...], schema: pa.Schema) -> None:
    read = [(f"prompt.{job.prompt.key}", column) for column in columns]
    read += job.columns.items()
    for key, column in read:
        if not has_cells(schema.field(column).type):
            raise UserError(f"{key}: column {column!r} has type {schema.field(column).type}, which has no common text")
    if job.source.id is not None:
        kind = schema.field(job.source.id).type
        if pa.types.is_nested(kind) or not has_cells(kind):
            raise UserError(f"source.id: column {job.source.id!r} has type {kind}; an id is one text, number or date")
    for column in job.source.keep:
        if not is_json(schema.field(column)):
            kept_type(schema.field(column))
