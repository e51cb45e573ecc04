"""A decoder layer with its projections fused and its small operations in one pass each, for the CPU in float32.

Swapped in after loading, for architectures whose layer is exactly norm, rotary attention, norm, gated MLP (Llama's).
The model's own module stays the definition: tests hold the swapped model to the unswapped one, and so does the probe
at load.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from engine import huge_pages
from engine.attention import attention_function
from engine.huge_pages import Workspace
from engine.quantize import Int8Linear
from kernels import openmp
from kernels.int8_rows import quantize_rows, silu_mul_quantize
from kernels.rms_norm import rms_norm
from kernels.rotary import rotate
from kernels.silu_mul import silu_mul

Linear = nn.Linear | Int8Linear

# Layers that compute what `FusedLayer` does. One that is not named here runs as transformers wrote it.
FUSED = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}


def fuse_layers(model: Any, device: str) -> int:
    """Swaps the layers that it knows, in place; returns how many. The weights are moved, not held twice."""
    layers: Any = getattr(model.base_model, "layers", [])
    if device != "cpu" or model.dtype != torch.float32 or not openmp.available():
        return 0
    workspace = Workspace()
    known = [index for index, layer in enumerate(layers) if _is_known(layer)]
    for index in known:
        layers[index] = FusedLayer(layers[index], workspace)
    return len(known)


def _is_known(layer: Any) -> bool:
    return type(layer).__name__ in FUSED and isinstance(layer.mlp.act_fn, SiLUActivation)


class FusedLayer(nn.Module):
    """Called as the layer that it replaces."""

    def __init__(self, layer: Any, workspace: Workspace) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = attention
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = _stacked(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = _stacked(attention.o_proj), _stacked(mlp.down_proj)
        self.workspace = workspace
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **arguments: Any) -> Tensor:
        """hidden_states (1, rows, hidden_size), which is overwritten and returned."""
        hidden = hidden_states[0]
        qkv = self._into(self.qkv, self._norm(hidden, self.input_norm))
        cos, sin = position_embeddings
        rotate(qkv, cos[0], sin[0], self.num_heads + self.num_kv_heads)
        heads = qkv.view(len(qkv), -1, self.head_dim).transpose(0, 1)[None]
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        attended, _ = attention_function(
            self.attention,
            query,
            key,
            value,
            None,
            self.scaling,
            step=arguments["step"],
        )
        self._add(self.out, attended.reshape(len(hidden), -1), hidden)
        self._mlp(self._norm(hidden, self.post_norm), hidden)
        return hidden_states

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return rms_norm(x, norm.weight, norm.variance_epsilon, self.workspace.rows("norm", *x.shape))

    def _mlp(self, x: Tensor, hidden: Tensor) -> None:
        """hidden += down(silu(gate(x)) * up(x))."""
        gate_up, down = self.gate_up, self.down
        if isinstance(gate_up, Int8Linear) and isinstance(down, Int8Linear) and gate_up.bias is None:
            sums, scales = gate_up.sums(x, self._room(gate_up, len(x)).view(torch.int32))
            gated = silu_mul_quantize(sums, scales, gate_up.weight_scales, down.factors)
            down.add(*gated, self._room(down, len(x)).view(torch.int32), hidden)
        else:
            self._add(down, silu_mul(self._into(gate_up, x)), hidden)

    def _room(self, linear: Linear, rows: int) -> Tensor:
        return self.workspace.rows("linear", rows, linear.out_features)

    def _into(self, linear: Linear, x: Tensor) -> Tensor:
        """linear(x), in the workspace."""
        out = self._room(linear, len(x))
        if isinstance(linear, Int8Linear):
            return linear.into(x, out)
        torch.mm(x, linear.weight.t(), out=out)
        return out if linear.bias is None else out.add_(linear.bias)

    def _add(self, linear: Linear, x: Tensor, hidden: Tensor) -> None:
        """hidden += linear(x), the sum inside the matmul where that can be."""
        if isinstance(linear, Int8Linear):
            # x may lie in the same buffer: it has been quantised, so copied, before the product is written.
            linear.add(*quantize_rows(x, linear.factors), self._room(linear, len(x)).view(torch.int32), hidden)
            return
        hidden.addmm_(x, linear.weight.t())
        if linear.bias is not None:
            hidden += linear.bias


def _stacked(*layers: Linear) -> Linear:
    """One linear layer whose output is all of theirs, side by side; its weights are in large pages."""
    if all(isinstance(layer, Int8Linear) for layer in layers):
        return Int8Linear.stacked([layer for layer in layers if isinstance(layer, Int8Linear)])
    stacked = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), device="meta")
    weights: list[Tensor] = [layer.weight for layer in layers]
    out = huge_pages.empty((stacked.out_features, stacked.in_features), weights[0].dtype)
    stacked.weight = nn.Parameter(torch.cat(weights, out=out), requires_grad=False)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers)), len(biases)
    stacked.register_parameter("bias", nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None)
    return stacked
