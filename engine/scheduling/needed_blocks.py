"""The admission rule on live nodes and sequences: which blocks they need."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.scheduling.admission import AdmissionRule
from engine.scheduling.sequence import NodeState, Sequence


@dataclass(frozen=True, slots=True)
class NeededBlocks:
    """By an engine's rule."""

    rule: AdmissionRule

    def alone(self, sequence: Sequence) -> int:
        """Blocks that the sequence and the nodes above it take where nothing else is there, its adapter's left out."""
        nodes = sum(self.rule.node_blocks(node.num_tokens, 0, self.transient(node)) for node in sequence.node.chain)
        return nodes + self.rule.own_blocks(sequence.decode_kv_tokens, 0)

    def to_begin(self, sequence: Sequence, missing: Iterable[NodeState], decode_kv: int) -> int:
        """Blocks that the sequence needs for so much of its decode KV, besides those of nodes that are there."""
        tail = self.tail_tokens(sequence, decode_kv)
        blocks = self.rule.own_blocks(decode_kv, tail)
        for node in missing:
            behind = tail if node is sequence.node else 0
            blocks += self.rule.node_blocks(node.num_tokens, behind, self.transient(node))
        return blocks

    def transient(self, node: NodeState) -> int:
        """1 for a node that will hold no block, else 0. A leaf: all requests below it end at it, and are here."""
        is_leaf = node.num_requests == len(node.ends)
        return self.rule.transient(is_leaf, node.num_tokens, node.decode_kv_tokens)

    def tail_tokens(self, sequence: Sequence, decode_kv: int) -> int:
        """Of the decode KV, what is to lie behind its node's own tokens."""
        return self.rule.tail_tokens(sequence.node.num_requests == 1 and not sequence.node.admitted, decode_kv)
