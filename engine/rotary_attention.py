"""Attention modules on a GPU whose rotation and write into the cache are one kernel.

Swapped in after loading, for those of transformers' that are exactly projections, rotation in halves, attention and a
projection back. Queries, keys and values come from one product.
"""

from typing import Any

from torch import Tensor, nn

from engine.attention import window_of
from engine.packed_linear import stacked

# Attention that computes what `RotaryAttention` does. One that is not named here runs as transformers wrote it.
ROTARY = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}


def fuse_rotary(model: Any) -> int:
    """Swaps the attention of the layers that are known, in place; returns how many."""
    layers: Any = getattr(model.base_model, "layers", [])
    known = [layer for layer in layers if type(getattr(layer, "self_attn", None)).__name__ in ROTARY]
    for layer in known:
        layer.self_attn = RotaryAttention(layer.self_attn)
    return len(known)


class RotaryAttention(nn.Module):
    """Called as the module that it replaces."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention
        self.head_dim: int = attention.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.qkv = stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        for name in ("q_proj", "k_proj", "v_proj"):
            delattr(attention, name)

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], step: Any, **_: Any
    ) -> tuple[Tensor, None]:
        """hidden_states (1, rows, hidden_size); position_embeddings (1, rows, head_dim) each."""
        rows, (cos, sin) = hidden_states.shape[1], position_embeddings
        heads = self.qkv(hidden_states[0]).view(rows, -1, self.head_dim).transpose(0, 1)
        query, key, value = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads])
        out = step.run(
            self.attention.layer_idx,
            query,
            key,
            value,
            self.attention.scaling,
            window=window_of(self.attention),
            rotary=(cos[0], sin[0]),
        )
        return self.attention.o_proj(out.view(1, rows, -1)), None
