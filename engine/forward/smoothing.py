"""What activations of few bits are divided by, channel by channel, on any device.

A few channels of a language model's activations are far larger than the rest. So each input channel is divided by the
square root of the largest magnitude seen in it, and the weights are multiplied by that (SmoothQuant, arXiv 2211.10438,
with a strength of a half and the activations' side alone, so that layers with one input stay alike). The magnitudes are
those of random tokens: what a model answers follows from the model, not from the job.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError

CALIBRATION_SHAPE = (2, 256)


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
