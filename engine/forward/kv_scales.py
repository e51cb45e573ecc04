"""Scales of keys and values that are kept in 8-bit floats, from what a model makes of random tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.errors import UserError
from engine.forward.smoothing import CALIBRATION_SHAPE
from engine.model.model_shape import ModelShape
from engine.stages import enter

# The largest magnitude seen becomes 8 to 16 steps. Up to 28 times as much is then kept without saturating (448 is the
# largest float8_e4m3fn), and all down to a thousandth of it with a relative error of a sixteenth at most.
LARGEST = 16.0


@dataclass(frozen=True, slots=True, eq=False)
class KVScales:
    """`keys`, `values` (layers, kv_heads) in float32, powers of two: what is kept is a number over its head's scale."""

    keys: Tensor
    values: Tensor


@torch.inference_mode()
def calibrate_kv_scales(model: Any, shape: ModelShape) -> KVScales:
    """Of a model as transformers wrote it. The tokens are random, so that answers follow from the model alone.

    Raises UserError for a model whose layers keep other heads than its configuration says.
    """
    enter("calibrating")
    tokens = torch.randint(shape.vocab_size, CALIBRATION_SHAPE, generator=torch.Generator().manual_seed(0))
    length = min(CALIBRATION_SHAPE[1], shape.max_model_len)
    cache, implementation = DynamicCache(), model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.base_model(input_ids=tokens[:, :length].to(model.device), past_key_values=cache, use_cache=True)
    model.set_attn_implementation(implementation)
    promised = (shape.num_layers, shape.num_kv_heads)
    scales = []
    layers: list[Any] = list(cache.layers)
    for kept in ([layer.keys for layer in layers], [layer.values for layer in layers]):
        largest = [scale_of(tensor) for tensor in kept]
        if (len(largest), *{len(scale) for scale in largest}) != promised:
            raise UserError("model.kv_cache_dtype: fp8 is not served for this model, which keeps other keys; take auto")
        scales.append(torch.stack(largest))
    return KVScales(*scales)


def scale_of(kept: Tensor) -> Tensor:
    """(kv_heads,) of keys or values (batch, kv_heads, tokens, dim)."""
    largest = kept.detach().float().abs().amax((0, 2, 3)).clamp_min(1e-12)
    return torch.exp2(largest.log2().ceil()) / LARGEST
