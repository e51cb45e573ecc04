"""Rows of several requests: a plan places a row by its first request, and the others behind it."""

from collections.abc import Sequence

import numpy as np

from engine.planning.groups import Forest
from engine.planning.prefix_tree import renumber
from engine.planning.prompts import Ints
from engine.planning.request_table import RequestTable


def row_starts(row_sizes: Ints | None, num_requests: int) -> Ints:
    """Where each row's requests begin; without sizes each request is a row of its own."""
    if row_sizes is None:
        return np.arange(num_requests)
    assert row_sizes.sum() == num_requests, (row_sizes.sum(), num_requests)
    assert (row_sizes > 0).all(), "a row has at least one request"
    return np.cumsum(row_sizes) - row_sizes


def spread(forest: Forest, requests: RequestTable, starts: Ints, *, shares: bool = True) -> Forest:
    """The forest over all requests, out of the arranged one over the first request of each row.

    A request with the prompt of its row's first ends at the same node. Another prompt is a node of its own, behind that
    node: below what it has in common with the first, where a row's requests `shares` that, or else a root. Ids stay in
    the order in which nodes are needed: a row's requests run one after the other.
    """
    if len(starts) == len(requests):
        return forest
    row_of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(requests))))
    first = starts[row_of]
    assert (requests.adapter == requests.adapter[first]).all(), "a row has one adapter"
    common = requests.prompts.common_prefixes(np.arange(len(requests)), first)
    lengths = requests.prompts.lengths
    own = np.flatnonzero((common < lengths) | (lengths[first] != lengths))
    # At least its last token is a node of its own, so that no request ends at a node that is needed before its row's.
    begins = np.minimum(common[own], lengths[own] - 1) if shares else np.zeros_like(own)
    forest, above = _cut(forest, forest.node_of[row_of[own]].tolist(), begins.tolist())
    row_node = forest.node_of[row_of]
    place = np.empty_like(row_node)
    place[np.argsort(row_node, kind="stable")] = np.arange(len(requests))
    num_nodes = len(forest.parent)
    behind = np.concatenate([np.arange(num_nodes), row_node[own]])
    ids = np.lexsort((np.concatenate([np.full(num_nodes, -1), place[own]]), behind))
    new_id = renumber(ids)
    node_of = row_node.copy()
    node_of[own] = num_nodes + np.arange(len(own))
    return Forest(
        parent=new_id[np.append(forest.parent, above)[ids]],
        start=np.append(forest.start, begins)[ids],
        end=np.append(forest.end, lengths[own])[ids],
        node_of=new_id[node_of],
        row_node=new_id[row_node],
    )


def _cut(forest: Forest, nodes: Sequence[int], depths: Sequence[int]) -> tuple[Forest, Ints]:
    """The forest with nodes that end at `depths[i]` tokens on the way to `nodes[i]`, and these nodes; -1 for no token.

    A node that is cut keeps what ends at it and below it in its last piece; pieces follow each other.
    """
    parent: list[int] = forest.parent.tolist()
    start: list[int] = forest.start.tolist()
    end: list[int] = forest.end.tolist()
    holder: list[int] = []
    cuts: dict[int, set[int]] = {}
    for node, depth in zip(nodes, depths, strict=True):
        while depth and start[node] >= depth:
            node = parent[node]
        holder.append(node if depth else -1)
        if depth and depth < end[node]:
            cuts.setdefault(node, set()).add(depth)
    pieces = np.array([1 + len(cuts.get(node, ())) for node in range(len(parent))], dtype=np.int64)
    new_id = np.append(np.cumsum(pieces) - 1, -1)
    old = np.repeat(np.arange(len(parent)), pieces)
    made = Forest(new_id[forest.parent][old], forest.start[old], forest.end[old], new_id[forest.node_of])
    ending: dict[tuple[int, int], int] = {}
    for node, depths_of in cuts.items():
        for piece, depth in enumerate(sorted(depths_of), int(new_id[node]) - len(depths_of)):
            ending[node, depth] = piece
            made.end[piece] = made.start[piece + 1] = depth
            made.parent[piece + 1] = piece
    return made, np.array(
        [ending.get((node, depth), int(new_id[node])) for node, depth in zip(holder, depths, strict=True)],
        dtype=np.int64,
    )
