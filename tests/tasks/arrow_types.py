"""Every Arrow type: what its values are in a prompt, as an id and as a kept column, or that they are refused.

`python -m tests.tasks.arrow_types` rewrites the table in docs/values.md.
"""

import datetime
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DOCS = Path(__file__).parents[2] / "docs" / "values.md"
BEGIN, END = "<!-- types:begin -->\n", "<!-- types:end -->"


@dataclass(frozen=True, slots=True, eq=False)
class ArrowType:
    """Two rows, a value and a NULL. `text` is the value's in a prompt, `kept` its type in the results, `sql` what
    `trunkline sql --format csv` prints of it; each is None where the type is refused. `by_id` is False for what is a
    text, but no id.
    """

    array: pa.Array
    text: str | None
    kept: str | None
    sql: str | None
    by_id: bool = True

    @property
    def in_parquet(self) -> bool:
        try:
            pq.write_table(pa.table({"x": self.array}), pa.BufferOutputStream())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            return False
        return True


def _of(value: Any, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([value, None], kind)


def _count(value: int, kind: pa.DataType, width: pa.DataType | None = None) -> pa.Array:
    """A date or time by its number, which Python's own may not hold."""
    return pa.array([value, None], width or pa.int64()).cast(kind)


def _extension(kind: pa.DataType, storage: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, storage)


def _listed(value: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, None, 1], pa.int32()), value)


def _same(array: pa.Array, text: str, kept: str, by_id: bool = True) -> ArrowType:
    return ArrowType(array, text, kept, text, by_id)


_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
_TENSOR = pa.list_(pa.int32(), 2)
# 2026-01-02 03:04:05.000000001
_NS = 1_767_323_045_000_000_001
_TEXTS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
}
_BYTES = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "fixed_size_binary": pa.binary(3),
}
_WHOLE = {
    "int8": ("TINYINT", -(2**7)),
    "int16": ("SMALLINT", -(2**15)),
    "int32": ("INTEGER", -(2**31)),
    "int64": ("BIGINT", -(2**63)),
    "uint8": ("UTINYINT", 2**8 - 1),
    "uint16": ("USMALLINT", 2**16 - 1),
    "uint32": ("UINTEGER", 2**32 - 1),
    "uint64": ("UBIGINT", 2**64 - 1),
}
_LISTS = {
    "list": pa.list_(pa.string()),
    "large_list": pa.large_list(pa.string()),
    "list_view": pa.list_view(pa.string()),
    "large_list_view": pa.large_list_view(pa.string()),
    "fixed_size_list": pa.list_(pa.string(), 2),
}

TYPES: dict[str, ArrowType] = {
    "null": ArrowType(pa.nulls(2), "null", '"NULL"', "", by_id=False),
    "bool": _same(_of(True), "true", "BOOLEAN"),
    **{name: _same(_of(value, getattr(pa, name)()), str(value), kept) for name, (kept, value) in _WHOLE.items()},
    "float16": _same(_of(np.float16(0.5), pa.float16()), "0.5", "FLOAT"),
    "float32": _same(_of(0.1, pa.float32()), "0.1", "FLOAT"),
    "float64": _same(_of(1e16, pa.float64()), "1e+16", "DOUBLE"),
    "decimal32": _same(_of(Decimal("1.50"), pa.decimal32(5, 2)), "1.50", "DECIMAL(5,2)"),
    "decimal64": _same(_of(Decimal("1.50"), pa.decimal64(12, 2)), "1.50", "DECIMAL(12,2)"),
    "decimal128": _same(_of(Decimal("0.0000001"), pa.decimal128(20, 7)), "0.0000001", "DECIMAL(20,7)"),
    "decimal256": _same(_of(Decimal("1.50"), pa.decimal256(50, 2)), "1.50", "VARCHAR"),
    **{name: _same(_of("né", kind), "né", "VARCHAR") for name, kind in _TEXTS.items()},
    **{name: _same(_of("né".encode(), kind), "né", "VARCHAR") for name, kind in _BYTES.items()},
    "date32": _same(_of(datetime.date(2026, 1, 2), pa.date32()), "2026-01-02", "DATE"),
    "date32, year 10000": _same(_count(2_932_897, pa.date32(), pa.int32()), "10000-01-01", "DATE"),
    "date64": _same(_of(datetime.date(2026, 1, 2), pa.date64()), "2026-01-02", "DATE"),
    "timestamp[s]": _same(_count(_NS // 10**9, pa.timestamp("s")), "2026-01-02 03:04:05", "TIMESTAMP"),
    "timestamp[s], year 10000": _same(_count(253_402_300_800, pa.timestamp("s")), "10000-01-01 00:00:00", "TIMESTAMP"),
    "timestamp[ms]": _same(_count(_NS // 10**6 + 500, pa.timestamp("ms")), "2026-01-02 03:04:05.5", "TIMESTAMP"),
    "timestamp[us]": _same(_count(_NS // 10**3 + 1, pa.timestamp("us")), "2026-01-02 03:04:05.000001", "TIMESTAMP"),
    "timestamp[ns]": _same(_count(_NS, pa.timestamp("ns")), "2026-01-02 03:04:05.000000001", "TIMESTAMP_NS"),
    "timestamp[ns, UTC]": ArrowType(
        _count(_NS, pa.timestamp("ns", "UTC")),
        "2026-01-02 03:04:05.000000001Z",
        "TIMESTAMPTZ_NS",
        "2026-01-02 03:04:05.000000001+0000",
    ),
    "timestamp[us, Europe/Berlin]": ArrowType(
        _count(_NS // 10**3, pa.timestamp("us", "Europe/Berlin")),
        "2026-01-02 04:04:05+0100",
        "TIMESTAMP WITH TIME ZONE",
        "2026-01-02 03:04:05+0000",
    ),
    "timestamp[s, unknown zone]": ArrowType(_count(0, pa.timestamp("s", "Mars/Olympus")), None, None, None),
    "time32[s]": _same(_count(3, pa.time32("s"), pa.int32()), "00:00:03", "TIME"),
    "time32[ms]": _same(_count(3_500, pa.time32("ms"), pa.int32()), "00:00:03.5", "TIME"),
    "time64[us]": _same(_count(1, pa.time64("us")), "00:00:00.000001", "TIME"),
    "time64[ns]": _same(_count(1, pa.time64("ns")), "00:00:00.000000001", "TIME_NS"),
    **{
        f"duration[{unit}]": ArrowType(_count(5, pa.duration(unit)), None, None, None)
        for unit in ("s", "ms", "us", "ns")
    },
    "month_day_nano_interval": ArrowType(_of((1, 2, 3), pa.month_day_nano_interval()), None, None, None),
    **{name: _same(_of(["a", None], kind), '["a", null]', "VARCHAR[]", False) for name, kind in _LISTS.items()},
    "list of timestamp[ns]": _same(
        pa.array([[_NS], None], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("ns"))),
        '["2026-01-02 03:04:05.000000001"]',
        "TIMESTAMP_NS[]",
        False,
    ),
    "list of dictionary": _same(
        _listed(pa.array(["a"]).dictionary_encode()),
        '["a"]',
        "VARCHAR[]",
        False,
    ),
    "list of duration": ArrowType(_of([5], pa.list_(pa.duration("s"))), None, None, None),
    "struct": _same(_of({"a": 1, "b": [True]}), '{"a": 1, "b": [true]}', "STRUCT(a BIGINT, b BOOLEAN[])", False),
    "struct, names that differ in case": ArrowType(_of({"a": 1, "A": 2}), '{"a": 1, "A": 2}', None, None, False),
    "struct, a name twice": ArrowType(
        pa.StructArray.from_arrays([pa.array([1, 2])] * 2, names=["a", "a"]), None, None, None
    ),
    "map": _same(_of([("k", 1)], pa.map_(pa.string(), pa.int64())), '{"k": 1}', "MAP(VARCHAR, BIGINT)", False),
    "map of int32": _same(
        _of([(7, "x")], pa.map_(pa.int32(), pa.string())), '{"7": "x"}', "MAP(INTEGER, VARCHAR)", False
    ),
    "dictionary": _same(_of("a").dictionary_encode(), "a", "VARCHAR"),
    "dictionary of int64": _same(_of(7).dictionary_encode(), "7", "BIGINT"),
    "run_end_encoded": ArrowType(pc.run_end_encode(_of("a")), "a", None, None),
    "dense_union": ArrowType(
        pa.UnionArray.from_dense(pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [_of(1)[:1], _of("x")[:1]]),
        None,
        None,
        None,
    ),
    "sparse_union": ArrowType(
        pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [_of(1), _of("x")]), None, None, None
    ),
    "uuid": _same(_of(_UUID.bytes, pa.uuid()), str(_UUID), "VARCHAR"),
    "list of uuid": ArrowType(
        _listed(_of(_UUID.bytes, pa.uuid())[:1]),
        json.dumps([str(_UUID)]),
        None,
        None,
        False,
    ),
    "json": _same(_extension(pa.json_(), _of('{"a":1}')), '{"a":1}', "VARCHAR"),
    "bool8": _same(_extension(pa.bool8(), _of(1, pa.int8())), "true", "BOOLEAN"),
    "opaque": _same(_extension(pa.opaque(pa.string(), "t", "v"), _of("x")), "x", "VARCHAR"),
    "fixed_shape_tensor": ArrowType(
        _extension(pa.fixed_shape_tensor(pa.int32(), [2]), _of([1, 2], _TENSOR)), None, None, None
    ),
}


def rows() -> Iterable[str]:
    yield "| Arrow type | in a prompt | as an id | kept as | `trunkline sql` prints |"
    yield "|---|---|---|---|---|"
    for name, one in TYPES.items():
        if pa.types.is_null(one.array.type):
            yield f"| {name} | a NULL | refused at its row | `{one.kept}` | nothing |"
            continue
        where = "" if one.in_parquet else " (not in Parquet)"
        told = [_told(one.text), _told(one.text if one.by_id else None), _told(one.kept), _told(one.sql)]
        yield f"| {name}{where} | {' | '.join(told)} |"


def _told(text: str | None) -> str:
    return "refused" if text is None else f"`{text}`" if text else ""


def with_table(text: str) -> str:
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return before + BEGIN + "".join(f"{row}\n" for row in rows()) + END + after


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text()))
