"""A decoder layer with its projections fused and its small operations in one pass each, for the CPU.

For architectures whose layer is exactly norm, rotary attention, norm, gated MLP (Llama's). The residual is float32;
matmuls and the KV cache are in the model's dtype, or in 8 bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from engine.forward.attention import window_of
from engine.forward.cpu.attention import CpuStepAttention
from engine.forward.cpu.projection import Projection, can_pack
from engine.forward.rank_group import RankGroup
from engine.forward.step_attention import Scoring
from engine.machine.huge_pages import Workspace
from engine.model.fused_families import family_of
from kernels.cpu.layer.rotary import rotate
from kernels.cpu.matmul.product import LANES
from kernels.paged_adapters import AdapterRuns

# In the order of their places for adapters: layers of one input lie together.
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def is_known(layer: Any) -> bool:
    """Whether `FusedLayer` computes what a layer of transformers does, and its weights can be packed here."""
    if family_of(layer, "torch") is None or not isinstance(layer.mlp.act_fn, SiLUActivation):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return all(map(can_pack, (*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj)))


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What layers pass on, in float32: hidden (rows, hidden_size), to which they add in place.

    cos, sin (rows, head_dim) are of each row's position.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor


class FusedLayer(nn.Module):
    """Adds what attention and MLP make of the states.

    Of a `group`, each rank has the layer's heads and columns in part. The first adds what its part makes to the states,
    the others put theirs in their place, and the sum over all is what each goes on with: two sums a layer, and no pass
    beside them.
    """

    def __init__(self, layer: Any, workspace: Workspace, group: RankGroup | None = None) -> None:
        super().__init__()
        self.group = group
        attention, mlp = layer.self_attn, layer.mlp
        if group is not None and not group.leads:  # what a sum has once
            attention.o_proj.bias = mlp.down_proj.bias = None
        self.attention = attention
        site: int = len(LINEARS) * attention.layer_idx
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        query, key = len(attention.q_proj.weight), len(attention.k_proj.weight)  # of a rank's part
        self.num_heads, self.num_kv_heads = query // self.head_dim, key // self.head_dim
        self.qkv = Projection(
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            norm=layer.input_layernorm,
            workspace=workspace,
            site=site,
        )
        self.out = Projection(attention.o_proj, workspace=workspace, site=site + 3)
        self.gate_up = Projection(
            mlp.gate_proj,
            mlp.up_proj,
            gated=True,
            norm=layer.post_attention_layernorm,
            workspace=workspace,
            site=site + 4,
        )
        self.down = Projection(mlp.down_proj, workspace=workspace, site=site + 6)
        self.workspace = workspace
        # Where an adapter may add something, by path below the layer, and where in a panel the first output lies.
        columns = (0, query % LANES, (query + key) % LANES, 0, 0, 0, 0)
        self.adapter_sites = tuple(zip(LINEARS, columns, strict=True))
        # Four products, the rotation, the write and attention, and what rows go through before products. Between them
        # `forward` only makes views, unless it leaves rows out: nothing else would be repeated.
        self.num_loops = 7 + (4 if self.qkv.factors is not None else 2)
        projections = (self.qkv, self.out, self.gate_up, self.down)
        self.num_adapter_loops = sum(projection.num_adapter_loops for projection in projections)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)

    @property
    def window(self) -> int | None:
        """Asked for at every step: the probe narrows it for a while."""
        return window_of(self.attention)

    def forward(self, states: States, attention: CpuStepAttention, *, asked_alone: bool = False) -> Tensor:
        """`states.hidden`, to which it added.

        `asked_alone`: makes keys and values of all rows, but all else of the asked ones, and returns those
        (asked, hidden_size).
        """
        hidden, rows, adapters = states.hidden, len(states.hidden), attention.adapters
        room = self.workspace.rows("qkv", rows, self.qkv.out_features, torch.float32)
        qkv = self.qkv.into(hidden, room, adapters=adapters)
        hadamard = attention.cache.kv_format.hadamard
        rotate(qkv, states.cos, states.sin, self.num_heads + self.num_kv_heads, hadamard=hadamard)
        heads = qkv.view(rows, -1, self.head_dim).transpose(0, 1)
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads])
        asked = attention.asked_rows
        if asked_alone and len(asked) < rows:
            hidden, query, rows = hidden[asked], query[:, asked], len(asked)
            adapters = attention.asked_adapters
        attended = self.workspace.rows("attended", rows, self.num_heads * self.head_dim, self.out.takes)
        attention.run(
            self.attention.layer_idx,
            query,
            key,
            value,
            Scoring(self.scaling, self.window),
            out=attended.view(rows, self.num_heads, self.head_dim),
        )
        self._add(self.out, attended, hidden, adapters)
        gated = self.workspace.rows("gated", rows, self.gate_up.out_features, self.down.takes)
        self.gate_up.into(hidden, gated, adapters=adapters)
        self._add(self.down, gated, hidden, adapters)
        return hidden

    def _add(self, projection: Projection, rows: Tensor, hidden: Tensor, adapters: AdapterRuns | None) -> None:
        projection.into(rows, hidden, add=self.group is None or self.group.leads, adapters=adapters)
        if self.group is not None:
            self.group.add_up(hidden)
