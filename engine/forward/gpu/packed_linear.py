"""Linear layers with weights of 4 or 8 bits on a GPU: `quantization="int4"` and `"int8"` there.

With 8 bits, activations are too, smoothed but through no Hadamard transform, so that layers with more inputs than the
model is wide, such as the MLP's way back, stay as they are. With 4 bits the weights alone are, of every layer of the
body, to the nearest in groups (what is called W4A16). Weights are packed once, at load.
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.config import Quantization
from engine.errors import UserError
from engine.forward.gpu.fp8_linear import Fp8Linear
from engine.forward.smoothing import linears_of, magnitudes_of, stretch_of
from kernels.gpu.matmul.quantized_matmul import matmul_w4a16, matmul_w8a8, quantize_rows
from kernels.gpu.matmul.quantized_weights import QuantizedWeight, group_of, quantize_weight, side_by_side
from kernels.gpu.tuning.device_limits import processors_of


class PackedLinear(nn.Module):
    """`nn.Linear` through the kernels; `factors` (in_features,) multiply activations of 8 bits first."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    factors: Tensor | None
    offsets: Tensor | None

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, factors: Tensor | None, offsets: Tensor | None = None
    ) -> None:
        """`offsets` (groups, outputs) are added to all weights of a group: what zero points that are no 8 come to."""
        super().__init__()
        self.in_features, self.out_features = weight.group * len(weight.scales), weight.outputs
        self.bits, self.group = weight.bits, weight.group
        buffers = {"codes": weight.codes, "scales": weight.scales, "bias": bias, "factors": factors, "offsets": offsets}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, linear: nn.Linear, bits: int, magnitudes: Tensor | None = None) -> "PackedLinear":
        """`magnitudes` (in_features,): the largest that each input channel has been seen with."""
        weight, factors = linear.weight.detach(), None
        if magnitudes is not None:
            stretch = stretch_of(magnitudes)
            weight, factors = weight.float() * stretch, 1 / stretch
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(quantize_weight(weight, bits), bias, factors)

    @property
    def weight(self) -> QuantizedWeight:
        return QuantizedWeight(self.codes, self.scales, self.bits)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype that comes in."""
        # Asked of where the rows are: codes may have been made on another device.
        flat, processors = rows.reshape(-1, self.in_features), processors_of(rows.device)
        if self.bits == 4:
            out = matmul_w4a16(flat, self.weight, processors)
            if self.offsets is not None:
                sums = flat.view(len(flat), len(self.scales), self.group).sum(-1, dtype=torch.float32)
                out += (sums @ self.offsets).to(out.dtype)
        else:
            codes, scales = quantize_rows(flat, self.group, self.factors)
            out = matmul_w8a8(codes, scales, self.weight, rows.dtype, processors)
        out = out if self.bias is None else out.add_(self.bias)
        return out.view(*rows.shape[:-1], self.out_features)


def pack_integers(model: Any, quantization: Quantization) -> int:
    """Replaces linear layers below the model's body, in place; returns how many.

    One whose inputs no group divides stays as it is. Raises UserError where that is every one.
    """
    bits = 4 if quantization == "int4" else 8
    linears = linears_of(model) if bits == 4 else _without_down(model)
    found = {path: linear for path, linear in linears.items() if group_of(linear.in_features)}
    if not found:
        raise UserError(f"model.quantization: {quantization} needs layers of a multiple of 32 inputs; take none")
    magnitudes = magnitudes_of(model, found) if bits == 8 else {}
    for path, linear in found.items():
        model.base_model.set_submodule(path, PackedLinear.of(linear, bits, magnitudes.get(path)))
    return len(found)


def _without_down(model: Any) -> dict[str, nn.Linear]:
    """Without what comes back from an MLP: its inputs are products, a few of them far above the rest."""
    size = model.config.hidden_size
    return {path: linear for path, linear in linears_of(model).items() if linear.in_features <= size}


def stacked(*layers: Any) -> nn.Module:
    """Layers of one input as one layer, their outputs side by side: all `nn.Linear`, or all packed alike."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers)), len(biases)
    bias = torch.cat(biases) if biases else None
    first = layers[0]
    if isinstance(first, PackedLinear):
        same = first.factors is None or all(torch.equal(layer.factors, first.factors) for layer in layers)
        assert same, "layers of one input were smoothed apart"
        offsets = None
        if any(layer.offsets is not None for layer in layers):
            none = (torch.zeros_like(layer.scales) for layer in layers)
            offsets = torch.cat(
                [zero if layer.offsets is None else layer.offsets for layer, zero in zip(layers, none, strict=True)], 1
            )
        return PackedLinear(side_by_side([layer.weight for layer in layers]), bias, first.factors, offsets)
    if isinstance(first, Fp8Linear):
        codes = torch.cat([layer.codes.view(torch.uint8) for layer in layers]).view(torch.float8_e4m3fn)
        return Fp8Linear(codes, torch.cat([layer.scales for layer in layers], 1), bias)
    weight = torch.cat([layer.weight for layer in layers])
    made = nn.Linear(first.in_features, len(weight), bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
