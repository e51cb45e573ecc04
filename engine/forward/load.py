"""Loads a model for serving, and refuses by name what the engine would compute wrongly."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from engine.config import Quantization
from engine.errors import UserError
from engine.forward.attention import NAME
from engine.forward.cpu.fused_body import can_fuse, fuse_body
from engine.forward.cpu.projection import Head
from engine.forward.probe import NARROW_TOLERANCE, TOLERANCE, eager_logits, probe
from engine.forward.quantize import quantize_linears
from engine.forward.sampler import greedy
from engine.forward.step_attention import StepAttention
from engine.machine.device import Device
from engine.model.architecture import refuse
from engine.model.checkpoint import ModelFiles, load_shape, weights_folder
from engine.model.model_shape import ModelShape
from engine.stages import enter
from kernels.kv_format import KVFormat, kv_format_of

# Attention is called by name, though the class does not say so.
CALLED_BY_NAME = {"biogpt", "stablelm"}
# The decoder layers pass no argument on to attention.
HEARS_NOTHING = {"nemotron", "stablelm"}


class LoadedModel:
    """A transformers model in two halves: packed rows to hidden states, and hidden states to logits.

    The head's half is the model's own forward with the body replaced, so that scaling and caps on logits stay as
    the architecture has them. `kv_format` is how its keys and values are kept.
    """

    def __init__(self, model: Any, shape: ModelShape, kv_format: KVFormat) -> None:
        self.shape = shape
        self.kv_format = kv_format
        self.body = model.base_model
        self._head = copy.copy(model)
        self._head._modules = dict(model._modules)
        self._given = _GivenHidden()
        setattr(self._head, model.base_model_prefix, self._given)
        self._attention: StepAttention | None = None
        # Whether no layer reads a number back from the device: what transformers wrote may.
        self.waits_for_nothing = False
        self._screened = self._if_plain(model.get_output_embeddings())
        if model.config.model_type in HEARS_NOTHING:
            for module in self.body.modules():
                if "layer_idx" in vars(module):
                    module.register_forward_pre_hook(self._tell, with_kwargs=True)

    def _tell(self, _: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, named | {"step_attention": self._attention}

    @property
    def weight_bytes(self) -> int:
        """Of all parameters and buffers, tied ones once."""
        held = [*self.body.parameters(), *self.body.buffers(), *self._head.parameters(), *self._head.buffers()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention: StepAttention) -> Tensor:
        """(asked rows, hidden_size) of packed rows (rows,); transformers hands `attention` on to the layers."""
        self._attention = attention
        ids, positions = input_ids[None], position_ids[None]
        output = self.body(input_ids=ids, position_ids=positions, use_cache=False, step_attention=attention)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if len(hidden) == len(attention.asked_rows) else hidden[attention.asked_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, vocab_size) in float32."""
        self._given.hidden = hidden[None]
        logits: Tensor = self._head(input_ids=None).logits[0]
        return logits.float()

    def best_tokens(self, hidden: Tensor) -> Tensor:
        """(rows,) int64: of each row, the token whose logit is the greatest; -1 where they are not finite."""
        return greedy(self.logits(hidden)) if self._screened is None else self._screened.best(hidden)

    @torch.inference_mode()
    def _if_plain(self, head: object) -> Head | None:
        """The head's layer, where the greatest logit can be looked for in it: logits are what it says."""
        if not isinstance(head, Head) or head.screen is None:
            return None
        rows = torch.randn(4, head.in_features, generator=torch.Generator().manual_seed(0))
        return head if torch.equal(self.logits(rows), head(rows)) else None


@dataclass
class _Given(BaseModelOutputWithPastAndCrossAttentions):
    """Has every field that some head passes on."""

    router_logits: None = None


class _GivenHidden(nn.Module):
    hidden: Tensor

    @property
    def decoder(self) -> "_GivenHidden":
        """OPT's head calls its body's decoder."""
        return self

    def forward(self, *_: object, **__: object) -> _Given:
        return _Given(last_hidden_state=self.hidden)


def load_model(files: ModelFiles, device: Device, quantization: Quantization = "none") -> LoadedModel:
    """Raises UserError where the architecture is not one that packed, prefix-shared attention computes rightly."""
    shape = load_shape(files)
    # 8 bits are made from all that there are; on a GPU, where float32 may not fit, from what it would hold.
    exact = device.dtype if device.backend == "triton" else "float32"
    dtype = device.dtype if quantization == "none" else exact
    folder = weights_folder(files)
    enter("loading the model")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _refuse(config, files.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, dtype),
        attn_implementation=NAME,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if model.base_model is model:
        raise UserError(f"model.path: {files.name} ({config.model_type}) has no body apart from its head")
    model.to(device.name).eval().requires_grad_(False)
    kind = f"model.path: {files.name} ({config.model_type})"
    narrows = device.backend == "torch" and device.dtype == "bfloat16" and can_fuse(model)
    if quantization != "none" or narrows:
        # Held to the model's own code with all bits first; how much fewer bits then change is bounded loosely.
        model.to(getattr(torch, exact))
        expected = eager_logits(model, shape.vocab_size, device)
        whole = LoadedModel(model, shape, kv_format_of(exact))
        probe(whole, expected, model, device, kind, TOLERANCE[exact])
        if quantization == "none":
            model.bfloat16()
        else:
            _quantize(model, quantization, device)
        tolerance = NARROW_TOLERANCE[quantization]
    else:
        expected, tolerance = eager_logits(model, shape.vocab_size, device), TOLERANCE[device.dtype]
    swapped = _swap_layers(model, device)
    if device.backend == "torch":
        shape = replace(shape, can_fuse=swapped)
    loaded = LoadedModel(model, shape, device.kv_format(shape, quantization))
    loaded.waits_for_nothing = device.backend == "triton" and swapped
    probe(loaded, expected, model, device, kind, tolerance)
    return loaded


def _quantize(model: Any, quantization: Quantization, device: Device) -> None:
    if device.backend == "torch":
        quantize_linears(model)
        return
    # Where Triton is not installed, nothing asks for these.
    from engine.forward.gpu.fp8_linear import narrow_linears
    from engine.forward.gpu.packed_linear import pack_linears

    if quantization == "fp8":
        narrow_linears(model)
    else:
        pack_linears(model, quantization)


def _swap_layers(model: Any, device: Device) -> bool:
    """For the device's own, where all are known; whether they are."""
    if device.backend == "torch":
        return fuse_body(model, getattr(torch, device.dtype))
    from engine.forward.gpu.fused_layer import swap_layers  # as above

    return swap_layers(model)


def _refuse(config: Any, name: str) -> None:
    """By name, before any weight is read."""
    kind = f"model.path: {name} ({config.model_type})"
    refuse({**config.to_dict(), **vars(config)}, kind)
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    by_name = getattr(model_class, "_supports_attention_backend", False) or config.model_type in CALLED_BY_NAME
    if model_class is None or not by_name:
        raise UserError(f"{kind} takes no attention function by name, so it cannot be served")
