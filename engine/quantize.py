"""Linear layers with 8-bit weights and dynamic 8-bit activations: `quantization="int8"`."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.errors import UserError
from kernels.int8_rows import add_product, multiply, quantize_rows


class Int8Linear(nn.Module):
    """`nn.Linear` with a scale for each output channel's weights and one for each row of activations.

    The products are summed exactly in int32; scales and bias are applied in float32.
    """

    weight: Tensor
    weight_scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scales = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scales", scales[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype that comes in."""
        flat = rows.reshape(-1, self.in_features)
        out = self.into(flat, torch.empty(len(flat), self.out_features, device=rows.device))
        return out.to(rows.dtype).reshape(*rows.shape[:-1], self.out_features)

    def into(self, rows: Tensor, out: Tensor) -> Tensor:
        """out = the layer of `rows` (n, in_features); out (n, out_features) in float32, contiguous."""
        multiply(*quantize_rows(rows), self.weight, self.weight_scales, out)
        return out if self.bias is None else out.add_(self.bias)

    def sums(self, rows: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """The exact products before scales and bias, in `room` (n, out_features) of int32, and the rows' scales."""
        quantized, scales = quantize_rows(rows)
        return torch._int_mm(quantized, self.weight.t(), out=room), scales

    def add(self, quantized: Tensor, scales: Tensor, room: Tensor, out: Tensor) -> None:
        """out += the layer of rows that are quantised already; `room` is (n, out_features) of int32."""
        add_product(quantized, scales, self.weight, self.weight_scales, room, out)
        if self.bias is not None:
            out += self.bias

    @classmethod
    def stacked(cls, layers: "Sequence[Int8Linear]") -> "Int8Linear":
        """One layer whose output is all of theirs, side by side."""
        stacked = copy.copy(layers[0])
        stacked._buffers = dict(layers[0]._buffers)
        stacked.out_features = sum(layer.out_features for layer in layers)
        for name in ("weight", "weight_scales", "bias"):
            parts = [getattr(layer, name) for layer in layers]
            setattr(stacked, name, None if parts[0] is None else torch.cat(parts))
        return stacked


def quantize_linears(model: nn.Module) -> int:
    """Replaces every `nn.Linear` below the model's body, in place; embeddings and head stay. Returns how many.

    Raises UserError for a model whose body holds no `nn.Linear`.
    """
    body: nn.Module = model.base_model  # type: ignore[assignment]
    found = [(path, module) for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise UserError("model.quantization: int8 finds no linear layer in this model; take quantization: none")
    for path, linear in found:
        body.set_submodule(path, Int8Linear(linear))
    return len(found)
