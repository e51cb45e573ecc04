"""The families whose decoder layer is computed in a few passes: said once, for plans and for either device's layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class FusedFamily:
    """A `model_type` whose layers are transformers' class `layer`: norm, rotary attention, norm, MLP gated by silu.

    `head_norms`: each head of queries and keys goes through an RMS norm before it turns. `backends` have a fused layer
    with these parts: `engine.forward.cpu.fused_layer` on "torch", `engine.forward.gpu.fused_layer` on "triton".
    """

    model_type: str
    layer: str
    head_norms: bool = False
    backends: tuple[Backend, ...] = ("torch", "triton")


# Of a fused layer, by path below it, in the order of their places for adapters: layers of one input lie together.
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

FUSED_FAMILIES = (
    FusedFamily("internlm3", "LlamaDecoderLayer"),
    FusedFamily("iquestcoder", "LlamaDecoderLayer"),
    FusedFamily("llama", "LlamaDecoderLayer"),
    FusedFamily("mistral", "MistralDecoderLayer"),
    FusedFamily("qwen2", "Qwen2DecoderLayer"),
    FusedFamily("qwen3", "Qwen3DecoderLayer", head_norms=True, backends=("triton",)),
)


def fused_backends(config: Mapping[str, Any]) -> tuple[Backend, ...]:
    """The backends that fuse the layers of a model with this config.json."""
    if config.get("hidden_act", "silu") != "silu":
        return ()
    return next((family.backends for family in FUSED_FAMILIES if family.model_type == config.get("model_type")), ())


def family_of(layer: object, backend: Backend) -> FusedFamily | None:
    """The family that a decoder layer of transformers belongs to, if `backend` fuses it: of those with one class, any.

    What a layer's own parts are, its activation or its weights' dtype, is the caller's to ask.
    """
    name = type(layer).__name__
    return next((one for one in FUSED_FAMILIES if one.layer == name and backend in one.backends), None)
