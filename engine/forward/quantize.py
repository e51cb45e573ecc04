"""Linear layers with 8-bit weights and dynamic 8-bit activations: `quantization="int8"`.

A few channels of a language model's activations are far larger than the rest. So each input channel is divided by the
square root of the largest magnitude seen in it, and the weights are multiplied by that (SmoothQuant, arXiv 2211.10438,
with a strength of a half and the activations' side alone, so that layers with one input stay alike); what is left of
them is spread over neighbours (`kernels.cpu.matmul.int8_rows`). The magnitudes are those of random tokens: what a
model answers follows from the model, not from the job.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.stages import enter
from kernels.cpu.matmul.int8_rows import quantize_rows

CALIBRATION_SHAPE = (2, 256)


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


def linears_of(model: Any) -> dict[str, nn.Linear]:
    """By path below the model's body. Raises UserError where there is none."""
    found = {path: module for path, module in model.base_model.named_modules() if isinstance(module, nn.Linear)}
    if not found:
        raise UserError("model.quantization: finds no linear layer in this model; take quantization: none")
    return found


def stretch_of(magnitudes: Tensor) -> Tensor:
    """Square roots; a channel that was hardly used stays within reason."""
    return magnitudes.clamp_min(1e-3 * float(magnitudes.mean()) + 1e-12).sqrt()


@torch.inference_mode()
def magnitudes_of(model: Any, linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """The largest magnitude in each input channel of each layer, over random tokens; a layer they miss is left out."""
    seen: dict[str, Tensor] = {}

    def look(path: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest = inputs[0].detach().float().abs().flatten(0, -2)
        if len(largest):
            before = seen.get(path)
            seen[path] = largest.amax(0) if before is None else torch.maximum(before, largest.amax(0))

    hooks = [linear.register_forward_pre_hook(partial(look, path)) for path, linear in linears.items()]
    draw = torch.Generator().manual_seed(0)
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    tokens = torch.randint(model.config.vocab_size, CALIBRATION_SHAPE, generator=draw)
    model.base_model(input_ids=tokens.to(model.device), use_cache=False)  # no head, whose logits nobody reads
    model.set_attn_implementation(implementation)
    for hook in hooks:
        hook.remove()
    return seen
