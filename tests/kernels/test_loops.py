"""Each compiled loop against its twin in torch, over awkward sizes and memory poisoned with NaN."""

import pytest
import torch
from torch import Tensor

from kernels import openmp
from kernels.attention import attend_reference
from kernels.int8_rows import add_product, multiply, quantize_rows, quantize_rows_reference, silu_mul_quantize
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.rotary import rotate, rotate_reference
from kernels.row_attention import attend_rows
from kernels.silu_mul import silu_mul, silu_mul_reference

SIZES = [(0, 64), (1, 1), (1, 63), (3, 100), (63, 576), (111, 1536)]


@pytest.fixture(autouse=True)
def _compiled_and_drawn() -> None:
    assert openmp.available(), "this torch has no libgomp: the loops would not be reached"
    torch.manual_seed(0)


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_rms_norm(rows: int, size: int) -> None:
    x, weight, out = torch.randn(rows, size) * 30, torch.randn(size), torch.full((rows, size), torch.nan)
    rms_norm(x, weight, 1e-5, out)
    assert worst(out, rms_norm_reference(x, weight, 1e-5)) < 3e-6 * 5


@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_silu_mul(rows: int, size: int) -> None:
    gate_up = torch.randn(rows, 2 * size) * 40
    wanted = silu_mul_reference(gate_up)
    got = silu_mul(gate_up.clone())
    assert got.shape == (rows, size)
    assert worst(got / (wanted.abs() + 1), wanted / (wanted.abs() + 1)) < 1e-6


def test_what_is_not_finite_stays_so() -> None:
    rows = torch.zeros(3, 8)
    rows[1, 2], rows[2, 5] = torch.nan, torch.inf
    out = torch.empty(3, 8)
    rms_norm(rows, torch.ones(8), 1e-5, out)
    assert torch.isfinite(out).all(1).tolist() == [True, False, False]
    assert torch.isfinite(silu_mul(rows.clone())).all(1).tolist() == [True, False, False]
    _, scales = quantize_rows(rows)
    assert torch.isfinite(scales[:, 0]).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("rows", "heads", "others", "dim"), [(0, 1, 0, 2), (1, 3, 2, 64), (17, 12, 3, 64), (5, 4, 1, 100)]
)
def test_rotate(rows: int, heads: int, others: int, dim: int) -> None:
    x, (cos, sin) = torch.randn(rows, (heads + others) * dim), torch.randn(2, rows, dim)
    wanted = x.clone()
    rotate_reference(wanted, cos, sin, heads)
    rotate(x, cos, sin, heads)
    assert worst(x, wanted) < 2e-6
    assert rows == 0 or others == 0 or worst(x[:, heads * dim :], wanted[:, heads * dim :]) == 0


@pytest.mark.parametrize(("rows", "size"), SIZES)
@pytest.mark.parametrize("gap", [0, 7])
def test_quantize_rows(rows: int, size: int, gap: int) -> None:
    values = torch.full((rows, size + gap), torch.nan)[:, :size].copy_(torch.randn(rows, size) * 1e3)
    (got, scales), (wanted, wanted_scales) = quantize_rows(values), quantize_rows_reference(values)
    assert worst(scales, wanted_scales) <= 1e-6 * 1e3
    # A value in the middle between two steps may go to either.
    assert worst(got.int(), wanted.int()) <= 1
    assert float((got != wanted).float().mean() if rows else 0) < 1e-2


@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 64, 63), (63, 100, 111), (17, 576, 192)])
def test_multiply(rows: int, inner: int, outer: int) -> None:
    (left, scales), (weight, weight_scales) = (
        quantize_rows(torch.randn(rows, inner)),
        quantize_rows(torch.randn(outer, inner)),
    )
    out = multiply(left, scales, weight, weight_scales[:, 0], torch.full((rows, outer), torch.nan))
    wanted = left.double() @ weight.double().t() * scales.double() * weight_scales.double().t()
    assert worst(out.double(), wanted) < 1e-5


@pytest.mark.parametrize(("rows", "size"), SIZES[2:])
def test_silu_mul_quantize_and_add_product(rows: int, size: int) -> None:
    sums, scales = torch.randint(-9000, 9000, (rows, 2 * size), dtype=torch.int32), torch.rand(rows, 1) * 1e-2
    weight_scales = torch.rand(2 * size)
    got, got_scales = silu_mul_quantize(sums, scales, weight_scales)
    wanted, wanted_scales = quantize_rows_reference(silu_mul_reference(sums.float() * scales * weight_scales))
    assert worst(got_scales, wanted_scales) <= 1e-6 * float(wanted_scales.max())
    assert worst(got.int(), wanted.int()) <= 1
    before, weight = torch.randn(rows, 48), torch.randint(-127, 128, (48, size), dtype=torch.int8)
    out, room = before.clone(), torch.empty(rows, 48, dtype=torch.int32)
    add_product(got, got_scales, weight, weight_scales[:48].repeat(48)[:48].contiguous(), room, out)
    scaled = weight_scales[:48].repeat(48)[:48].double()
    product = got.double() @ weight.double().t() * got_scales.double() * scaled
    assert worst(out.double(), before.double() + product) <= 1e-5 * (1 + float(product.abs().max()))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 60), (8, 1, 128), (3, 1, 5)])
def test_attend_rows(heads: int, kv_heads: int, dim: int) -> None:
    spans = torch.tensor([[0, 1, 400, 40, 44], [1, 40, 512, 357, 47]])
    rows = torch.tensor([1, 2, 6, 3, 8])
    whole = torch.randn(10, (heads + 2) * dim)
    query = whole[:, : heads * dim].view(10, heads, dim).transpose(0, 1)
    keys, values = (torch.full((kv_heads, 600, dim), torch.nan) for _ in range(2))
    for start, end in spans.t().tolist():
        keys[:, start:end], values[:, start:end] = torch.randn(2, kv_heads, end - start, dim)
    out, lse = torch.full((10, heads, dim), torch.nan).transpose(0, 1), torch.full((heads, 10), torch.nan)
    attend_rows(query, keys, values, rows, spans, 0.125, out, lse)
    for row, start, end in zip(rows.tolist(), *spans.tolist(), strict=True):
        want_out, want_lse = attend_reference(query[:, row : row + 1], keys[:, start:end], values[:, start:end], 0.125)
        assert worst(out[:, row : row + 1], want_out) < 2e-6
        assert worst(lse[:, row : row + 1], want_lse) < 2e-6
    untouched = [row for row in range(10) if row not in rows.tolist()]
    assert out[:, untouched].isnan().all()
    assert lse[:, untouched].isnan().all()
