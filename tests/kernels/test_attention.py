import pytest
import torch
from torch import Tensor

from kernels.attention import MAX_STACKED_ROWS, attend, attend_each, attend_reference, merge_into

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
