"""Prefix identification: the compact trie of all prompts, read off their sorted order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.planning.prompts import Ints, Prompts


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTree:
    """The compact trie of N prompts, one beside the other for each adapter: arrays over at most 2N - 1 nodes, in
    depth-first pre-order.

    Node v holds the prompt tokens `[start[v], end[v])`, at least one; `parent[v]` is -1 at a root. The prompts
    that end at v or below it are `order[first[v]:last[v]]`. Prompt r ends at `node_of[r]`, a leaf unless the
    prompt is a prefix of another one.
    """

    parent: Ints
    start: Ints
    end: Ints
    first: Ints
    last: Ints
    order: Ints
    node_of: Ints


def build_prefix_tree(prompts: Prompts, adapters: Ints | None = None) -> PrefixTree:
    """The trie of `prompts`; those of different `adapters` (a number each, from 0) share nothing.

    One sort, one longest common prefix per neighbour, one pass with a stack: no node's children are scanned.
    """
    order = prompts.sorted_order(adapters)
    lengths = prompts.lengths[order]
    assert lengths.min(initial=1) > 0, "a prompt has at least one token"
    shared = np.zeros_like(order)
    shared[1:] = prompts.common_prefixes(order[:-1], order[1:])
    if adapters is not None:
        shared[1:][np.diff(adapters[order]) != 0] = 0
    parent, end, first, last, ends_at = map(_ints, _stack_pass(shared.tolist(), lengths.tolist()))

    preorder = np.lexsort((end, first))
    new_id = renumber(preorder)
    parent, end = new_id[parent[preorder]], end[preorder]
    node_of = np.empty_like(ends_at)
    node_of[order] = new_id[ends_at]
    return PrefixTree(
        parent=parent,
        start=np.where(parent < 0, 0, end[parent]),
        end=end,
        first=first[preorder],
        last=last[preorder],
        order=order,
        node_of=node_of,
    )


def renumber(preorder: Ints) -> Ints:
    """The new id of every old one; index -1, the parent of a root, stays -1."""
    new_id = np.full(len(preorder) + 1, -1, dtype=np.int64)
    new_id[preorder] = np.arange(len(preorder))
    return new_id


def subtree_sums(parent: Ints, values: Ints) -> Ints:
    """Each node's value plus those of all nodes below it; parents come before their children."""
    sums: list[int] = values.tolist()
    parents: list[int] = parent.tolist()
    for node in range(len(sums) - 1, -1, -1):
        if parents[node] >= 0:
            sums[parents[node]] += sums[node]
    return _ints(sums)


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _stack_pass(shared: Sequence[int], lengths: Sequence[int]) -> tuple[list[int], ...]:
    """Nodes in the order in which they are opened: parent, end, first and last; and the node of each sorted prompt.

    `shared[i]` is the common prefix of the sorted prompts i - 1 and i. The stack holds the path to the last prompt.
    """
    parent: list[int] = []
    end: list[int] = []
    first: list[int] = []
    last: list[int] = []
    ends_at: list[int] = []
    path, depths = [-1], [0]

    def open_node(depth: int, at: int) -> None:
        path.append(len(end))
        depths.append(depth)
        parent.append(-1)
        end.append(depth)
        first.append(at)
        last.append(at)

    def close_below(depth: int, at: int) -> None:
        while depths[-1] > depth:
            node = path.pop()
            depths.pop()
            last[node] = at
            if depths[-1] < depth:  # the branch lies inside this node's edge
                open_node(depth, first[node])
            parent[node] = path[-1]

    for at, (common, length) in enumerate(zip(shared, lengths, strict=True)):
        close_below(common, at)
        if length > common:
            open_node(length, at)
        ends_at.append(path[-1])
    close_below(0, len(lengths))
    return parent, end, first, last, ends_at
