import pytest
import torch
from torch import Tensor

from kernels import soft_cap
from kernels.attention import (
    MAX_STACKED_ROWS,
    add_sinks,
    attend,
    attend_each,
    attend_reference,
    masked_score,
    merge_into,
)

SHAPES = [
    pytest.param(heads, kv_heads, rows, length, dim, id=f"h{heads}kv{kv_heads}-{rows}x{length}-d{dim}")
    for heads, kv_heads, rows, length, dim in [
        (1, 1, 1, 1, 64),
        (9, 3, 1, 250, 64),
        (9, 3, 63, 111, 64),
        (8, 1, 7, 33, 60),
        (4, 4, 17, 5, 100),
        (32, 8, 5, 129, 128),
        (6, 2, MAX_STACKED_ROWS + 1, 65, 80),
    ]
]


def draw(heads: int, kv_heads: int, rows: int, length: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(rows * length)
    # Slices of larger NaN-filled tensors: what lies beyond the slice must never be read.
    tensors = []
    for count, size in ((heads, rows), (kv_heads, length), (kv_heads, length)):
        whole = torch.full((count, size + 6, dim), torch.nan, dtype=dtype)
        whole[:, 3:-3] = torch.randn(count, size, dim)
        tensors.append(whole[:, 3:-3])
    return tuple(tensors)


@pytest.mark.parametrize(("heads", "kv_heads", "rows", "length", "dim"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"])
def test_equals_its_definition(
    heads: int, kv_heads: int, rows: int, length: int, dim: int, dtype: torch.dtype, tolerance: float
) -> None:
    query, key, value = draw(heads, kv_heads, rows, length, dim, dtype)
    out, lse = attend(query, key, value, dim**-0.5)
    want_out, want_lse = attend_reference(query, key, value, dim**-0.5)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert float((out - want_out).abs().max()) < tolerance
    assert float((lse - want_lse).abs().max()) < tolerance


@pytest.mark.parametrize("rows", [1, 2, 63, 300])
def test_causal_and_masked_equal_their_definition(rows: int) -> None:
    query, key, value = draw(6, 2, rows, rows, 64, torch.float32)
    mask = torch.full((rows, rows), -torch.inf).triu(1)
    want_out, want_lse = attend_reference(query, key, value, 0.1, causal=True)
    for out, lse in (attend(query, key, value, 0.1, causal=True), attend(query, key, value, 0.1, mask=mask)):
        assert float((out - want_out).abs().max()) < 2e-5
        assert float((lse - want_lse).abs().max()) < 2e-5


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 60), (8, 1, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"])
def test_each_row_reads_its_own_span(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    spans = [(0, 1), (1, 40), (400, 512), (40, 357)]
    torch.manual_seed(heads)
    query = torch.randn(heads, len(spans), dim, dtype=dtype)
    keys, values = (torch.full((kv_heads, 600, dim), torch.nan, dtype=dtype) for _ in range(2))
    for start, end in spans:
        keys[:, start:end], values[:, start:end] = torch.randn(2, kv_heads, end - start, dim, dtype=dtype)
    out, lse = attend_each(query, keys, values, spans, 0.125)
    for row, (start, end) in enumerate(spans):
        want = attend_reference(query[:, row : row + 1], keys[:, start:end], values[:, start:end], 0.125)
        assert float((out[:, row : row + 1] - want[0]).abs().max()) < tolerance
        assert float((lse[:, row : row + 1] - want[1]).abs().max()) < tolerance


@pytest.mark.parametrize("cut", [1, 50, 110])
def test_merged_halves_equal_the_whole(cut: int) -> None:
    query, key, value = draw(9, 3, 20, 111, 64, torch.float32)
    whole_out, whole_lse = attend_reference(query, key, value, 0.125)
    out, lse = (state.clone() for state in attend(query, key[:, :cut], value[:, :cut], 0.125))
    merge_into(out, lse, *attend(query, key[:, cut:], value[:, cut:], 0.125))
    assert float((out - whole_out).abs().max()) < 2e-5
    assert float((lse - whole_lse).abs().max()) < 2e-5


def test_merge_keeps_a_state_that_outweighs_the_other_beyond_float32() -> None:
    out, lse = torch.ones(1, 1, 4), torch.full((1, 1), 1e4)
    merge_into(out, lse, torch.full((1, 1, 4), 9.0), torch.full((1, 1), -1e4))
    assert torch.equal(out, torch.ones(1, 1, 4))
    assert torch.equal(lse, torch.full((1, 1), 1e4))


def by_hand(query: Tensor, key: Tensor, value: Tensor, scale: float, *, window: int, sinks: Tensor) -> Tensor:
    """Row by row and head by head, in float64: row i stands at the position of the last key of its own."""
    heads, rows, _ = query.shape
    out = torch.empty(query.shape, dtype=torch.float64)
    for head in range(heads):
        keys, values = (tensor[head * key.shape[0] // heads].double() for tensor in (key, value))
        for row in range(rows):
            position = key.shape[1] - rows + row
            near = slice(max(position - window + 1, 0), position + 1)
            scores = torch.cat([keys[near] @ query[head, row].double() * scale, sinks[head : head + 1].double()])
            out[head, row] = scores.softmax(0)[:-1] @ values[near]
    return out


@pytest.mark.parametrize("window", [1, 7, 63, 111, 500])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"])
def test_a_window_over_two_pieces_with_sinks_by_hand(window: int, dtype: torch.dtype, tolerance: float) -> None:
    """63 rows behind 48 shared keys: some windows let rows see nothing of what is shared."""
    query, key, value = draw(6, 2, 63, 111, 60, dtype)
    sinks = torch.randn(6)
    far = torch.arange(48, 111)[:, None] - torch.arange(111)
    mask = torch.zeros(63, 111, dtype=dtype).masked_fill_((far >= window) | (far < 0), masked_score(dtype))
    out, lse = (state.clone() for state in attend(query, key[:, 48:], value[:, 48:], 0.125, mask=mask[:, 48:]))
    merge_into(out, lse, *attend(query, key[:, :48], value[:, :48], 0.125, mask=mask[:, :48]))
    add_sinks(out, lse, sinks)
    assert float((out - by_hand(query, key, value, 0.125, window=window, sinks=sinks)).abs().max()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_row_that_sees_nothing_weighs_nothing(dtype: torch.dtype, softcap: float | None) -> None:
    query, key, value = draw(6, 2, 17, 65, 64, dtype)
    out, lse = (state.clone() for state in attend(query, key, value, 0.125))
    before = out.clone(), lse.clone()
    mask = torch.zeros(17, 65, dtype=dtype)
    mask[3] = mask[16] = masked_score(dtype)
    merge_into(out, lse, *attend(query, 2 * key, 3 * value, 0.125, mask=mask, softcap=softcap))
    for row in range(17):
        same = torch.equal(out[:, row], before[0][:, row]) and torch.equal(lse[:, row], before[1][:, row])
        assert same == (row in (3, 16)), row
    assert bool(out.isfinite().all() and lse.isfinite().all())


@pytest.mark.parametrize(("heads", "kv_heads", "rows", "length", "dim"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    "block_bytes", [soft_cap.MAX_SCORES_BYTES, 3 * 4 * 9 * 250, 1], ids=["whole", "blocks", "rows"]
)
def test_soft_capped_equals_its_definition(
    heads: int,
    kv_heads: int,
    rows: int,
    length: int,
    dim: int,
    dtype: torch.dtype,
    tolerance: float,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soft_cap, "MAX_SCORES_BYTES", block_bytes)
    query, key, value = draw(heads, kv_heads, rows, length, dim, dtype)
    mask = torch.randn(rows, length, dtype=dtype)
    out, lse = attend(query, key, value, 0.5, mask=mask, softcap=3.0)
    want_out, want_lse = attend_reference(query, key, value, 0.5, mask=mask, softcap=3.0)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert float((out - want_out).abs().max()) < tolerance
    assert float((lse - want_lse).abs().max()) < tolerance
    if length > 1:
        uncapped, _ = attend_reference(query, key, value, 0.5, mask=mask)
        assert float((uncapped - want_out).abs().max()) > tolerance


@pytest.mark.parametrize("rows", [1, 2, 63, 300])
@pytest.mark.parametrize("block_bytes", [soft_cap.MAX_SCORES_BYTES, 4 * 6 * 300 * 7], ids=["whole", "blocks"])
def test_soft_capped_and_causal(rows: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_cap, "MAX_SCORES_BYTES", block_bytes)
    query, key, value = draw(6, 2, rows, rows, 64, torch.float32)
    out, lse = attend(query, key, value, 0.3, causal=True, softcap=2.0)
    want_out, want_lse = attend_reference(query, key, value, 0.3, causal=True, softcap=2.0)
    assert float((out - want_out).abs().max()) < 2e-5
    assert float((lse - want_lse).abs().max()) < 2e-5


def test_soft_capped_rows_read_their_own_span() -> None:
    spans = [(0, 1), (1, 40), (400, 512), (40, 357)]
    query, keys, values = draw(9, 3, len(spans), 512, 60, torch.float32)
    out, lse = attend_each(query, keys, values, spans, 0.5, 3.0)
    for row, (start, end) in enumerate(spans):
        rows = slice(row, row + 1)
        want = attend_reference(query[:, rows], keys[:, start:end], values[:, start:end], 0.5, softcap=3.0)
        assert float((out[:, rows] - want[0]).abs().max()) < 2e-5
        assert float((lse[:, rows] - want[1]).abs().max()) < 2e-5
