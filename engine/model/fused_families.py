"""The families whose decoder layer is computed in a few passes: said once, for plans and for either device's layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class FusedFamily:
    """A `model_type` whose layers are transformers' class `layer`: norm, rotary attention, norm, gated MLP.

    `head_norms`: each head of queries and keys goes through an RMS norm before it turns. `activation` opens the gate;
    config.json says so under `activation_key`. `adds_one`: norms multiply by one plus their weight, and round behind
    that alone. `post_norms`: attention and MLP are normed again before they are added to the residual. `softcap`:
    attention has one in `attn_logit_softcapping`. `packed`: queries, keys and values come out of one linear layer of
    the checkpoint, and so do gate and up.

    `backends` have a fused layer with these parts: `engine.forward.cpu.fused_layer` on "torch",
    `engine.forward.gpu.fused_layer` on "triton".
    """

    model_type: str
    layer: str
    head_norms: bool = False
    activation: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    activation_key: str = "hidden_act"
    adds_one: bool = False
    post_norms: bool = False
    softcap: bool = False
    packed: bool = False
    backends: tuple[Backend, ...] = ("torch", "triton")


FUSED_FAMILIES = (
    FusedFamily(
        "gemma",
        "GemmaDecoderLayer",
        activation="gelu_pytorch_tanh",
        adds_one=True,
        backends=("triton",),
    ),
    FusedFamily(
        "gemma2",
        "Gemma2DecoderLayer",
        activation="gelu_pytorch_tanh",
        activation_key="hidden_activation",
        adds_one=True,
        post_norms=True,
        softcap=True,
        backends=("triton",),
    ),
    FusedFamily(
        "gemma3_text",
        "Gemma3DecoderLayer",
        head_norms=True,
        activation="gelu_pytorch_tanh",
        activation_key="hidden_activation",
        adds_one=True,
        post_norms=True,
        backends=("triton",),
    ),
    FusedFamily("internlm3", "LlamaDecoderLayer"),
    FusedFamily("iquestcoder", "LlamaDecoderLayer"),
    FusedFamily("llama", "LlamaDecoderLayer"),
    FusedFamily("mistral", "MistralDecoderLayer"),
    FusedFamily("phi3", "Phi3DecoderLayer", packed=True, backends=("triton",)),
    FusedFamily("qwen2", "Qwen2DecoderLayer"),
    FusedFamily("qwen3", "Qwen3DecoderLayer", head_norms=True, backends=("triton",)),
)


def fused_backends(config: Mapping[str, Any]) -> tuple[Backend, ...]:
    """The backends that fuse the layers of a model with this config.json."""
    family = next((one for one in FUSED_FAMILIES if one.model_type == config.get("model_type")), None)
    if family is None or (config.get(family.activation_key) or family.activation) != family.activation:
        return ()
    return family.backends


def family_of(layer: object, backend: Backend) -> FusedFamily | None:
    """The family that a decoder layer of transformers belongs to, if `backend` fuses it: of those with one class, any.

    What a layer's own parts are, its activation or its weights' dtype, is the caller's to ask.
    """
    name = type(layer).__name__
    return next((one for one in FUSED_FAMILIES if one.layer == name and backend in one.backends), None)
