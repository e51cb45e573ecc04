"""What a layer sees of a step's attention: the same on every device."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """How a layer makes weights of the products of queries and keys.

    Products are multiplied by `scale`, and capped by `softcap`. A row reads no more than `window` tokens, itself
    included. `sinks` (heads,) is one more score of each head, which has no value.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class StepAttention(Protocol):
    """A step's attention: prepared once by an `AttentionBackend`, run once by each layer."""

    @property
    def asked_rows(self) -> Tensor:
        """Rows (asked,), ascending, whose hidden states are read behind the last layer."""

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """What every row attends to in `layer`, (rows, heads, dim); rows that the step keeps are then in the KV cache.

        query (heads, rows, dim); key, value (kv_heads, rows, dim). A row that is kept is read from its slot, by rows of
        this step too; segments that are `in_step` are of rows that are not kept.
        """
