"""What a row of keys or values takes in each format, and that loops and caches agree on it."""

import pytest
import torch

from kernels.cpu.attention.byte_kv import key_rows, row_size, value_rows
from kernels.kv_format import BFLOAT16, FLOAT16, FLOAT32, FP8, INT8_ROWS, KV_FORMATS, KVFormat, kv_format_of


@pytest.mark.parametrize(
    ("kv_format", "row_bytes", "row_width"),
    [(FLOAT32, 256, 64), (BFLOAT16, 128, 64), (FLOAT16, 128, 64), (INT8_ROWS, 68, 68), (FP8, 64, 64)],
    ids=[kv_format.name for kv_format in KV_FORMATS],
)
def test_a_row_of_64_elements(kv_format: KVFormat, row_bytes: int, row_width: int) -> None:
    assert (kv_format.row_bytes(64), kv_format.row_width(64)) == (row_bytes, row_width)


@pytest.mark.parametrize("kv_format", KV_FORMATS, ids=lambda kv_format: kv_format.name)
def test_a_dtype_names_one_format_of_its_size(kv_format: KVFormat) -> None:
    dtype = getattr(torch, kv_format.dtype)
    assert kv_format_of(dtype) is kv_format_of(kv_format.dtype) is kv_format
    assert dtype.itemsize == kv_format.itemsize


@pytest.mark.parametrize("kv_format", [FLOAT32, BFLOAT16, INT8_ROWS], ids=lambda kv_format: kv_format.name)
@pytest.mark.parametrize("dim", [64, 128])
def test_loops_step_over_rows_as_the_cache_lays_them(kv_format: KVFormat, dim: int) -> None:
    assert row_size(dim, kv_format.itemsize) == kv_format.row_bytes(dim)


@pytest.mark.parametrize("rows_of", [key_rows, value_rows])
def test_rows_in_bytes_are_as_wide_as_their_format_says(rows_of: object) -> None:
    made = rows_of(torch.ones(3, 64))  # type: ignore[operator]
    assert (made.dtype, made.shape) == (torch.uint8, (3, INT8_ROWS.row_width(64)))
