"""A model's body on a CPU: embedding, fused layers, norm, all of which write in one workspace.

Swapped in after loading, where every layer is one that `FusedLayer` computes. The model's own module stays the
definition: tests hold the swapped model to the unswapped one, and so does the probe at load.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from engine.forward.cpu.attention import CpuStepAttention
from engine.forward.cpu.fused_layer import FusedLayer, States, is_known
from engine.forward.cpu.projection import pack_head
from engine.forward.rank_group import RankGroup
from engine.machine.huge_pages import Workspace, drop_file_pages

# The parts of a body that `FusedBody` knows; one that has others does more.
PARTS = {"embed_tokens", "rotary_emb", "layers", "norm"}


def can_fuse(model: Any) -> bool:
    """Whether all of its layers are known, nothing lies between them, and their weights can be packed here."""
    body = model.base_model
    if {name for name, _ in body.named_children()} != PARTS:
        return False
    return len(body.layers) > 0 and all(map(is_known, body.layers))


def fuse_body(model: Any, dtype: torch.dtype, group: RankGroup | None = None) -> bool:
    """Swaps the body and the head, in place, if all layers are known; returns whether it did.

    `dtype` is the head's. The weights are moved, not held twice, but for those that a head shares with the embedding.
    `group`: the ranks that have each layer in part.
    """
    if not can_fuse(model):
        return False
    setattr(model, model.base_model_prefix, FusedBody(model.base_model, group))
    pack_head(model, dtype)
    return True


class FusedBody(nn.Module):
    """Called as the body that it replaces, whose layers it takes apart."""

    def __init__(self, body: Any, group: RankGroup | None = None) -> None:
        super().__init__()
        self.config = body.config
        self.workspace = Workspace()
        self.embed_tokens, self.rotary_emb, self.norm = body.embed_tokens, body.rotary_emb, body.norm
        self.layers = body.layers
        for index in range(len(self.layers)):
            self.layers[index] = FusedLayer(self.layers[index], self.workspace, group)
            drop_file_pages()

    @property
    def stack(self) -> tuple[FusedLayer, ...]:
        """The layers, from first to last; what measures a step takes some away for a while."""
        return cast(tuple[FusedLayer, ...], tuple(self.layers))

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, *, step_attention: CpuStepAttention, **_: object
    ) -> BaseModelOutputWithPast:
        """input_ids, position_ids (1, rows); gives hidden states (1, asked rows, hidden_size)."""
        states = self.enter(input_ids[0], position_ids[0])
        *layers, last = self.stack
        for layer in layers:
            layer(states, step_attention)
        hidden = last(states, step_attention, asked_alone=True)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden)[None])

    def enter(self, input_ids: Tensor, position_ids: Tensor) -> States:
        """What the layers pass on, of rows (rows,)."""
        hidden = self._put("hidden", self.embed_tokens(input_ids))
        cos, sin = self.rotary_emb(hidden[None], position_ids[None])
        return States(hidden, self._put("cos", cos[0]), self._put("sin", sin[0]))

    def _put(self, use: str, made: Tensor) -> Tensor:
        return self.workspace.rows(use, made.shape[0], made.shape[1], torch.float32).copy_(made)
