"""Loads a model for serving, and refuses by name what the engine would compute wrongly."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from engine.attention import NAME, StepAttention
from engine.config import Quantization
from engine.device import Device
from engine.errors import UserError
from engine.kv_cache import KVCache
from engine.model import ModelFiles, load_shape, weights_folder
from engine.model_shape import ModelShape
from engine.quantize import quantize_linears
from engine.scheduler_output import SchedulerOutput

PROBE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
# A last bit of attention moves an activation to the next of its 255 steps: 7e-2 on SmolLM2-135M. The path is held to
# the tolerance above before the weights are quantised; this one finds linear layers that are broken.
INT8_PROBE_TOLERANCE = 0.25


class LoadedModel:
    """A transformers model in two halves: packed rows to hidden states, and hidden states to logits.

    The head's half is the model's own forward with the body replaced, so that scaling and caps on logits stay as
    the architecture has them.
    """

    def __init__(self, model: Any, shape: ModelShape) -> None:
        self.shape = shape
        self.body = model.base_model
        self._head = copy.copy(model)
        self._head._modules = dict(model._modules)
        self._given = _GivenHidden()
        setattr(self._head, model.base_model_prefix, self._given)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, step: object) -> Tensor:
        """(rows, hidden_size) for packed rows; `step` reaches the attention function."""
        output = self.body(input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, step=step)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, vocab_size) in float32."""
        self._given.hidden = hidden[None]
        logits: Tensor = self._head(input_ids=None).logits[0]
        return logits.float()


class _GivenHidden(nn.Module):
    hidden: Tensor

    def forward(self, *_: object, **__: object) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


def load_model(files: ModelFiles, device: Device, quantization: Quantization = "none") -> LoadedModel:
    """Raises UserError where the architecture is not one that packed, prefix-shared attention computes rightly."""
    shape = load_shape(files)
    folder = weights_folder(files)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _refuse(config, files.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, device.dtype),
        attn_implementation=NAME,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    model.to(device.name).eval().requires_grad_(False)
    loaded = LoadedModel(model, shape)
    _probe(loaded, model, device, files.name, PROBE_TOLERANCE[device.dtype])
    if quantization == "int8":
        quantize_linears(model)
        _probe(loaded, model, device, files.name, INT8_PROBE_TOLERANCE)
    return loaded


@torch.inference_mode()
def _probe(loaded: LoadedModel, model: Any, device: Device, name: str, tolerance: float) -> None:
    """Holds the packed path to the model's own eager attention, over the same weights, on a few tokens."""
    rows = 8
    tokens = torch.arange(rows, device=device.name) % loaded.shape.vocab_size
    step = SchedulerOutput.causal_rows(rows)
    dtype = getattr(torch, device.dtype)
    cache = KVCache(loaded.shape.num_layers, loaded.shape.num_kv_heads, 0, loaded.shape.head_dim, dtype, device.name)
    attention = StepAttention(step, cache, dtype, device.name)
    ours = loaded.logits(loaded.hidden(tokens, torch.arange(rows, device=device.name), attention))
    model.set_attn_implementation("eager")
    theirs = model(input_ids=tokens[None], use_cache=False).logits[0].float()
    model.set_attn_implementation(NAME)
    worst = float((ours.softmax(-1) - theirs.softmax(-1)).abs().max())
    if not worst < tolerance:
        raise UserError(
            f"model.path: {name} ({model.config.model_type}) gives other probabilities in packed rows (by {worst:.1e})"
        )


def _refuse(config: Any, name: str) -> None:
    """What this engine does not compute yet, by name, before any weight is read."""
    kind = f"model.path: {name} ({config.model_type})"
    if config.is_encoder_decoder:
        raise UserError(f"{kind} has an encoder; only decoder-only models are served")
    if other := set(getattr(config, "layer_types", None) or []) - {"full_attention"}:
        raise UserError(f"{kind} has layers of type {', '.join(sorted(other))}, which are not built yet")
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None or not getattr(model_class, "_supports_attention_backend", False):
        raise UserError(f"{kind} takes no attention function by name, so it cannot be served")
