"""Weights of 4 and 8 bits with a scale a group of inputs and output channel, and their products by definition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Inputs of a group, the largest that divides a layer's: powers of two, as the kernels' tiles are.
GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """`weight` ~ codes * scales, scales (inputs / group, outputs) in float32.

    With 8 bits codes are int8 (outputs, inputs). With 4 bits they are nibbles of uint8 (inputs / 2, outputs), offset by
    8, and byte j of a group holds the inputs j and j + group / 2 of it: the two halves of a byte then multiply two
    contiguous pieces of the activations, and nothing is shuffled in registers.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    @property
    def outputs(self) -> int:
        return self.scales.shape[1]

    @property
    def group(self) -> int:
        return self.codes.shape[1 if self.bits == 8 else 0] * (1 if self.bits == 8 else 2) // len(self.scales)


def group_of(inputs: int) -> int | None:
    """None for a layer whose inputs no group divides: it stays as it is."""
    return next((group for group in GROUPS if inputs % group == 0), None)


def side_by_side(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Of layers of one input, bits and group, as one layer: their outputs behind each other."""
    bits = weights[0].bits
    codes = torch.cat([weight.codes for weight in weights], 0 if bits == 8 else 1)
    return QuantizedWeight(codes, torch.cat([weight.scales for weight in weights], 1), bits)


def quantize_weight(weight: Tensor, bits: int, group: int | None = None) -> QuantizedWeight:
    """weight (outputs, inputs), inputs a multiple of `group`; symmetric, to the nearest."""
    outputs, inputs = weight.shape
    group = group or group_of(inputs)
    assert group is not None, inputs
    assert inputs % group == 0, (inputs, group)
    largest = 7 if bits == 4 else 127
    grouped = weight.float().view(outputs, -1, group)
    scales = grouped.abs().amax(2).clamp(min=1e-12) / largest
    codes = (grouped / scales[..., None]).round().to(torch.int8)
    scales = scales.t().contiguous()
    if bits == 8:
        return QuantizedWeight(codes.view(outputs, inputs), scales, 8)
    return pack_codes((codes + 8).to(torch.uint8).flatten(1), scales)


def pack_codes(codes: Tensor, scales: Tensor) -> QuantizedWeight:
    """Codes (outputs, inputs) uint8 of 4 bits, of which 8 is zero, and scales (inputs / group, outputs)."""
    grouped = codes.view(len(codes), len(scales), -1)
    half = grouped.shape[2] // 2
    packed = grouped[..., :half] | grouped[..., half:] << 4
    return QuantizedWeight(packed.flatten(1).t().contiguous(), scales.contiguous(), 4)


def dequantized(weight: QuantizedWeight) -> Tensor:
    """(outputs, inputs) in float32."""
    if weight.bits == 8:
        codes = weight.codes.float().view(weight.outputs, len(weight.scales), -1)
    else:
        packed = weight.codes.t().reshape(weight.outputs, len(weight.scales), -1)
        codes = torch.cat((packed & 15, packed >> 4), 2).float() - 8
    return (codes * weight.scales.t()[..., None]).flatten(1)


def quantize_activations(x: Tensor, group: int, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (rows, inputs), times `factors` (inputs,) if given, as int8 and float32 scales (rows, inputs / group).

    A group that is not finite keeps a scale that is not, so that its row ends as no answer.
    """
    x = x.float() if factors is None else x.float() * factors
    grouped = x.view(len(x), x.shape[1] // group, group)
    scales = grouped.abs().amax(2).clamp(min=1e-12) / 127
    codes = (grouped / scales[..., None]).round().nan_to_num(0.0)
    return codes.to(torch.int8).flatten(1), scales


def matmul_w4a16_reference(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x (rows, inputs) times the weight's transpose, in float32: (rows, outputs)."""
    return functional.linear(x.float(), dequantized(weight))


def matmul_w8a8_reference(codes: Tensor, scales: Tensor, weight: QuantizedWeight) -> Tensor:
    """codes (rows, inputs) int8 with scales (rows, inputs / group): (rows, outputs) in float32."""
    x = codes.view(*scales.shape, weight.group).float() * scales[..., None]
    return functional.linear(x.flatten(1), dequantized(weight))
