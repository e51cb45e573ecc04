"""Linear layers on a GPU's FP8 units: `quantization="fp8"`.

Weights have a scale an output channel, made once at load; activations one a row, made as they come (Micikevicius et
al., FP8 formats for deep learning, arXiv 2209.05433: e4m3 forward). Every layer of the body; the head stays.
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.forward.smoothing import linears_of
from kernels.gpu.layer.e4m3 import e4m3_rows, e4m3_rows_reference

# Both sides of a product come in blocks of so many numbers.
MULTIPLE = 16


class Fp8Linear(nn.Module):
    """`nn.Linear` with weight codes (outputs, inputs) in float8_e4m3fn and scales (1, outputs)."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        for name, tensor in (("codes", codes), ("scales", scales), ("bias", bias)):
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, linear: nn.Linear) -> "Fp8Linear":
        codes, scales = e4m3_rows_reference(linear.weight.detach())
        bias: Tensor | None = linear.bias
        return cls(codes, scales.t().contiguous(), None if bias is None else bias.detach())

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), bfloat16 both."""
        flat = rows.reshape(-1, self.in_features)
        return self.product(*e4m3_rows(flat)).view(*rows.shape[:-1], self.out_features)

    def product(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Of rows as `e4m3_rows` makes them: codes (rows, in_features), scales (rows, 1)."""
        out: Tensor = torch._scaled_mm(
            codes,
            self.codes.t(),
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out if self.bias is None else out.add_(self.bias)


def round_linears_to_fp8(model: Any) -> int:
    """Replaces linear layers below the model's body, in place; returns how many.

    One whose sides are no multiple of 16 stays as it is. Raises UserError where that is every one.
    """
    found = {path: linear for path, linear in linears_of(model).items() if _fits(linear)}
    if not found:
        raise UserError("model.quantization: fp8 needs layers of a multiple of 16 inputs and outputs; take none")
    for path, linear in found.items():
        model.base_model.set_submodule(path, Fp8Linear.of(linear))
    return len(found)


def _fits(linear: nn.Linear) -> bool:
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
