"""Holds the packed path of a model just loaded to the model's own eager attention, on a few tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.forward.attention import NAME
from engine.forward.attention_backend import attention_backend
from engine.forward.kv_cache import KVCache
from engine.forward.loaded_model import LoadedModel
from engine.forward.step_inputs import step_inputs
from engine.machine.device import Device
from engine.scheduling.scheduler_output import SchedulerOutput

ROWS = 8
WINDOW = 3
# By the dtype that all is computed in; what is kept in fewer bits than that has its scheme's tolerance.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


class ProbeCache(KVCache):
    """A KV cache without slots, which holds layers to what the configuration promised, and to attending once each."""

    def __init__(self, loaded: LoadedModel, device: str) -> None:
        shape = loaded.shape
        sizes = (shape.num_layers, shape.num_kv_heads, 0, shape.head_dim)
        super().__init__(*sizes, loaded.kv_format, device, loaded.kv_scales)
        self.layers: set[int] = set()

    def of_layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        num_layers, promised = len(self.keys), (self.num_kv_heads, self.head_dim)
        if layer >= num_layers or layer in self.layers:
            raise UserError(f"attends more than once in each of its {num_layers} layers, which is not served")
        self.layers.add(layer)
        for made in (key.shape, value.shape):
            if (made[0], made[2]) != promised:
                raise UserError(
                    f"has {made[0]} KV heads of {made[2]} in layer {layer}; only models with the {promised[0]} of "
                    f"{promised[1]} that config.json says, in every layer, are served"
                )
        return super().of_layer(layer, key, value)


@torch.inference_mode()
def eager_logits(model: Any, vocab_size: int, device: Device) -> Tensor:
    """What the model's own code says of the probe's tokens: (rows, logits) in float32."""
    with narrow_windows(model, WINDOW):
        model.set_attn_implementation("eager")
        logits: Tensor = model(input_ids=_tokens(vocab_size, device)[None], use_cache=False).logits[0]
        model.set_attn_implementation(NAME)
    return logits.float()


@torch.inference_mode()
def probe(
    loaded: LoadedModel,
    expected: Tensor,
    model: Any,
    device: Device,
    kind: str,
    tolerance: float = TOLERANCE["float32"],
) -> None:
    """Raises UserError where `loaded`, made of `model`, gives other probabilities than `expected`, which is
    `eager_logits` of the model as it was loaded.
    """
    positions = torch.arange(ROWS, device=device.name)
    cache, step = ProbeCache(loaded, device.name), SchedulerOutput.causal_rows(ROWS)
    attention = attention_backend(device.backend, cache, in_order=loaded.strict).prepare(
        step, step_inputs(step, device.name)
    )
    with narrow_windows(model, WINDOW):
        try:
            ours = loaded.logits(loaded.hidden(_tokens(loaded.shape.vocab_size, device), positions, attention))
        except UserError as problem:
            raise UserError(f"{kind} {problem}") from None
    if len(cache.layers) < loaded.shape.num_layers:
        raise UserError(f"{kind} has layers that do not attend, which are not served")
    worst = float((ours.softmax(-1) - expected.softmax(-1)).abs().max())
    if not worst < tolerance:
        raise UserError(f"{kind} gives other probabilities in packed rows (by {worst:.1e})")


def _tokens(vocab_size: int, device: Device) -> Tensor:
    # Not the first ids: padding is among them, and some models count positions by it.
    return (torch.arange(ROWS, device=device.name) + vocab_size // 2) % vocab_size


@contextmanager
def narrow_windows(model: Any, window: int) -> Iterator[None]:
    """All sliding windows are `window` for a while, so that a few tokens show whether attention hears of them."""
    holders = [model.config, *(module for module in model.modules() if "sliding_window" in vars(module))]
    before = [(holder, holder.sliding_window) for holder in holders if getattr(holder, "sliding_window", None)]
    try:
        for holder, _ in before:
            holder.sliding_window = window
        yield
    finally:
        for holder, value in before:
            holder.sliding_window = value
