"""A decoder layer for a GPU in ten launches: two norms, four products, rotation and KV write, attention and its merge,
the gate.

Swapped in after loading, for the architectures of `engine.model.fused_families`: norm, rotary attention, norm, gated
MLP (Llama's), with norms over the heads or without (Qwen3's), with norms behind attention and MLP too (Gemma 2's).
Where nothing is normed before it is added, products add to the residual themselves. The residual keeps the model's
dtype and is rounded where transformers rounds it. The model's own module stays the definition: the probe holds the
swapped model to it at load.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from engine.forward.attention import window_of
from engine.forward.gpu.attention import GpuStepAttention, Rotation
from engine.forward.gpu.fp8_linear import Fp8Linear
from engine.forward.gpu.packed_linear import stacked
from engine.forward.step_attention import Scoring
from engine.model.fused_families import FusedFamily, family_of
from kernels.gpu.attention.kv_write import HeadNorms
from kernels.gpu.layer.add_normed import add_normed
from kernels.gpu.layer.gate import gated, gated_e4m3
from kernels.gpu.layer.rms_norm import rms_norm, rms_norm_e4m3
from kernels.gpu.matmul.adapters import add_adapters
from kernels.paged_adapters import AdapterRuns

ACTIVATIONS = {"silu": SiLUActivation, "gelu_pytorch_tanh": GELUTanh}


def swap_layers(model: Any) -> bool:
    """Swaps all layers and the norm behind them, in place, if every one is known; returns whether it did."""
    body = model.base_model
    layers: Any = getattr(body, "layers", [])
    if not len(layers) or not all(map(_is_known, layers)):
        return False
    family = family_of(layers[0], "triton")
    assert family is not None, type(layers[0]).__name__
    norms = [GpuNorm(norm, family) for norm in (*(layer.input_layernorm for layer in layers), body.norm)]
    for index in range(len(layers)):
        is_last = index == len(layers) - 1
        if family.post_norms:
            layers[index] = PostNormLayer(layers[index], family, norms[index], norms[index + 1], is_last=is_last)
        else:
            layers[index] = GpuLayer(layers[index], family, norms[index], is_last=is_last)
    body.norm = nn.Identity() if family.post_norms else norms[-1]
    return True


def _is_known(layer: Any) -> bool:
    family = family_of(layer, "triton")
    if family is None:
        return False
    activation = layer.mlp.activation_fn if family.packed else layer.mlp.act_fn
    return isinstance(activation, ACTIVATIONS[family.activation])


class GpuNorm(nn.Module):
    """Called as the norm that it replaces; `weight` is what it multiplies by."""

    def __init__(self, norm: Any, family: FusedFamily) -> None:
        super().__init__()
        self.rounded = not family.adds_one
        self.weight = nn.Parameter(1 + norm.weight.float(), requires_grad=False) if family.adds_one else norm.weight
        self.eps: float = norm.eps if family.adds_one else norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., size) in any leading shape."""
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        return rms_norm(rows, self.weight, self.eps, rounded=self.rounded).view(hidden_states.shape)


class GpuLayer(nn.Module):
    """Called as the layer that it replaces.

    The last one makes keys and values of all rows, as every layer does, but what follows of the asked rows alone.
    """

    def __init__(self, layer: Any, family: FusedFamily, input_norm: GpuNorm, *, is_last: bool) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.is_last = is_last
        self.attention = attention
        self.activation = family.activation
        self.softcap: float | None = attention.attn_logit_softcapping if family.softcap else None
        self.head_dim: int = attention.head_dim
        self.num_heads: int = attention.config.num_attention_heads
        self.num_kv_heads: int = attention.config.num_key_value_heads
        behind_attention = layer.pre_feedforward_layernorm if family.post_norms else layer.post_attention_layernorm
        self.input_norm, self.mlp_norm = input_norm, GpuNorm(behind_attention, family)
        self.head_norms: HeadNorms | None = None
        if family.head_norms:
            query, key = GpuNorm(attention.q_norm, family), GpuNorm(attention.k_norm, family)
            self.head_norms = HeadNorms(query.weight, key.weight, query.eps, query.rounded)
        of_attention = ["qkv_proj"] if family.packed else ["q_proj", "k_proj", "v_proj"]
        of_mlp = ["gate_up_proj"] if family.packed else ["gate_proj", "up_proj"]
        self.qkv = _one_of(attention, of_attention)
        self.gate_up = _one_of(mlp, of_mlp)
        self.out, self.down = attention.o_proj, mlp.down_proj
        products = [[f"self_attn.{name}" for name in of_attention], ["self_attn.o_proj"]]
        products += [[f"mlp.{name}" for name in of_mlp], ["mlp.down_proj"]]
        # Where an adapter may add something, by path below the layer; of each product, its first and their outputs.
        self.adapter_sites = tuple((path, 0) for paths in products for path in paths)
        self.sites = list(_sites(layer, products, len(self.adapter_sites) * attention.layer_idx))
        for name in (*of_attention, "o_proj"):
            delattr(attention, name)
        for name in (*of_mlp, "down_proj"):
            delattr(mlp, name)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step_attention: GpuStepAttention,
        **_: object,
    ) -> Tensor:
        """`hidden_states` (1, rows, hidden_size), overwritten; from the last layer (1, asked rows, hidden_size).

        position_embeddings (1, rows, rotary dim) each.
        """
        hidden, adapters = hidden_states[0], step_attention.adapters
        made = normed_product(self.input_norm, self.qkv, hidden)
        if adapters is not None:
            self.add(0, self.input_norm(hidden), made, adapters)
        attended, hidden = self.attended(made, hidden, position_embeddings, step_attention)
        adapters = step_attention.asked_adapters if self.is_last else adapters
        add_product(self.out, attended, hidden)
        self.add(1, attended, hidden, adapters)
        gate_up = normed_product(self.mlp_norm, self.gate_up, hidden)
        if adapters is not None:
            self.add(2, self.mlp_norm(hidden), gate_up, adapters)
        if isinstance(self.down, Fp8Linear) and adapters is None:
            hidden.add_(self.down.product(*gated_e4m3(gate_up, self.activation)))
            return hidden[None]
        opened = gated(gate_up, self.activation)
        add_product(self.down, opened, hidden)
        self.add(3, opened, hidden, adapters)
        return hidden[None]

    def add(self, product: int, rows: Tensor, out: Tensor, adapters: AdapterRuns | None) -> None:
        """Adds to the output of one of the layer's four products, in their order, what adapters make of its rows."""
        if adapters is not None:
            site, outputs = self.sites[product]
            add_adapters(rows, out, adapters, site, outputs)

    def attended(
        self, made: Tensor, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], step_attention: GpuStepAttention
    ) -> tuple[Tensor, Tensor]:
        """What rows attend to (rows, heads x head_dim), and their residual: in the last layer of the asked rows alone.

        made (rows, heads and twice the KV heads, x head_dim) is queries, keys and values that have not turned.
        """
        rows = len(made)
        heads: Any = made.view(rows, -1, self.head_dim).transpose(0, 1)
        query, key, value = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads])
        cos, sin = position_embeddings
        scoring = Scoring(self.attention.scaling, window_of(self.attention), self.softcap)
        rotation = Rotation(cos[0], sin[0], self.head_norms)
        attended = step_attention.run_rotated(self.attention.layer_idx, query, key, value, scoring, rotation)
        attended = attended.view(rows, -1)
        asked = step_attention.asked_rows
        if self.is_last and len(asked) < rows:
            hidden, attended = hidden[asked], attended[asked]
        return attended, hidden


class PostNormLayer(GpuLayer):
    """With norms behind attention and MLP: each is one launch with the sum behind it and the norm behind that.

    So a layer hands the next one its input normed, and the last the norm behind all layers.
    """

    def __init__(
        self, layer: Any, family: FusedFamily, input_norm: GpuNorm, next_norm: GpuNorm, *, is_last: bool
    ) -> None:
        super().__init__(layer, family, input_norm, is_last=is_last)
        self.attention_norm = GpuNorm(layer.post_attention_layernorm, family)
        self.down_norm = GpuNorm(layer.post_feedforward_layernorm, family)
        self.next_norm = next_norm

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step_attention: GpuStepAttention,
        **_: object,
    ) -> Tensor:
        """(2, rows, hidden_size) of the like, or of (1, rows, hidden_size) in the first layer: the residual, and it
        normed. From the last layer (1, asked rows, hidden_size), normed.
        """
        hidden = hidden_states[0]
        normed = hidden_states[1] if len(hidden_states) > 1 else self.input_norm(hidden)
        made = self.qkv(normed)
        self.add(0, normed, made, step_attention.adapters)
        attended, hidden = self.attended(made, hidden, position_embeddings, step_attention)
        adapters = step_attention.asked_adapters if self.is_last else step_attention.adapters
        made = self.out(attended)
        self.add(1, attended, made, adapters)
        hidden, normed = _added(made, self.attention_norm, hidden, self.mlp_norm)
        gate_up = self.gate_up(normed)
        self.add(2, normed, gate_up, adapters)
        if isinstance(self.down, Fp8Linear) and adapters is None:
            made = self.down.product(*gated_e4m3(gate_up, self.activation))
        else:
            opened = gated(gate_up, self.activation)
            made = self.down(opened)
            self.add(3, opened, made, adapters)
        states = _added(made, self.down_norm, hidden, self.next_norm)
        return states[1:] if self.is_last else states


def _added(made: Tensor, norm: GpuNorm, residual: Tensor, next_norm: GpuNorm) -> Tensor:
    """(2, rows, hidden_size): residual + norm(made), and next_norm of that."""
    assert norm.eps == next_norm.eps, (norm.eps, next_norm.eps)
    return add_normed(made, norm.weight, residual, next_norm.weight, norm.eps, rounded=norm.rounded)


def _sites(layer: Any, products: list[list[str]], site: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Of each product: the number of its first layer's site, and all its layers' outputs."""
    for paths in products:
        yield site, tuple(int(layer.get_submodule(path).out_features) for path in paths)
        site += len(paths)


def _one_of(module: Any, names: list[str]) -> nn.Module:
    """The module's linear layers of these names as one, their outputs side by side."""
    layers = [getattr(module, name) for name in names]
    only: nn.Module = layers[0]
    return only if len(layers) == 1 else stacked(*layers)


def normed_product(norm: GpuNorm, linear: nn.Module, rows: Tensor) -> Tensor:
    """linear(norm(rows)); for an FP8 layer the norm rounds its rows as well."""
    if isinstance(linear, Fp8Linear):
        return linear.product(*rms_norm_e4m3(rows, norm.weight, norm.eps, rounded=norm.rounded))
    made: Tensor = linear(norm(rows))
    return made


def add_product(linear: Any, rows: Tensor, residual: Tensor) -> None:
    """`residual` (rows, out_features) += linear(rows); in one launch where the layer is a plain one without a bias."""
    bias: Tensor | None = linear.bias
    if isinstance(linear, nn.Linear) and bias is None:
        residual.addmm_(rows, linear.weight.t())
    else:
        residual.add_(linear(rows))
