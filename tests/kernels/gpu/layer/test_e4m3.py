"""Numbers of 8 bits, code by code, in Triton's interpreter against torch's conversions."""

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from kernels.gpu.attention.prefix_attention_kernel import from_e4m3
from kernels.gpu.layer.e4m3 import E4M3_MAX, e4m3_rows, to_e4m3
from kernels.gpu.layer.gate import gated_e4m3

CODES = torch.arange(256, dtype=torch.uint8)
NUMBERS = CODES.view(torch.float8_e4m3fn).float()


@pytest.fixture(autouse=True)
def maxima_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's pass over NaN, which the interpreter's do not."""
    for name, of_gpu in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        monkeypatch.setattr(InterpreterBuilder, name, lambda self, a, b, of_gpu=of_gpu: self.binary_op(a, b, of_gpu))


@triton.jit
def convert_kernel(x_ptr, out_ptr, SIZE: tl.constexpr, BACK: tl.constexpr):
    cell = tl.arange(0, SIZE)
    x = tl.load(x_ptr + cell)
    tl.store(out_ptr + cell, from_e4m3(x, tl.float32) * 256 if BACK else to_e4m3(x))


def converted(x: Tensor) -> Tensor:
    """Codes as numbers, numbers as codes; as many as a power of two."""
    back = x.dtype == torch.uint8
    out: Any = torch.zeros(len(x), dtype=torch.float32 if back else torch.uint8)
    convert_kernel[(1,)](x, out, SIZE=len(x), BACK=back)
    return out


@pytest.mark.fault(18)
def test_each_code_is_its_number() -> None:
    """Exactly; the last of either sign is NaN."""
    assert NUMBERS.isnan().nonzero().flatten().tolist() == [0x7F, 0xFF]
    torch.testing.assert_close(converted(CODES), NUMBERS, rtol=0, atol=0, equal_nan=True)


@pytest.mark.fault(18)
def test_each_number_is_the_nearest_code() -> None:
    """Each code's own, those halfway to the next, which is the even one's, those beside that, and what saturates."""
    positive = NUMBERS[:127]
    halves = (positive[1:] + positive[:-1]) / 2
    sizes = torch.cat([positive, halves, halves * (1 - 2**-6), halves * (1 + 2**-6)])
    largest = E4M3_MAX.value
    special = torch.tensor([torch.nan, torch.inf, 1e6, largest + 15, largest + 17, largest + 1e-3])
    numbers = torch.cat([sizes, special])
    both = torch.nn.functional.pad(torch.cat([numbers, -numbers]), (0, 1024 - 2 * len(numbers)))
    codes, wanted = converted(both), both.clamp(-largest, largest).to(torch.float8_e4m3fn)
    is_number = ~both.isnan()
    assert torch.equal(codes[is_number], wanted.view(torch.uint8)[is_number])
    assert codes[~is_number].tolist() == [0x7F, 0x7F]


@pytest.mark.fault(18)
def test_a_row_with_a_nan_is_nan_and_no_other_is() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 40)
    for convert in (e4m3_rows, lambda x: gated_e4m3(x, "silu")):
        broken = rows.clone()
        broken[1, 7] = torch.nan
        clean, made = (codes.float() * scales for codes, scales in (convert(rows), convert(broken)))
        assert bool(made[1].isnan().all())
        assert torch.equal(made[[0, 2]], clean[[0, 2]])
