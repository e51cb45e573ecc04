"""The attention function that transformers' models call by name, over a step's packed rows."""

from types import EllipsisType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.errors import UserError
from engine.forward.step_attention import Scoring, StepAttention

NAME = "trunkline"


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    step_attention: StepAttention,
    sliding_window: int | EllipsisType | None = ...,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1, heads, rows, dim), key and value (1, kv_heads, rows, dim).

    Raises UserError for an argument that would change the result and is not served.
    """
    # transformers makes no mask for an attention function of ours: the step says what a row may read.
    if attention_mask is not None or position_bias is not None:
        raise UserError("adds a mask or bias of its own to attention, which is not served")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = window_of(module) if isinstance(sliding_window, EllipsisType) else sliding_window
    dim, value_dim = key.shape[-1], value.shape[-1]
    if value_dim < dim:
        value = F.pad(value, (0, dim - value_dim))
    scoring = Scoring(scale, window=window or None, softcap=softcap, sinks=s_aux)
    out = step_attention.run(layer, query[0], key[0], value[0], scoring)
    return out[None, ..., :value_dim], None


def window_of(module: nn.Module) -> int | None:
    """The window of an attention that has one and does not pass it on (Qwen2-MoE, PhiMoE).

    The probe holds what this finds to the model's own attention.
    """
    values: dict[str, Any] = vars(module)
    if "sliding_window" not in values:
        values = vars(values["config"]) if "config" in values else {}
        if values.get("layer_types"):
            return None
    window: int | None = values.get("sliding_window")
    return window or None


AttentionInterface.register(NAME, attention_function)
