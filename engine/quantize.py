"""Linear layers with 8-bit weights and dynamic 8-bit activations: `quantization="int8"`."""

import torch
from torch import Tensor, nn

from engine.errors import UserError

INT8_MAX = 127


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, n) to int8 (rows, n) and float32 scales (rows, 1), symmetric: values are about int8 times scale.

    A row's error is at most half its scale, which is its largest magnitude over 127. A row that is not finite keeps
    a scale that is not, so that it does not end as an answer.
    """
    values = values.float()
    scales = values.abs().amax(-1, keepdim=True) / INT8_MAX
    quantized = (values / scales.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return quantized.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


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
        quantized, scales = quantize_rows(rows.reshape(-1, self.in_features))
        out = torch._int_mm(quantized, self.weight.t()).float()
        out = out.mul_(scales).mul_(self.weight_scales)
        if self.bias is not None:
            out += self.bias
        return out.to(rows.dtype).reshape(*rows.shape[:-1], self.out_features)


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
