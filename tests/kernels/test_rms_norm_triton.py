"""Norm and gate on a GPU, in Triton's interpreter, against their twins."""

import pytest
import torch

from kernels.gate_triton import silu_gate, silu_gate_reference
from kernels.rms_norm_triton import rms_norm, rms_norm_rounded_reference

# Of a number's size: a last bit; in bfloat16 two, since the interpreter cuts it off where a GPU rounds, twice.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got.float() - want.float()).abs() / (1 + want.float().abs())).max())


@pytest.mark.parametrize("size", [1, 60, 576, 4096])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(dtype: torch.dtype, rows: int, size: int) -> None:
    """Rows that lie apart; a row of zeros stays one."""
    torch.manual_seed(0)
    x = torch.randn(rows, 3 * size).to(dtype)[:, size : 2 * size]
    x[-1] = 0
    weight = torch.randn(size).to(dtype)
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    want = rms_norm_rounded_reference(x, weight, 1e-5)
    assert worst(got, want) <= TOLERANCE[dtype]
    assert float(got[-1].float().abs().max()) == 0


@pytest.mark.parametrize("size", [1, 100, 1024, 1536])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: torch.dtype, rows: int, size: int) -> None:
    """Far gates are open or shut, and no number overflows."""
    torch.manual_seed(0)
    both = 3 * torch.randn(rows, 2 * size)
    both[0, 0], both[-1, size - 1] = 88, -88
    both = both.to(dtype)
    got, want = silu_gate(both), silu_gate_reference(both)
    assert got.dtype == dtype
    assert bool(torch.isfinite(got).all())
    assert worst(got, want) <= TOLERANCE[dtype]
