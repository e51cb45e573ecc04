"""A decoder layer with its projections fused and its small operations in one pass each, for the CPU.

Swapped in after loading, for architectures whose layer is exactly norm, rotary attention, norm, gated MLP (Llama's).
The residual is float32; matmuls and the KV cache are in the model's dtype, or in 8 bits. The model's own module stays
the definition: tests hold the swapped model to the unswapped one, and so does the probe at load.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from engine.forward.attention import window_of
from engine.forward.cpu.projection import Projection, can_pack, pack_head
from engine.machine.huge_pages import Workspace, drop_file_pages
from engine.model.fused_families import family_of
from kernels.cpu.language.openmp import Recording
from kernels.cpu.matmul.rotary import rotate


def can_fuse(model: Any) -> bool:
    """Whether all of its layers are known, and their weights can be packed here."""
    layers: Any = getattr(model.base_model, "layers", [])
    return len(layers) > 0 and all(map(_is_known, layers))


def fuse_layers(model: Any, dtype: torch.dtype) -> int:
    """Swaps the layers and the head, in place; returns how many layers.

    `dtype` is the head's. The weights are moved, not held twice, but for those that a head shares with the embedding.
    """
    if not can_fuse(model):
        return 0
    layers = model.base_model.layers
    workspace = Workspace()
    for index in range(len(layers)):
        layers[index] = FusedLayer(layers[index], workspace, is_last=index == len(layers) - 1)
        drop_file_pages()
    model.base_model.get_input_embeddings().register_forward_hook(partial(_put, workspace, "hidden"))
    model.base_model.rotary_emb.register_forward_hook(partial(_put_angles, workspace))
    pack_head(model, dtype)
    return len(layers)


def _is_known(layer: Any) -> bool:
    if family_of(layer, "torch") is None or not isinstance(layer.mlp.act_fn, SiLUActivation):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return all(map(can_pack, (*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj)))


def _put(workspace: Workspace, use: str, _: nn.Module, __: Any, made: Tensor) -> Tensor:
    """In float32, in the workspace, (1, rows, width): the residual, and with it the rotation's angles."""
    return workspace.rows(use, made.shape[1], made.shape[2], torch.float32).copy_(made[0])[None]


def _put_angles(workspace: Workspace, module: nn.Module, given: Any, made: tuple[Tensor, Tensor]) -> Any:
    cos, sin = made
    return _put(workspace, "cos", module, given, cos), _put(workspace, "sin", module, given, sin)


class FusedLayer(nn.Module):
    """Called as the layer that it replaces.

    The last one makes keys and values of all rows, as every layer does, but all else of the asked rows alone.
    """

    def __init__(self, layer: Any, workspace: Workspace, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = attention
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.qkv = Projection(
            attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm, workspace=workspace
        )
        self.out = Projection(attention.o_proj, workspace=workspace)
        self.gate_up = Projection(
            mlp.gate_proj, mlp.up_proj, gated=True, norm=layer.post_attention_layernorm, workspace=workspace
        )
        self.down = Projection(mlp.down_proj, workspace=workspace)
        self.workspace = workspace
        self._recorded: Recording | None = None
        self._conditions: tuple[Any, ...] = ()
        # Four products, the rotation, the write and attention, and what rows go through before products. Between them
        # `_compute` may only make views: nothing else is made again.
        self.num_loops = 7 + (4 if self.qkv.factors is not None else 2)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **arguments: Any) -> Tensor:
        """hidden_states (1, rows, hidden_size) in float32, which is overwritten and returned.

        From the last layer (1, asked rows, hidden_size).
        """
        hidden, step = hidden_states[0], arguments["step"]
        cos, sin = position_embeddings
        if self.is_last and len(step.asked_rows) < len(hidden):
            return self._compute(hidden, cos[0], sin[0], step)[None]
        # What the loops read and write lies where it was for as many rows before, but for what the step says. Weights
        # stay where they are as long as there is one cache.
        addresses = [tensor.data_ptr() for tensor in (hidden, cos, sin, *step.cache.own(len(hidden)))]
        window = window_of(self.attention)
        conditions = (len(hidden), *addresses, window, step.cache, self.workspace.moves)
        if self._recorded is not None and self._conditions == conditions:
            step.rerun(self._recorded)
            return hidden_states
        with Recording() as recorded:
            self._compute(hidden, cos[0], sin[0], step)
        is_whole = len(recorded.calls) == self.num_loops and self.workspace.moves == conditions[-1]
        self._recorded, self._conditions = recorded if is_whole else None, conditions
        return hidden_states

    def _compute(self, hidden: Tensor, cos: Tensor, sin: Tensor, step: Any) -> Tensor:
        """hidden (rows, hidden_size), cos and sin (rows, head_dim); returns it, or its asked rows."""
        rows = len(hidden)
        qkv = self.qkv.into(hidden, self.workspace.rows("qkv", rows, self.qkv.out_features, torch.float32))
        rotate(qkv, cos, sin, self.num_heads + self.num_kv_heads, hadamard=step.cache.kv_format.hadamard)
        heads = qkv.view(rows, -1, self.head_dim).transpose(0, 1)
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads])
        if self.is_last and len(step.asked_rows) < rows:
            hidden, query, rows = hidden[step.asked_rows], query[:, step.asked_rows], len(step.asked_rows)
        attended = self.workspace.rows("attended", rows, self.num_heads * self.head_dim, self.out.takes)
        step.run(
            self.attention.layer_idx,
            query,
            key,
            value,
            self.scaling,
            window=window_of(self.attention),
            out=attended.view(rows, self.num_heads, self.head_dim),
        )
        self.out.into(attended, hidden, add=True)
        gated = self.workspace.rows("gated", rows, self.gate_up.out_features, self.down.takes)
        self.gate_up.into(hidden, gated)
        self.down.into(gated, hidden, add=True)
        return hidden
