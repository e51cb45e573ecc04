"""Parquet files: their columns are joined by name, and a file that lacks one has NULLs there."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from tasks.source.cells import is_text, plain_type
from tasks.source.dictionaries import check_indices
from tasks.source.partitions import partition_of
from tasks.storage.parquet_stream import parquet_stream

BATCH_ROWS = 4096
_BATCH_BYTES = 64 * 2**20
_WIDENED = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


def read_schema(files: Sequence[Path], wanted: Collection[str]) -> pa.Schema:
    """All files' columns, partitions included. Raises UserError where the types of a wanted one clash."""
    fields: dict[str, pa.Field] = {}
    found_in: dict[str, Path] = {}
    for path in files:
        for field in _file_fields(path):
            first = fields.setdefault(field.name, field)
            common = _common_type(first.type, field.type)
            if common is None and field.name in wanted:
                raise UserError(
                    f"source.parquet: column {field.name!r} is {first.type} in {found_in[field.name]} and {field.type} "
                    f"in {path}; write it with one type"
                )
            fields[field.name] = pa.field(field.name, common or first.type)
            found_in.setdefault(field.name, path)
    return pa.schema(fields.values())


def read_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of `columns`, of at most 4096 rows, fewer where rows are large."""
    for path in files:
        partition = partition_of(path)
        try:
            with parquet_stream(path) as file:
                there = [name for name in columns if name in file.schema_arrow.names]
                for data in file.iter_batches(_batch_rows(file.metadata), columns=there):
                    for array in data.columns:
                        check_indices(array)
                    yield _completed(data, columns, partition)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
            raise _unreadable(path, problem) from None


def _completed(data: pa.RecordBatch, columns: Sequence[str], partition: dict[str, str | None]) -> pa.RecordBatch:
    arrays = [
        data.column(name)
        if name in data.schema.names
        else pa.repeat(pa.scalar(partition.get(name), pa.string()), data.num_rows)
        for name in columns
    ]
    fields = [
        data.schema.field(name) if name in data.schema.names else pa.field(name, array.type)
        for name, array in zip(columns, arrays, strict=True)
    ]
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _file_fields(path: Path) -> list[pa.Field]:
    try:
        schema = pq.read_schema(path).remove_metadata()
        names = schema.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise _unreadable(path, problem) from None
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"source.parquet: {path} has column {twice[0]!r} twice")
    own = [pa.field(name, pa.string()) for name in partition_of(path) if name not in names]
    return [*schema, *own]


def _unreadable(path: Path, problem: Exception) -> UserError:
    said = " ".join(str(problem).split())[:100]
    return UserError(f"source.parquet: {path} cannot be read as Parquet ({said})")


def _common_type(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds both; texts of every kind are one, and numbers grow wider but stay what they are."""
    if first == other or pa.types.is_null(other):
        return first
    if pa.types.is_null(first):
        return other
    if is_text(plain_type(first)) and is_text(plain_type(other)):
        return pa.string()
    if not any(test(first) and test(other) for test in _WIDENED):
        return None
    schemas = [pa.schema([("", kind)]) for kind in (first, other)]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return None
    return None if common == pa.int64() and pa.uint64() in (first, other) else common


def _batch_rows(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    average = max(size // max(metadata.num_rows, 1), 1)
    return int(min(max(_BATCH_BYTES // average, 1), BATCH_ROWS))
