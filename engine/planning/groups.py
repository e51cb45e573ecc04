"""Sharing and order: which prefixes are computed once, and in which order the groups run."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.config import Order, Sharing
from engine.planning.prefix_tree import PrefixTree, subtree_sums
from engine.planning.prompts import Ints


@dataclass(frozen=True, eq=False)
class Forest:
    """What runs: each node's prompt tokens `[start, end)` once; request r ends at `node_of[r]`.

    Parents come before their children; `parent` is -1 at a root. After `arrange` the ids are execution order:
    depth-first pre-order, so that a subtree is a range of ids. `row_node`, where rows have several requests, is the
    node at which the first of a request's row ends.
    """

    parent: Ints
    start: Ints
    end: Ints
    node_of: Ints
    row_node: Ints | None = None

    @property
    def num_tokens(self) -> Ints:
        return self.end - self.start

    @cached_property
    def order(self) -> Ints:
        """Requests in execution order: by their row's node, requests of one node as given."""
        return np.argsort(self.node_of if self.row_node is None else self.row_node, kind="stable")


def share(tree: PrefixTree, sharing: Sharing, block_size: int) -> Forest:
    """The forest that a sharing policy makes of the trie."""
    if sharing == "multi_level":
        return Forest(tree.parent, tree.start, tree.end, tree.node_of)
    if sharing == "single_level":
        return _single_level(tree, single_level_groups(tree), tree.end)
    if sharing == "batchllm":
        cut = tree.end // block_size * block_size
        group = batchllm_groups(tree)
        members = np.bincount(group, minlength=len(tree.end))
        plain = (cut[group] == 0) | (members[group] < 2)
        return _single_level(tree, np.where(plain, -1, group), cut)
    return _single_level(tree, np.full_like(tree.node_of, -1), tree.end)


def _single_level(tree: PrefixTree, group: Ints, prefix: Ints) -> Forest:
    """A root `[0, prefix[g])` a group, then a node for what is left of each prompt; -1 is no group.

    A prompt that is its group's whole prefix ends at the root.
    """
    length = tree.end[tree.node_of]
    opened = np.unique(group[group >= 0])
    root = np.full(len(tree.end) + 1, -1, dtype=np.int64)  # index -1: no group, no root
    root[opened] = np.arange(len(opened))
    start = np.append(prefix, 0)[group]
    own = np.flatnonzero(start < length)
    node_of = root[group]
    parent = np.concatenate([np.full_like(opened, -1), node_of[own]])
    node_of[own] = len(opened) + np.arange(len(own))
    return Forest(
        parent=parent,
        start=np.concatenate([np.zeros_like(opened), start[own]]),
        end=np.concatenate([prefix[opened], length[own]]),
        node_of=node_of,
    )


def single_level_groups(tree: PrefixTree) -> Ints:
    """Each request's group (the node whose whole prefix is computed once for it, or -1), at the least total.

    With D the token depth of a node, a that of its nearest opened ancestor (0: none) and n_v the prompts that end
    at v: H(v, a) = min(n_v (D_v - a) + sum H(child, a), D_v + sum H(child, D_v)). The first term falls as a grows
    and the second is constant, so v is opened for the shallowest choices of a alone: one count per node says it
    all. Ties stay closed.
    """
    cheaper_at = _opening_counts(tree)
    level = _levels(tree.parent)
    nearest, group = [0] * len(level), [-1] * len(level)  # the nearest opened node: its level and its id
    for node, above in enumerate(tree.parent.tolist()):
        if above >= 0:
            nearest[node], group[node] = nearest[above], group[above]
        if nearest[node] < cheaper_at[node]:
            nearest[node], group[node] = level[node], node
    return np.array(group, dtype=np.int64)[tree.node_of]


def _opening_counts(tree: PrefixTree) -> list[int]:
    """For each node the number of levels, from 0 (nothing opened above), at which opening the node is cheaper."""
    end = tree.end.tolist()
    ending = np.bincount(tree.node_of, minlength=len(end)).tolist()
    level = _levels(tree.parent)
    depth = np.zeros(max(level, default=0) + 1, dtype=np.int64)  # by level, along the path
    below: list[Ints] = []  # for each node of the path: the sum of its children's H, by level of the opened ancestor
    path: list[int] = []
    counts = [0] * len(end)

    def leave(node: int) -> None:
        children = below.pop()
        closed = ending[node] * (end[node] - depth[: level[node]]) + children[:-1]
        opened = end[node] + children[-1]
        counts[node] = int(np.count_nonzero(opened < closed))
        if below:
            below[-1] += np.minimum(closed, opened)

    for node, node_level in enumerate([*level, 1]):  # the last entry is no node: it ends the path
        while len(path) >= node_level:
            leave(path.pop())
        if node < len(end):
            path.append(node)
            depth[node_level] = end[node]
            below.append(np.zeros(node_level + 1, dtype=np.int64))
    return counts


def _levels(parent: Ints) -> list[int]:
    """How many nodes there are on the way from a root to each node: 1 for a root."""
    level: list[int] = []
    for above in parent.tolist():
        level.append(1 + level[above] if above >= 0 else 1)
    return level


def batchllm_groups(tree: PrefixTree) -> Ints:
    """Each request's group (a node) under the greedy rule of BatchLLM (arXiv 2412.03594, prefix identification).

    Bottom-up: a grandchild g under c with w prompts is promoted beside c, and takes c's tokens along, when
    (w - 1)|g| > |c|: its own tokens are computed w - 1 times less, those of c once more.
    """
    parent, start, end = tree.parent.tolist(), tree.start.tolist(), tree.end.tolist()
    prompts = (tree.last - tree.first).tolist()
    children: list[list[int]] = [[] for _ in range(len(parent) + 1)]  # the last entry holds the roots (-1)
    for node in reversed(range(len(parent))):
        above = parent[node]
        for child in children[node]:
            if (prompts[child] - 1) * (end[child] - end[node]) > end[node] - start[node]:
                prompts[node] -= prompts[child]
                parent[child] = above
                children[above].append(child)
        children[above].append(node)
    group: list[int] = []
    for node, above in enumerate(parent):
        group.append(group[above] if above >= 0 else node)
    return np.array(group, dtype=np.int64)[tree.node_of]


def arrange(forest: Forest, decode_tokens: Ints, order: Order, adapters: Ints | None = None) -> Forest:
    """The forest with its ids in execution order; `decode_tokens` are those that each request may generate.

    "fcfs" runs siblings, at every level, by the first request below them. "ratio" runs those with more decode
    tokens for each prompt token that they compute first (BatchLLM's order), ties as "fcfs". Requests of one of the
    `adapters` (a number each) follow each other, lower numbers first, so that a step needs few (S-LoRA,
    arXiv 2311.03285).
    """
    seen = first_seen(forest)
    adapter = np.zeros_like(seen) if adapters is None else adapters[seen]
    ranked = np.lexsort((seen, adapter))
    if order == "ratio":
        decode = np.bincount(forest.node_of, weights=decode_tokens, minlength=len(forest.parent)).astype(np.int64)
        ratio = subtree_sums(forest.parent, decode) / subtree_sums(forest.parent, forest.num_tokens)
        ranked = np.lexsort((seen, -ratio, adapter))
    new_id = _preorder_ids(forest.parent, ranked)
    preorder = np.argsort(new_id)
    return Forest(
        parent=np.append(new_id, -1)[forest.parent[preorder]],
        start=forest.start[preorder],
        end=forest.end[preorder],
        node_of=new_id[forest.node_of],
    )


def _preorder_ids(parent: Ints, ranked: Ints) -> Ints:
    """Each node's place in depth-first pre-order, where siblings follow each other as in `ranked`."""
    sizes = subtree_sums(parent, np.ones_like(parent))
    siblings = ranked[np.argsort(parent[ranked], kind="stable")]
    before = np.cumsum(sizes[siblings]) - sizes[siblings]
    leads = np.flatnonzero(np.diff(parent[siblings], prepend=-2))  # the first of each parent's
    before -= np.repeat(before[leads], np.diff(np.append(leads, len(siblings))))
    behind_parent = np.empty_like(before)
    behind_parent[siblings] = before + 1
    ids: list[int] = behind_parent.tolist()
    for node, above in enumerate(parent.tolist()):
        ids[node] += ids[above] if above >= 0 else -1
    return np.array(ids, dtype=np.int64)


def first_seen(forest: Forest) -> Ints:
    """The first request, as given, that ends at each node or below it."""
    num_requests = len(forest.node_of)
    seen = np.full(len(forest.parent), num_requests)
    np.minimum.at(seen, forest.node_of, np.arange(num_requests))
    parent: list[int] = forest.parent.tolist()
    first: list[int] = seen.tolist()
    for node in reversed(range(len(first))):
        if parent[node] >= 0:
            first[parent[node]] = min(first[parent[node]], first[node])
    return np.array(first, dtype=np.int64)
