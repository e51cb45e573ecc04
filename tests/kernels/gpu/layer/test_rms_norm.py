"""Norm and gate on a GPU, in Triton's interpreter, against their twins."""

import pytest
import torch

from kernels.gpu.layer.add_normed import add_normed, add_normed_reference
from kernels.gpu.layer.e4m3 import e4m3_rows, e4m3_rows_reference
from kernels.gpu.layer.gate import Activation, gated, gated_e4m3, gated_reference
from kernels.gpu.layer.rms_norm import rms_norm, rms_norm_e4m3, rms_norm_reference

# Of a number's size: a last bit; in bfloat16 two, since the interpreter cuts it off where a GPU rounds, twice.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got.float() - want.float()).abs() / (1 + want.float().abs())).max())


@pytest.mark.parametrize("size", [1, 60, 576, 4096])
@pytest.mark.parametrize(("rows", "rounded"), [(1, True), (7, True), (7, False)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(dtype: torch.dtype, rows: int, rounded: bool, size: int) -> None:
    """Rows that lie apart; a row of zeros stays one."""
    torch.manual_seed(0)
    x = torch.randn(rows, 3 * size).to(dtype)[:, size : 2 * size]
    x[-1] = 0
    weight = torch.randn(size).to(dtype if rounded else torch.float32)
    got = rms_norm(x, weight, 1e-5, rounded=rounded)
    assert got.dtype == dtype
    want = rms_norm_reference(x, weight, 1e-5, rounded=rounded)
    assert worst(got, want) <= TOLERANCE[dtype]
    assert float(got[-1].float().abs().max()) == 0


def test_a_norm_rounds_where_it_says() -> None:
    """Before the weight and behind it, or behind it alone: in bfloat16 the two differ."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 256).bfloat16(), torch.rand(256) + 0.5
    twice, once = (rms_norm_reference(x, weight, 1e-5, rounded=rounded) for rounded in (True, False))
    exact = rms_norm_reference(x.float(), weight, 1e-5)
    assert not torch.equal(twice, once)
    assert torch.equal(once, exact.bfloat16())


@pytest.mark.parametrize(("rows", "size"), [(7, 60), (2, 4096)])
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_around_a_sum(dtype: torch.dtype, rounded: bool, rows: int, size: int) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, rows, size).to(dtype)
    weights = [torch.rand(size).to(dtype if rounded else torch.float32) + 0.5 for _ in range(2)]
    kept = residual.clone()
    got = add_normed(x, weights[0], residual, weights[1], 1e-5, rounded=rounded)
    want = add_normed_reference(x, weights[0], residual, weights[1], 1e-5, rounded=rounded)
    assert (got.dtype, got.shape) == (dtype, (2, rows, size))
    # Two norms and a sum on end, each with a last bit of its own.
    assert worst(got, want) <= 3 * TOLERANCE[dtype]
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("size", [1, 100, 1024, 1536])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: torch.dtype, activation: Activation, rows: int, size: int) -> None:
    """Far gates are open or shut, and no number overflows."""
    torch.manual_seed(0)
    both = 3 * torch.randn(rows, 2 * size)
    both[0, 0], both[-1, size - 1] = 88, -88
    both = both.to(dtype)
    got, want = gated(both, activation), gated_reference(both, activation)
    assert got.dtype == dtype
    assert bool(torch.isfinite(got).all())
    assert worst(got, want) <= TOLERANCE[dtype]


def spread(rows: int, size: int) -> torch.Tensor:
    """Rows of very different magnitudes, the last of zeros."""
    made = torch.randn(rows, size) * torch.logspace(-4, 4, rows)[:, None]
    made[-1] = 0
    return made


@pytest.mark.parametrize("size", [1, 60, 1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_eight_bits(dtype: torch.dtype, size: int) -> None:
    """To the nearest code of the row's own scale; a row of zeros is codes of zero."""
    torch.manual_seed(0)
    x = spread(5, 2 * size).to(dtype)[:, size:]
    codes, scales = e4m3_rows(x)
    want, want_scales = e4m3_rows_reference(x)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.float8_e4m3fn, (5, size), (5, 1))
    assert torch.allclose(scales, want_scales, rtol=1e-6, atol=0)
    # Half a code is a 16th of a number, or half of the smallest code.
    back = codes.float() * scales
    assert bool(((back - x.float()).abs() <= x.float().abs() / 15.9 + scales * 2.0**-10).all())
    same = (codes.view(torch.uint8) == want.view(torch.uint8)).float().mean()
    assert float(same) > 0.98, "codes differ where a quotient lies between two, and nowhere else"
    assert not codes[-1].float().any()


@pytest.mark.parametrize("size", [60, 1536])
def test_norm_and_gate_to_eight_bits(size: int) -> None:
    """What each makes in float32, rounded by row."""
    torch.manual_seed(0)
    x, weight, both = spread(4, size), torch.rand(size), torch.randn(4, 2 * size)
    for (codes, scales), whole in (
        (rms_norm_e4m3(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5)),
        (gated_e4m3(both, "silu"), gated_reference(both, "silu")),
        (gated_e4m3(both, "gelu_pytorch_tanh"), gated_reference(both, "gelu_pytorch_tanh")),
    ):
        want, want_scales = e4m3_rows_reference(whole)
        assert torch.allclose(scales, want_scales, rtol=1e-5, atol=0)
        assert float((codes.view(torch.uint8) == want.view(torch.uint8)).float().mean()) > 0.98
