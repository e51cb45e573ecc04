"""Weights of 4 and 8 bits with a scale a group of inputs and output channel, and their products by definition."""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128


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


def quantize_weight(weight: Tensor, bits: int, group: int = GROUP) -> QuantizedWeight:
    """weight (outputs, inputs), inputs a multiple of `group`; symmetric, to the nearest."""
    outputs, inputs = weight.shape
    assert inputs % group == 0, (inputs, group)
    largest = 7 if bits == 4 else 127
    grouped = weight.float().view(outputs, -1, group)
    scales = grouped.abs().amax(2).clamp(min=1e-12) / largest
    codes = (grouped / scales[..., None]).round().to(torch.int8)
    scales = scales.t().contiguous()
    if bits == 8:
        return QuantizedWeight(codes.view(outputs, inputs), scales, 8)
    nibbles = (codes + 8).to(torch.uint8)
    packed = nibbles[..., : group // 2] | nibbles[..., group // 2 :] << 4
    return QuantizedWeight(packed.reshape(outputs, inputs // 2).t().contiguous(), scales, 4)


def dequantized(weight: QuantizedWeight) -> Tensor:
    """(outputs, inputs) in float32."""
    if weight.bits == 8:
        codes = weight.codes.float().view(weight.outputs, len(weight.scales), -1)
    else:
        packed = weight.codes.t().reshape(weight.outputs, len(weight.scales), -1)
        codes = torch.cat((packed & 15, packed >> 4), 2).float() - 8
    return (codes * weight.scales.t()[..., None]).flatten(1)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (rows, inputs) as int8 and a float32 scale a row."""
    scales = x.float().abs().amax(1).clamp(min=1e-12) / 127
    return (x.float() / scales[:, None]).round().to(torch.int8), scales


def matmul_w4a16_reference(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x (rows, inputs) times the weight's transpose, in float32: (rows, outputs)."""
    return x.float() @ dequantized(weight).t()


def matmul_w8a8_reference(codes: Tensor, scales: Tensor, weight: QuantizedWeight) -> Tensor:
    """codes (rows, inputs) int8 with scales (rows,): (rows, outputs) in float32."""
    return codes.float() @ dequantized(weight).t() * scales[:, None]
