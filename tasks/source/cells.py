"""A column's values as people and templates see them: text, numbers, booleans, NULL, and lists and structs of these.

Dates and times are texts, by Arrow's own casts: Python's hold neither nanoseconds nor a year after 9999.
"""

import json
from decimal import Decimal
from itertools import islice
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tasks.source.row_error import BAD_VALUE, RowError

Cell: TypeAlias = "str | int | float | Decimal | list[Cell] | dict[str, Cell] | None"
CellOrError: TypeAlias = "Cell | RowError"

_OUT_OF_RANGE = "<value out of range"
# Of the years 1 to 32767, but for a day, as a zone may need: Arrow wraps the years after that, or fails.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 971_890_876_799
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_SECONDS = 86_400
_ZEROS_AT_THE_END = r"(\.[0-9]*?)0+(Z|[+-][0-9:]+)?$"
_LONE_POINT = r"\.(Z|[+-][0-9:]+)?$"
_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_AS_PYTHON = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_decimal, pa.types.is_float64)


class CellError(ValueError):
    """A value that has no text.

    Seen as: the row's `TEMPLATE_ERROR`, where a template prints it.
    """


def cells(array: pa.Array) -> list[CellOrError]:
    """A cell for each value, a BAD_VALUE for one that holds what has no text. `has_cells` knows the array's type.

    Bytes come as text, and what is not UTF-8 in them as lone surrogates.
    """
    array = plain(array)
    kind = array.type
    if is_text(kind):
        return _texts(array)
    if any(test(kind) for test in _LISTS):
        return _lists(array)
    if pa.types.is_map(kind):
        return _maps(array)
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_temporal(kind):
        return _times(array)
    if any(test(kind) for test in _AS_PYTHON):
        return list(array.to_pylist())
    assert pa.types.is_floating(kind), kind
    # The shortest text that means the number: 0.1, not the 0.10000000149011612 of a wider one.
    return [None if text is None else float(text) for text in pc.cast(array, pa.string()).to_pylist()]


def has_cells(kind: pa.DataType) -> bool:
    """Whether every value of this type, or all but a few, have a text that people agree on."""
    kind = plain_type(kind)
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return False
    if pa.types.is_struct(kind) and len({kind.field(i).name for i in range(kind.num_fields)}) < kind.num_fields:
        return False
    if pa.types.is_nested(kind):
        return not pa.types.is_union(kind) and all(has_cells(kind.field(i).type) for i in range(kind.num_fields))
    return _zone_is_known(kind)


def text_of(cell: object) -> str:
    """A list or a struct is JSON, a NULL inside it too. Raises CellError for what is not a cell."""
    if isinstance(cell, str):
        return cell
    if cell is None or isinstance(cell, bool):
        return json.dumps(cell)
    if isinstance(cell, Decimal):
        return format(cell, "f")
    if isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, list | tuple):
        return f"[{', '.join(map(_quoted, cell))}]"
    if isinstance(cell, dict):
        return f"{{{', '.join(f'{_quoted(text_of(key))}: {_quoted(value)}' for key, value in cell.items())}}}"
    raise CellError(f"{type(cell).__name__!r} is neither text, a number, a boolean, nor a list or struct of these")


def _quoted(cell: object) -> str:
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, str) else text_of(cell)


def plain(array: pa.Array) -> pa.Array:
    """Without dictionary or run-end encoding, or an extension's wrapping."""
    if isinstance(array.type, pa.BaseExtensionType):
        if _extension(array.type) == "arrow.uuid":
            return pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
        if _extension(array.type) == "arrow.bool8":
            return array.storage.cast(pa.bool_())
        return array if _is_tensor(array.type) else plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    return plain(pc.run_end_decode(array)) if pa.types.is_run_end_encoded(array.type) else array


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain` of an array of this type."""
    if isinstance(kind, pa.BaseExtensionType):
        known = {"arrow.uuid": pa.string(), "arrow.bool8": pa.bool_()}
        return known.get(_extension(kind)) or (kind if _is_tensor(kind) else plain_type(kind.storage_type))
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    return kind


def is_utf8(text: str) -> bool:
    """False for lone surrogates, which is also how bytes that are not UTF-8 come out of `cells`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _TEXTS)


def _extension(kind: pa.DataType) -> str:
    return str(getattr(kind, "extension_name", ""))


def _is_tensor(kind: pa.DataType) -> bool:
    """Its storage has lost the shape."""
    return _extension(kind).endswith("_shape_tensor")


def _zone_is_known(kind: pa.DataType) -> bool:
    try:
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            pc.cast(pa.array([0], kind), pa.string())
    except (pa.ArrowInvalid, UnicodeDecodeError):  # the second for a name of a damaged file
        return False
    return True


def _texts(array: pa.Array) -> list[CellOrError]:
    values = array.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _times(array: pa.Array) -> list[CellOrError]:
    """As DuckDB writes them: no zeros at a fraction's end."""
    kind = array.type
    good = _in_range(array)
    texts = pc.cast(pc.if_else(good, array, pa.scalar(None, kind)), pa.string())
    if getattr(kind, "unit", "s") != "s":
        texts = pc.replace_substring_regex(texts, _ZEROS_AT_THE_END, r"\1\2")
        texts = pc.replace_substring_regex(texts, _LONE_POINT, r"\1")
    bad = RowError(BAD_VALUE, "a date or time is out of range")
    return [
        bad if ok is False or (text or "").startswith(_OUT_OF_RANGE) else text
        for text, ok in zip(texts.to_pylist(), good.to_pylist(), strict=True)
    ]


def _in_range(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_time(kind):
        return pa.repeat(True, len(array))
    if pa.types.is_date32(kind):
        seconds = pc.multiply(array.cast(pa.int32()).cast(pa.int64()), _DAY_SECONDS)
    else:
        scale = _PER_SECOND[kind.unit] if pa.types.is_timestamp(kind) else _PER_SECOND["ms"]
        seconds = pc.divide(array.cast(pa.int64()), scale)
    return pc.and_(pc.greater_equal(seconds, _FIRST_SECOND), pc.less_equal(seconds, _LAST_SECOND))


def _lists(array: pa.Array) -> list[CellOrError]:
    flat = iter(cells(array.flatten()))
    sizes = pc.list_value_length(array).to_pylist()
    return [None if size is None else _whole(list(islice(flat, size))) for size in sizes]


def _whole(values: list[CellOrError]) -> "list[Cell] | RowError":
    bad = next((value for value in values if isinstance(value, RowError)), None)
    return bad or [value for value in values if not isinstance(value, RowError)]


def _maps(array: pa.Array) -> list[CellOrError]:
    """Structs, whose fields are the keys' texts."""
    entry = pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])
    return [_map(entries) if isinstance(entries, list) else entries for entries in _lists(array.cast(pa.list_(entry)))]


def _map(entries: list[Cell]) -> CellOrError:
    pairs = [(entry["key"], entry["value"]) for entry in entries if isinstance(entry, dict)]
    named = {text_of(key): value for key, value in pairs}
    return named if len(named) == len(pairs) else RowError(BAD_VALUE, "a map has a key twice")


def _structs(array: pa.Array) -> list[CellOrError]:
    names = [field.name for field in array.type]
    fields = [cells(field) for field in array.flatten()]
    rows = zip(*fields, strict=True) if fields else ((),) * len(array)
    valid = array.is_valid().to_pylist()
    return [_struct(names, list(row)) if there else None for row, there in zip(rows, valid, strict=True)]


def _struct(names: list[str], values: list[CellOrError]) -> CellOrError:
    whole = _whole(values)
    return whole if isinstance(whole, RowError) else dict(zip(names, whole, strict=True))
