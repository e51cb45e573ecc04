"""Linear layers with 8-bit weights and dynamic 8-bit activations: `quantization="int8"` on a CPU.

Activations are smoothed (`engine.forward.smoothing`); what is left of the largest is spread over neighbours
(`kernels.cpu.matmul.int8_rows`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.forward.smoothing import linears_of, magnitudes_of, stretch_of
from engine.stages import enter
from kernels.cpu.matmul.int8_rows import quantize_rows


class Int8Linear(nn.Module):
    """`nn.Linear` with a scale for each channel of transformed weights and one for each row of activations.

    `factors` (in_features,) multiply the activations first; the weights are divided by them. Products are summed
    exactly in int32; scales and bias are applied in float32. `engine.forward.cpu.projection` takes its place on a CPU.
    """

    factors: Tensor
    weight: Tensor
    weight_scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, magnitudes: Tensor | None = None) -> None:
        """`magnitudes` (in_features,): the largest that each input channel has been seen with."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        stretch = torch.ones(self.in_features) if magnitudes is None else stretch_of(magnitudes)
        # Room for what stays is taken before all that goes: the next layer then finds the heap as this one did.
        weight = torch.empty_like(linear.weight, dtype=torch.int8)
        scales = torch.empty(self.out_features, dtype=torch.float32)
        for kept, made in zip((weight, scales), quantize_rows(linear.weight.detach(), stretch), strict=True):
            kept.copy_(made)
        self.register_buffer("factors", 1 / stretch)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype that comes in."""
        quantized, scales = quantize_rows(rows.reshape(-1, self.in_features), self.factors)
        out = torch._int_mm(quantized, self.weight.t()).float() * scales[:, None] * self.weight_scales
        out = out if self.bias is None else out + self.bias
        return out.to(rows.dtype).reshape(*rows.shape[:-1], self.out_features)


def quantize_linears(model: Any) -> int:
    """Replaces the `nn.Linear` layers below the model's body, in place; returns how many.

    Embeddings and head stay. Raises UserError for a model whose body holds no `nn.Linear`.
    """
    linears = linears_of(model)
    enter("calibrating")
    magnitudes = magnitudes_of(model, linears)
    enter("quantizing")
    for path, linear in linears.items():
        model.base_model.set_submodule(path, Int8Linear(linear, magnitudes.get(path)))
    return len(linears)
