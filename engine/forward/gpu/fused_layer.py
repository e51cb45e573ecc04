"""A decoder layer for a GPU in ten launches: two norms, four products, rotation and KV write, attention and its merge,
the gate.

Swapped in after loading, for architectures whose layer is exactly norm, rotary attention, norm, gated MLP (Llama's),
with norms over the heads or without (Qwen3's). Products add to the residual themselves, which keeps the model's dtype
and is rounded where transformers rounds it. The model's own module stays the definition: the probe holds the swapped
model to it at load.
"""

from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from engine.forward.attention import window_of
from engine.forward.gpu.attention import GpuStepAttention, Rotation
from engine.forward.gpu.fp8_linear import Fp8Linear
from engine.forward.gpu.packed_linear import stacked
from engine.forward.step_attention import Scoring
from engine.model.fused_families import LINEARS, family_of
from kernels.gpu.attention.kv_write import HeadNorms
from kernels.gpu.layer.gate import silu_gate, silu_gate_e4m3
from kernels.gpu.layer.rms_norm import rms_norm, rms_norm_e4m3
from kernels.gpu.matmul.adapters import add_adapters


def swap_layers(model: Any) -> bool:
    """Swaps all layers and the norm behind them, in place, if every one is known; returns whether it did."""
    layers: Any = getattr(model.base_model, "layers", [])
    if not len(layers) or not all(map(_is_known, layers)):
        return False
    for index in range(len(layers)):
        layers[index] = GpuLayer(layers[index], is_last=index == len(layers) - 1)
    model.base_model.norm = GpuNorm(model.base_model.norm)
    return True


def _is_known(layer: Any) -> bool:
    return family_of(layer, "triton") is not None and isinstance(layer.mlp.act_fn, SiLUActivation)


class GpuNorm(nn.Module):
    """Called as the norm that it replaces."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., size) in any leading shape."""
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        return rms_norm(rows, self.weight, self.eps).view(hidden_states.shape)


class GpuLayer(nn.Module):
    """Called as the layer that it replaces.

    The last one makes keys and values of all rows, as every layer does, but what follows of the asked rows alone.
    """

    def __init__(self, layer: Any, *, is_last: bool) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.is_last = is_last
        self.attention = attention
        self.head_dim: int = attention.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.input_norm, self.mlp_norm = GpuNorm(layer.input_layernorm), GpuNorm(layer.post_attention_layernorm)
        self.head_norms: HeadNorms | None = None
        family = family_of(layer, "triton")
        assert family is not None, type(layer).__name__
        if family.head_norms:
            query, key = attention.q_norm, attention.k_norm
            self.head_norms = HeadNorms(query.weight, key.weight, query.variance_epsilon)
        self.qkv = stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = stacked(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = attention.o_proj, mlp.down_proj
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)
        for name in ("gate_proj", "up_proj", "down_proj"):
            delattr(mlp, name)
        # Outputs of the layers of each product, side by side, and where in a panel the first of each of `LINEARS` lies.
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv_outputs, self.gate_up_outputs = (heads, kv_heads, kv_heads), (self.down.in_features,) * 2
        self.site: int = len(LINEARS) * attention.layer_idx
        self.adapter_columns = (0,) * len(LINEARS)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step_attention: GpuStepAttention,
        **_: object,
    ) -> Tensor:
        """`hidden_states` (1, rows, hidden_size), overwritten; from the last layer (1, asked rows, hidden_size).

        position_embeddings (1, rows, head_dim) each.
        """
        hidden, (cos, sin) = hidden_states[0], position_embeddings
        rows = len(hidden)
        adapters = step_attention.adapters
        made = normed_product(self.input_norm, self.qkv, hidden)
        if adapters is not None:
            add_adapters(self.input_norm(hidden), made, adapters, self.site, self.qkv_outputs)
        heads: Any = made.view(rows, -1, self.head_dim).transpose(0, 1)
        query, key, value = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads])
        scoring = Scoring(self.attention.scaling, window_of(self.attention))
        rotation = Rotation(cos[0], sin[0], self.head_norms)
        attended = step_attention.run_rotated(self.attention.layer_idx, query, key, value, scoring, rotation)
        attended = attended.view(rows, -1)
        asked = step_attention.asked_rows
        if self.is_last and len(asked) < rows:
            hidden, attended = hidden[asked], attended[asked]
            adapters = step_attention.asked_adapters
        add_product(self.out, attended, hidden)
        if adapters is not None:
            add_adapters(attended, hidden, adapters, self.site + 3, (hidden.shape[1],))
        gate_up = normed_product(self.mlp_norm, self.gate_up, hidden)
        if adapters is not None:
            add_adapters(self.mlp_norm(hidden), gate_up, adapters, self.site + 4, self.gate_up_outputs)
            gated = silu_gate(gate_up)
            add_product(self.down, gated, hidden)
            add_adapters(gated, hidden, adapters, self.site + 6, (hidden.shape[1],))
        elif isinstance(self.down, Fp8Linear):
            hidden.add_(self.down.product(*silu_gate_e4m3(gate_up)))
        else:
            add_product(self.down, silu_gate(gate_up), hidden)
        return hidden[None]


def normed_product(norm: GpuNorm, linear: nn.Module, rows: Tensor) -> Tensor:
    """linear(norm(rows)); for an FP8 layer the norm rounds its rows as well."""
    if isinstance(linear, Fp8Linear):
        return linear.product(*rms_norm_e4m3(rows, norm.weight, norm.eps))
    made: Tensor = linear(norm(rows))
    return made


def add_product(linear: Any, rows: Tensor, residual: Tensor) -> None:
    """`residual` (rows, out_features) += linear(rows); in one launch where the layer is a plain one without a bias."""
    bias: Tensor | None = linear.bias
    if isinstance(linear, nn.Linear) and bias is None:
        residual.addmm_(rows, linear.weight.t())
    else:
        residual.add_(linear(rows))
