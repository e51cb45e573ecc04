"""A source's rows in bounded batches: values for prompts, texts for ids, arrays for what the results carry."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import UserError
from tasks.text_source import JSON_FIELD

BATCH_ROWS = 4096
_BATCH_BYTES = 64 * 2**20

# What a value becomes whose text is not UTF-8 and sits inside a list or a struct: no text holds it.
UNDECODABLE = "\udcff"


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Rows `first_row`, `first_row + 1`, ... of the source. Rows count from 0 over all files."""

    first_row: int
    data: pa.RecordBatch

    @property
    def num_rows(self) -> int:
        return int(self.data.num_rows)

    def values(self, column: str) -> list[object]:
        """Python values; bytes come as text, and what is not UTF-8 in them as lone surrogates."""
        array = _plain(self.data.column(column))
        if _is_json(self.data.schema.field(column)):
            return [None if text is None else json.loads(text) for text in array.to_pylist()]
        if _is_text(array.type):
            return _texts(array, "surrogateescape")
        try:
            return list(array.to_pylist())
        except UnicodeDecodeError:
            return [_value(scalar) for scalar in array]

    def ids(self, column: str) -> list[str]:
        """Texts. Raises UserError for a NULL, or one that is not UTF-8."""
        array = self.data.column(column)
        values = self.values(column)
        if not _is_json(self.data.schema.field(column)) and not _is_text(_plain(array).type):
            values = list(pc.cast(_plain(array), pa.string()).to_pylist())
        for row, value in enumerate(values, start=self.first_row):
            if value is None:
                raise UserError(f"source.id: column {column!r} is NULL in row {row}; every row needs an id")
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        for row, text in enumerate(texts, start=self.first_row):
            if not is_utf8(text):
                raise UserError(f"source.id: column {column!r} is not valid UTF-8 in row {row}")
        return texts

    def kept(self, column: str) -> pa.Array:
        """An array of `kept_type`; what is not UTF-8 is shown with replacement characters."""
        field = self.data.schema.field(column)
        if _is_json(field):
            texts = [None if value is None else _as_text(value) for value in self.values(column)]
            return pa.array([None if text is None else _replaced(text) for text in texts], pa.string())
        array = _plain(self.data.column(column))
        if _is_text(array.type):
            return pa.array(_texts(array, "replace"), pa.string())
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            raise UserError(f"source.keep: column {column!r} holds lists or structs with text not in UTF-8") from None
        return array


def read_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[SourceBatch]:
    """Batches of at most 4096 rows, fewer where rows are large."""
    row = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for data in file.iter_batches(_batch_rows(file.metadata), columns=list(columns)):
                yield SourceBatch(row, data)
                row += data.num_rows


def kept_type(field: pa.Field, column: str) -> pa.DataType:
    """The type a kept column has in the results. Raises UserError for one that SQL could not read there."""
    plain = _plain(pa.array([], field.type)).type
    if _is_text(plain):
        return pa.string()
    if not _is_known(plain):
        raise UserError(f"source.keep: column {column!r} has type {field.type}, which results cannot carry")
    return plain


def is_utf8(text: str) -> bool:
    """False for lone surrogates, which is also how bytes that are not UTF-8 come out of `values`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _batch_rows(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    average = max(size // max(metadata.num_rows, 1), 1)
    return int(min(max(_BATCH_BYTES // average, 1), BATCH_ROWS))


def _plain(array: pa.Array) -> pa.Array:
    """Without dictionary encoding or an extension's wrapping."""
    if isinstance(array.type, pa.BaseExtensionType):
        uuid = getattr(array.type, "extension_name", "") == "arrow.uuid"
        array = pa.array([str(value) for value in array.to_pylist()]) if uuid else array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_json(field: pa.Field) -> bool:
    return bool(field.metadata) and JSON_FIELD.items() <= field.metadata.items()


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in (*tests, *binary))


def _texts(array: pa.Array, errors: str) -> list[object]:
    binary = array.cast(pa.large_binary()) if not pa.types.is_large_binary(array.type) else array
    return [None if value is None else value.decode("utf-8", errors) for value in binary.to_pylist()]


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return UNDECODABLE


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _replaced(text: str) -> str:
    return text.encode("utf-8", "replace").decode() if not is_utf8(text) else text


def _is_known(kind: pa.DataType) -> bool:
    """Types that Parquet and DuckDB both hold."""
    if pa.types.is_nested(kind):
        return not pa.types.is_union(kind) and all(_is_known(kind.field(i).type) for i in range(kind.num_fields))
    refused = (pa.types.is_duration, pa.types.is_interval, pa.types.is_float16, pa.types.is_run_end_encoded)
    return not any(test(kind) for test in refused)
