"""What live requests want read of the prefix nodes above them."""

from collections.abc import Iterator
from weakref import WeakValueDictionary

from engine.pooling_params import Pooling
from engine.scheduling.hidden_reads import HiddenReads
from engine.scheduling.prompt_reads import PromptReads
from engine.scheduling.sequence import NodeState, Sequence


class WantedReads:
    """`logprobs` and `hidden` by key: of live nodes, which hold them."""

    def __init__(self, keys: Iterator[int]) -> None:
        """`keys` are no sequence's."""
        self.logprobs: WeakValueDictionary[int, PromptReads] = WeakValueDictionary()
        self.hidden: WeakValueDictionary[int, HiddenReads] = WeakValueDictionary()
        self._keys = keys

    def want(self, sequence: Sequence) -> None:
        """Whatever step computes the prompt, or has computed it, reads what the request asks of it."""
        first, pooling = sequence.request.prompt_logprobs_from, sequence.request.pooling
        if first is not None:
            for node in sequence.node.chain:
                self._want_logprobs(node, first, sequence.request.num_prompt_alternatives)
        if pooling is not None:
            for node in sequence.pooled_nodes:
                self._want_hidden(node, pooling.pooling)

    def _want_logprobs(self, node: NodeState, first: int, num_alternatives: int) -> None:
        if first >= node.start + node.num_tokens:
            return
        if node.reads is None:
            key = next(self._keys)
            node.reads = self.logprobs[key] = PromptReads.of(key, node.num_tokens)
        node.want_reads(max(first - node.start, 0), num_alternatives)

    def _want_hidden(self, node: NodeState, pooling: Pooling) -> None:
        if pooling not in node.hidden:
            key = next(self._keys)
            node.hidden[pooling] = self.hidden[key] = HiddenReads.of(key, node.start, node.num_tokens, pooling)
