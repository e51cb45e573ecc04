"""Columns that the results carry: types that Parquet and DuckDB both hold whole."""

import re

import pyarrow as pa

from engine.errors import UserError
from tasks.source.cells import cells, has_cells, is_text, plain, plain_type, text_of

_DECIMAL_DIGITS = 38
_SURROGATES = re.compile("[\ud800-\udfff]")


def kept_type(field: pa.Field) -> pa.DataType:
    """The type that a kept column has in the results. Raises UserError for one that they cannot carry."""
    kind = _stored(field.type)
    if kind is None or not _is_castable(field.type, kind):
        raise UserError(f"source.keep: column {field.name!r} has type {field.type}, which results cannot carry")
    return kind


def as_kept(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """What is not UTF-8 is shown with replacement characters."""
    array = plain(array)
    if pa.types.is_string(kind):
        texts = [None if cell is None else replaced(text_of(cell)) for cell in cells(array)]
        return pa.array(texts, kind)
    array = array.cast(kind)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return _decodable(array)
    return array


def replaced(text: str) -> str:
    return text if text.isascii() else _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def _stored(kind: pa.DataType) -> pa.DataType | None:
    kind = plain_type(kind)
    if not has_cells(kind):
        return None
    if pa.types.is_map(kind):
        key, item = _stored(kind.key_type), _stored(kind.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pa.types.is_struct(kind):
        return _stored_struct(kind)
    if pa.types.is_nested(kind):
        item = _stored(kind.value_type)
        return None if item is None else pa.list_(item)
    return _stored_value(kind)


def _stored_struct(kind: pa.DataType) -> pa.DataType | None:
    fields = [(field.name, _stored(field.type)) for field in kind]
    # DuckDB takes names that differ in case for one, and Parquet holds no struct without a field.
    names = {name.lower() for name, _ in fields}
    if not fields or len(names) < len(fields) or any(stored is None for _, stored in fields):
        return None
    return pa.struct(fields)


def _stored_value(kind: pa.DataType) -> pa.DataType:
    if is_text(kind) or (pa.types.is_decimal(kind) and kind.precision > _DECIMAL_DIGITS):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _is_castable(kind: pa.DataType, stored: pa.DataType) -> bool:
    try:
        as_kept(pa.array([], kind), stored)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


def _decodable(array: pa.Array) -> pa.Array:
    """Lists and structs, with the texts in them that are not UTF-8 replaced."""
    kind = array.type
    array = pa.concat_arrays([array])
    if pa.types.is_string(kind):
        return as_kept(array, kind)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [_decodable(field) for field in array.flatten()], fields=list(kind), mask=array.is_null()
        )
    if pa.types.is_map(kind):
        keys, items = _decodable(array.keys), _decodable(array.items)
        return pa.MapArray.from_arrays(array.offsets, keys, items, kind, mask=array.is_null())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(array.offsets, _decodable(array.values), kind, mask=array.is_null())
    return array
