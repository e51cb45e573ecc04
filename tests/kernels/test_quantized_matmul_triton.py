"""Products with 4 and 8 bit weights, in Triton's interpreter, against their definition."""

import pytest
import torch

from kernels.quantized_matmul_triton import matmul_w4a16, matmul_w8a8, tile_of
from kernels.quantized_weights import (
    dequantized,
    matmul_w4a16_reference,
    matmul_w8a8_reference,
    quantize_activations,
    quantize_weight,
)

SHAPES = [(1, 63, 128), (16, 130, 256), (37, 64, 384), (70, 100, 256)]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_w4a16(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, inputs).to(dtype)
    weight = quantize_weight(torch.randn(outputs, inputs) / inputs**0.5, 4)
    want = matmul_w4a16_reference(x, weight)
    for processors in (1, 40):
        got = matmul_w4a16(x, weight, processors)
        assert got.dtype == dtype
        assert float((got.float() - want).abs().max()) < (4e-3 if dtype == torch.float16 else 3e-2)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
def test_w8a8(rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    codes, scales = quantize_activations(torch.randn(rows, inputs))
    weight = quantize_weight(torch.randn(outputs, inputs) / inputs**0.5, 8)
    want = matmul_w8a8_reference(codes, scales, weight)
    for processors in (1, 40):
        got = matmul_w8a8(codes, scales, weight, torch.float32, processors)
        assert float((got - want).abs().max()) < 1e-5


@pytest.mark.parametrize(("bits", "error"), [(4, 0.5 / 7), (8, 0.5 / 127)])
@pytest.mark.parametrize("group", [64, 128])
def test_no_weight_is_further_off_than_half_a_step(bits: int, error: float, group: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(33, 256) * torch.linspace(0.01, 10, 33)[:, None]
    quantized = quantize_weight(weight, bits, group)
    assert quantized.group == group
    largest = weight.view(33, -1, group).abs().amax(2).repeat_interleave(group, 1)
    assert bool(((dequantized(quantized) - weight).abs() <= largest * error * 1.0001).all())


def test_a_few_rows_are_split_until_processors_have_work() -> None:
    assert tile_of(1, 4096, 32, 132) == (16, 64, 2)
    assert tile_of(16, 576, 32, 132) == (16, 64, 8)
    assert tile_of(64, 28672, 32, 132) == (64, 128, 1)
