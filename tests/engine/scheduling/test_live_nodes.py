"""Prefix nodes come with the first sequence below them and go, with their blocks, with the last."""

import numpy as np

from engine.plan import PrefixNode, ShardWork
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.live_nodes import LiveNodes
from engine.scheduling.sequence import NodeState, Sequence

# A root of two tokens with two leaves of one.
PLANNED = {
    0: PrefixNode(0, -1, 0, 2, num_requests=2, adapter="x"),
    1: PrefixNode(1, 0, 2, 3, num_requests=1, adapter="x"),
    2: PrefixNode(2, 0, 2, 3, num_requests=1, adapter="x"),
}


def request_of(*prompt: int) -> Request:
    params = SamplingParams(max_tokens=4)
    return Request(str(prompt), np.array(prompt, dtype=np.int32), params, adapter="x")


def sequence_at(node: NodeState, request: Request) -> Sequence:
    return Sequence(0, (0, 0, 0), request, node, max_tokens=4, label_tree=None)


def joined(nodes: LiveNodes, node_id: int, *prompt: int) -> Sequence:
    request = request_of(*prompt)
    sequence = sequence_at(nodes.get(0, PLANNED, node_id, request), request)
    nodes.join(sequence)
    return sequence


def two_admitted(pool: BlockPool) -> tuple[LiveNodes, Sequence, Sequence]:
    """Sequences at the two leaves, whose nodes have blocks."""
    nodes = LiveNodes(pool)
    first, second = joined(nodes, 1, 5, 6, 7), joined(nodes, 2, 5, 6, 8)
    for node in (*first.node.chain, second.node):
        node.table, node.admitted = pool.allocate(node.num_tokens), True
    return nodes, first, second


def test_a_node_is_made_with_its_ancestors_and_shared() -> None:
    nodes = LiveNodes(BlockPool(4, 2))
    first, second = joined(nodes, 1, 5, 6, 7), joined(nodes, 2, 5, 6, 8)
    root = first.node.chain[0]
    assert [node.key for node in first.node.chain] == [(0, 0), (0, 1)]
    assert [node.token_ids.tolist() for node in second.node.chain] == [[5, 6], [8]]
    assert second.node.chain[0] is root
    assert (root.users, root.decode_kv_tokens, root.adapter) == (2, 0, "x")
    assert (first.node.users, first.node.decode_kv_tokens, first.node.ends) == (1, 3, [first])
    # Another layout numbers other nodes alike: it shares none.
    assert nodes.get(1, PLANNED, 0, request_of(5, 6, 7)) is not root


def test_a_shard_that_is_live_already_comes_to_nodes_of_its_own() -> None:
    nodes = LiveNodes(BlockPool(4, 2))
    shard, other = (ShardWork("layout", index, str(index), (), (), ()) for index in (0, 1))
    assert nodes.layout_of(shard) == nodes.layout_of(other) == 0
    first = joined(nodes, 1, 5, 6, 7)
    assert (nodes.layout_of(shard), nodes.layout_of(other)) == (1, 0)
    assert nodes.layout_of(ShardWork("another", 0, "0", (), (), ())) == 2
    nodes.leave(first)
    assert nodes.layout_of(shard) == 0


def test_blocks_go_with_the_last_sequence_below() -> None:
    pool = BlockPool(4, 2)
    nodes = LiveNodes(pool)
    first, second = joined(nodes, 1, 5, 6, 7), joined(nodes, 2, 5, 6, 8)
    for node in (*first.node.chain, second.node):
        node.table = pool.allocate(node.num_tokens)
    nodes.leave(first)
    assert (len(nodes), pool.num_used) == (2, 2)
    nodes.leave(second)
    assert (len(nodes), pool.num_used) == (0, 0)


def test_who_gives_way_takes_the_nodes_of_its_own_along() -> None:
    pool = BlockPool(4, 2)
    nodes, first, _ = two_admitted(pool)
    nodes.free_own(first)
    assert (first.node.table, first.node.admitted, first.node.parent.admitted) == (None, False, True)
    assert (len(nodes), pool.num_used) == (3, 2)


def test_eviction_spares_what_is_needed() -> None:
    pool = BlockPool(4, 2)
    nodes, first, second = two_admitted(pool)
    assert nodes.evict(first.node.chain) == 1
    assert (second.node.table, second.node.admitted, pool.num_used) == (None, False, 2)
    nodes.leave(second)
    assert (len(nodes), pool.num_used) == (2, 2)
