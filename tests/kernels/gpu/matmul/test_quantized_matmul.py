"""Products with 4 and 8 bit weights, in Triton's interpreter, against their definition."""

import pytest
import torch

from kernels.gpu.matmul.quantized_matmul import matmul_tile, matmul_w4a16, matmul_w8a8, quantize_rows
from kernels.gpu.matmul.quantized_weights import (
    dequantized,
    group_of,
    matmul_w4a16_reference,
    matmul_w8a8_reference,
    quantize_activations,
    quantize_weight,
    side_by_side,
)

SHAPES = [(0, 64, 128), (1, 63, 128), (16, 130, 256), (37, 64, 192), (70, 100, 96)]


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
        assert largest(got.float() - want) < (4e-3 if dtype == torch.float16 else 3e-2)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
def test_w8a8(rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    weight = quantize_weight(torch.randn(outputs, inputs) / inputs**0.5, 8)
    codes, scales = quantize_activations(torch.randn(rows, inputs), weight.group)
    want = matmul_w8a8_reference(codes, scales, weight)
    for processors in (1, 40):
        got = matmul_w8a8(codes, scales, weight, torch.float32, processors)
        assert largest(got - want) < 1e-5


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # what is not a number has no code
@pytest.mark.parametrize("smoothed", [False, True], ids=["", "smoothed"])
@pytest.mark.parametrize(("rows", "group", "groups"), [(1, 32, 3), (17, 64, 1), (33, 128, 2)])
def test_activations_are_quantized_in_one_pass(rows: int, group: int, groups: int, smoothed: bool) -> None:
    """A row that is not finite keeps a scale that is not, in that group; one of zeros gives zeros."""
    torch.manual_seed(0)
    x = torch.randn(rows, group * groups + 5)[:, : group * groups] * 10
    factors = torch.rand(group * groups) + 0.5 if smoothed else None
    x[0, :group] = 0
    x[-1, -1] = torch.nan
    x[rows // 2, -1] = torch.inf
    codes, scales = quantize_rows(x, group, factors)
    want_codes, want_scales = quantize_activations(x, group, factors)
    finite = want_scales.isfinite()
    assert torch.equal(scales.isfinite(), finite)
    assert torch.allclose(scales[finite], want_scales[finite], rtol=1e-6)
    good = finite.repeat_interleave(group, 1)
    assert bool((codes == want_codes)[good].all())


def test_layers_side_by_side_are_their_products_side_by_side() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(3, 64).half(), [torch.randn(n, 64) for n in (5, 32, 7)]
    for bits in (4, 8):
        parts = [quantize_weight(weight, bits) for weight in weights]
        whole = torch.cat([dequantized(part) for part in parts])
        assert torch.equal(dequantized(side_by_side(parts)), whole)
    got = matmul_w4a16(x, side_by_side([quantize_weight(weight, 4) for weight in weights]), 8)
    assert got.shape == (3, 44)


def test_a_group_is_the_largest_that_divides_a_layer() -> None:
    assert [group_of(inputs) for inputs in (4096, 576, 96, 100)] == [128, 64, 32, None]


@pytest.mark.parametrize(("bits", "error"), [(4, 0.5 / 7), (8, 0.5 / 127)])
@pytest.mark.parametrize("group", [64, 128])
def test_no_weight_is_further_off_than_half_a_step(bits: int, error: float, group: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(33, 256) * torch.linspace(0.01, 10, 33)[:, None]
    quantized = quantize_weight(weight, bits, group)
    assert quantized.group == group
    largest = weight.view(33, -1, group).abs().amax(2).repeat_interleave(group, 1)
    assert bool(((dequantized(quantized) - weight).abs() <= largest * error * 1.0001).all())


def largest(error: torch.Tensor) -> float:
    return float(error.abs().max()) if error.numel() else 0.0


def test_a_few_rows_are_split_until_processors_have_work() -> None:
    assert matmul_tile(1, 4096, 32, 128, 132) == (16, 64, 128, 2)
    assert matmul_tile(16, 576, 32, 128, 132) == (16, 64, 128, 8)
    assert matmul_tile(64, 28672, 32, 128, 132) == (64, 128, 128, 1)
