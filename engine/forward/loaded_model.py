"""A model ready to serve: packed rows to hidden states, and hidden states to logits."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from engine.forward.cpu.fused_body import FusedBody
from engine.forward.cpu.int8_linear import Int8Linear
from engine.forward.cpu.projection import Head, Projection
from engine.forward.forward_output import Chosen
from engine.forward.kv_scales import KVScales
from engine.forward.rank_group import RankGroup
from engine.forward.sampler import greedy
from engine.forward.step_attention import StepAttention
from engine.model.model_shape import ModelShape
from kernels.cpu.language.openmp import loops_alone
from kernels.kv_format import KVFormat

# The decoder layers pass no argument on to attention.
HEARS_NOTHING = {"nemotron", "stablelm"}


class LoadedModel:
    """A transformers model in two halves: packed rows to hidden states, and hidden states to logits.

    The head's half is the model's own forward with the body replaced, so that scaling and caps on logits stay as
    the architecture has them. `kv_format` is how its keys and values are kept. `strict`: its layers are those of
    `engine.forward.cpu.strict`, so that a row's logits are the same to the last bit in any step. `group`: ranks that
    run a step's layers together; the head is whole on each, and asked by one alone.
    """

    def __init__(
        self,
        model: Any,
        shape: ModelShape,
        kv_format: KVFormat,
        kv_scales: KVScales | None = None,
        *,
        strict: bool = False,
        group: RankGroup | None = None,
    ) -> None:
        self.shape = shape
        self.group = group
        self.kv_format = kv_format
        self.kv_scales = kv_scales
        self.strict = strict
        self.prefix: str = model.base_model_prefix
        self.body = model.base_model
        self._head: Any = copy.copy(model)
        self._head._modules = dict(model._modules)
        self._given = _GivenHidden()
        setattr(self._head, model.base_model_prefix, self._given)
        self._attention: StepAttention | None = None
        # Of a strict model: it computes in part what torch does, one thread of it.
        self.has_layers_of_torch = strict and not isinstance(self.body, FusedBody)
        # Whether no layer reads a number back from the device: what transformers wrote may.
        self.waits_for_nothing = False
        # Which outputs are settled exactly is a matter of likelihood, and of which thread is first.
        self._screened = None if strict else self._if_plain(model.get_output_embeddings())
        if model.config.model_type in HEARS_NOTHING:
            for module in self.body.modules():
                if "layer_idx" in vars(module):
                    module.register_forward_pre_hook(self._tell, with_kwargs=True)

    def _tell(self, _: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, named | {"step_attention": self._attention}

    @property
    def weight_bytes(self) -> int:
        """Of all parameters and buffers, tied ones once."""
        held = [*self.body.parameters(), *self.body.buffers(), *self._head.parameters(), *self._head.buffers()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())

    @property
    def is_screened(self) -> bool:
        """Whether a greedy token is looked for among coarser products, and few logits are computed."""
        return self._screened is not None

    def linear_layers(self) -> list[nn.Module]:
        """Layers of the body that take rows and give their products with a matrix.

        One that transformers dealt is none: its forward sums over ranks.
        """
        found = [layer for layer in self.body.modules() if isinstance(layer, nn.Linear | Projection | Int8Linear)]
        return [layer for layer in found if "forward" not in vars(layer)]

    def forget_head(self) -> None:
        """Gives back what logits are made with; none are asked for any more."""
        self._head = self._screened = None

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention: StepAttention) -> Tensor:
        """(asked rows, hidden_size) of packed rows (rows,); transformers hands `attention` on to the layers."""
        self._attention = attention
        ids, positions = input_ids[None], position_ids[None]
        with loops_alone() if self.has_layers_of_torch else nullcontext():
            output = self.body(input_ids=ids, position_ids=positions, use_cache=False, step_attention=attention)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if len(hidden) == len(attention.asked_rows) else hidden[attention.asked_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, vocab_size) in float32."""
        self._given.hidden = hidden[None]
        logits: Tensor = self._head(input_ids=None).logits[0]
        return logits.float()

    def best_tokens(self, hidden: Tensor, told: Tensor | None = None) -> Chosen:
        """Of each row, the token whose logit is the greatest; -1 where they are not finite.

        A margin is exact where it is below `told` (rows,), else that at least: None asks for all of them.
        """
        return greedy(self.logits(hidden)) if self._screened is None else self._screened.best(hidden, told)

    @torch.inference_mode()
    def _if_plain(self, head: object) -> Head | None:
        """The head's layer, where the greatest logit can be looked for in it: logits are what it says."""
        if not isinstance(head, Head) or head.screen is None:
            return None
        rows = torch.randn(4, head.in_features, generator=torch.Generator().manual_seed(0))
        return head if torch.equal(self.logits(rows), head(rows)) else None


@dataclass
class _Given(BaseModelOutputWithPastAndCrossAttentions):
    """Has every field that some head passes on."""

    router_logits: None = None


class _GivenHidden(nn.Module):
    hidden: Tensor

    @property
    def decoder(self) -> "_GivenHidden":
        """OPT's head calls its body's decoder."""
        return self

    def forward(self, *_: object, **__: object) -> _Given:
        return _Given(last_hidden_state=self.hidden)
