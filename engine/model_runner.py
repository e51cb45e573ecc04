"""Runs a scheduler's step on a model."""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from engine.attention import step_attention
from engine.config import EngineConfig
from engine.device import Device
from engine.kv_cache import KVCache
from engine.load import LoadedModel
from engine.model_shape import num_kv_blocks
from engine.scheduler_output import SchedulerOutput

# Rows whose logits exist at one time: 256 rows of a 50,000 token vocabulary are 50 MB in float32.
HEAD_ROWS = 256


class ModelRunner:
    """Holds the model and its KV cache; `num_blocks` follows from the KV budget."""

    def __init__(self, model: LoadedModel, config: EngineConfig, device: Device) -> None:
        self.model = model
        self.device = device
        self.step_attention = step_attention(device.backend)
        shape = model.shape
        kv_bytes = model.kv_dtype.itemsize
        self.num_blocks = num_kv_blocks(shape, config, kv_bytes)
        self.block_bytes = shape.kv_bytes_per_token(kv_bytes) * config.block_size
        self.cache = KVCache(
            shape.num_layers,
            shape.num_kv_heads,
            self.num_blocks * config.block_size,
            shape.head_dim,
            model.kv_dtype,
            device.name,
        )

    @torch.inference_mode()
    def hidden(self, step: SchedulerOutput) -> Tensor:
        """(asked rows, hidden_size); the KV of all of the step's rows is in the cache when this returns."""
        attention = self.step_attention(step, self.cache, self.device.name)
        input_ids = torch.from_numpy(step.input_ids).to(self.device.name)
        position_ids = torch.from_numpy(step.position_ids).to(self.device.name)
        return self.model.hidden(input_ids, position_ids, attention)

    @torch.inference_mode()
    def logits(self, step: SchedulerOutput, hidden: Tensor, rows: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
        """Logits of `rows`, a bounded number at a time: which of them, and (rows, vocab_size) in float32.

        `hidden` is what the step's asked rows, of which they are some, came to.
        """
        for part in _parts(len(rows)):
            yield part, self.model.logits(hidden[_places(step, rows[part])])

    @torch.inference_mode()
    def best_tokens(self, step: SchedulerOutput, hidden: Tensor, rows: Sequence[int]) -> list[int]:
        """Of `rows`, as in `logits`: the token whose logit is the greatest; -1 where they are not finite."""
        parts = (self.model.best_tokens(hidden[_places(step, rows[part])]) for part in _parts(len(rows)))
        return list(chain.from_iterable(parts))


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, HEAD_ROWS):
        yield slice(start, min(start + HEAD_ROWS, count))


def _places(step: SchedulerOutput, rows: Sequence[int]) -> Tensor:
    """Where rows are among the asked ones."""
    return torch.from_numpy(np.searchsorted(step.asked_rows, np.array(rows, dtype=np.int64)))
