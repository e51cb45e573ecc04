"""What a plan's requests cost: tokens and attended keys counted, then priced in FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.label_tree import LabelTree, build_label_tree
from engine.model.model_shape import ModelShape
from engine.planning.groups import Forest
from engine.planning.prefix_tree import Ints
from engine.request import Request


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Counts for each request in execution order; sums over a slice are a shard's, over all the plan's.

    A node's tokens count for the first request that needs them. `prefill_tokens` are prompt tokens, `label_tokens`
    those of the label trie, `decode_tokens` the most that may be generated. `attended_keys` are summed over all
    computed tokens, each of which attends to itself and to all before it.
    """

    prefill_tokens: Ints
    label_tokens: Ints
    decode_tokens: Ints
    attended_keys: Ints

    @property
    def answer_tokens(self) -> Ints:
        """Tokens computed behind the prompt: all that is generated but the last token, which nothing follows."""
        return self.label_tokens + np.maximum(self.decode_tokens - 1, 0)

    @property
    def computed_tokens(self) -> Ints:
        return self.prefill_tokens + self.answer_tokens

    @property
    def head_rows(self) -> Ints:
        """Rows whose logits are asked for: the prompt's last token and every answer token."""
        return 1 + self.answer_tokens


def count_work(forest: Forest, requests: Sequence[Request]) -> Work:
    """`forest` is arranged: the nodes that are new with a request are those from its predecessor's to its own."""
    order = forest.order
    last = forest.node_of[order]
    prompt = forest.end[last]
    decode = np.array([requests[r].max_tokens for r in order], dtype=np.int64)
    labels, label_depths = _label_counts(requests, order)
    answer_keys = np.where(
        labels > 0,
        labels * (prompt + 1) + label_depths,
        attended_keys(prompt, prompt + np.maximum(decode - 1, 0)),
    )
    return Work(
        prefill_tokens=_new_with(last, forest.num_tokens),
        label_tokens=labels,
        decode_tokens=decode,
        attended_keys=_new_with(last, attended_keys(forest.start, forest.end)) + answer_keys,
    )


def attended_keys(start: Ints, end: Ints) -> Ints:
    """Sum of p + 1 over the positions `start <= p < end`."""
    return (end * (end + 1) - start * (start + 1)) // 2


def flops(work: Work, shape: ModelShape) -> NDArray[np.float64]:
    """FLOPs of each request, two for a multiply-add.

    2 matmul_params a computed token + 2 head_params a row of logits + 4 num_layers num_heads head_dim an attended
    key (scores, then values). A fused last layer computes less, by at most its own share.
    """
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim
    matmul, head = 2.0 * shape.matmul_params, 2.0 * shape.head_params
    total: NDArray[np.float64] = matmul * work.computed_tokens + head * work.head_rows + attention * work.attended_keys
    return total


def _new_with(last: Ints, values: Ints) -> Ints:
    return np.diff(np.cumsum(values)[last], prepend=0)


def _label_counts(requests: Sequence[Request], order: Ints) -> tuple[Ints, Ints]:
    """Size of each request's label trie and the sum of its depths; equal labels are read once."""
    trees: dict[tuple[bytes, ...], LabelTree] = {}
    counts = np.zeros((2, len(order)), dtype=np.int64)
    for at, r in enumerate(order):
        labels = requests[r].labels
        if labels is None:
            continue
        key = tuple(label.tobytes() for label in labels)
        tree = trees[key] = trees.get(key) or build_label_tree(labels)
        counts[:, at] = len(tree.depths), sum(tree.depths)
    return counts[0], counts[1]
