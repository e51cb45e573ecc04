"""Sharing policies on drawn tries and against brute force, and the order that groups run in."""

from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ORDER, SHARING, Order, Sharing
from engine.planning.groups import Forest, arrange, share
from engine.planning.prefix_tree import PrefixTree, build_prefix_tree, subtree_sums
from engine.planning.prompts import Prompts

# Runs of one token give edges of different lengths, so that the policies differ.
run = st.integers(0, 3).map(lambda token: [token] * (token + 1))
prompt = st.lists(run, min_size=1, max_size=5).map(lambda runs: [token for tokens in runs for token in tokens])
prompt_lists = st.lists(prompt, min_size=1, max_size=6)


def tree_of(prompts: list[list[int]]) -> PrefixTree:
    return build_prefix_tree(Prompts.of([np.array(p, dtype=np.int32) for p in prompts]))


def rows(forest: Forest) -> list[tuple[int, int, int]]:
    return list(zip(forest.parent.tolist(), forest.start.tolist(), forest.end.tolist(), strict=True))


def computed(prompts: list[list[int]], sharing: Sharing, block_size: int = 1) -> int:
    return int(share(tree_of(prompts), sharing, block_size).num_tokens.sum())


def path(forest: Forest, node: int) -> list[int]:
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = int(forest.parent[node])
    return nodes[::-1]


def brute_force_single_level(prompts: list[list[int]]) -> int:
    """The least total over all sets of opened prefixes: each computed whole, each prompt behind its longest one."""
    below: dict[tuple[int, ...], list[int]] = {}
    for r, p in enumerate(prompts):
        for depth in range(1, len(p) + 1):
            below.setdefault(tuple(p[:depth]), []).append(r)
    # Of prefixes with the same prompts below them only the longest can pay.
    longest = {tuple(members): prefix for prefix, members in below.items() if len(members) > 1}
    totals = []
    for count in range(len(longest) + 1):
        for opened in combinations(longest.values(), count):
            own = [len(p) - max((len(n) for n in opened if tuple(p[: len(n)]) == n), default=0) for p in prompts]
            totals.append(sum(map(len, opened)) + sum(own))
    return min(totals)


# A: a document of 2 + 4 tokens with three rows; B: one of 2 + 1 with two rows; C: a plain prompt.
DRAWN = [
    [1, 1, 2, 2, 2, 2, 7],
    [1, 1, 3, 7],
    [9, 9],
    [1, 1, 2, 2, 2, 2, 8],
    [1, 1, 3, 8],
    [1, 1, 2, 2, 2, 2],
]


def test_multi_level_is_the_trie() -> None:
    forest = share(tree_of(DRAWN), "multi_level", 16)
    trie = [(-1, 0, 2), (0, 2, 6), (1, 6, 7), (1, 6, 7), (0, 2, 3), (4, 3, 4), (4, 3, 4), (-1, 0, 2)]
    assert rows(forest) == trie
    assert forest.node_of.tolist() == [2, 5, 7, 3, 6, 1]


def test_none_shares_nothing_not_even_equal_prompts() -> None:
    forest = share(tree_of([[5, 6], [5, 6], [5]]), "none", 16)
    assert rows(forest) == [(-1, 0, 2), (-1, 0, 2), (-1, 0, 1)]
    assert forest.node_of.tolist() == [0, 1, 2]


def test_single_level_opens_both_documents() -> None:
    forest = share(tree_of(DRAWN), "single_level", 16)
    assert rows(forest) == [(-1, 0, 6), (-1, 0, 3), (0, 6, 7), (1, 3, 4), (-1, 0, 2), (0, 6, 7), (1, 3, 4)]
    # The prompt that is document A and nothing more ends at the group's own node.
    assert forest.node_of.tolist() == [2, 3, 4, 5, 6, 0]


def test_single_level_leaves_ties_closed() -> None:
    # Opening the prefix of 2, that of 4, or both: 9 tokens each.
    forest = share(tree_of([[1, 1, 2, 2, 7], [1, 1, 2, 2, 8], [1, 1, 3]]), "single_level", 16)
    assert rows(forest) == [(-1, 0, 4), (0, 4, 5), (0, 4, 5), (-1, 0, 3)]


def test_single_level_shares_equal_prompts() -> None:
    forest = share(tree_of([[5, 6], [5, 6], [7]]), "single_level", 16)
    assert rows(forest) == [(-1, 0, 2), (-1, 0, 1)]
    assert forest.node_of.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("head", "expected"), [(1, 3 * 3 + 6), (2, 2 + 6 * 3), (3, 3 + 6 * 3)])
def test_batchllm_promotes_where_each_gain_is_positive(head: int, expected: int) -> None:
    # Three documents of 2 tokens with two rows of 1 each, behind a head: the gain of each is 2 - head.
    prompts = [[1] * head + [document] * 2 + [row] for document in (2, 3, 4) for row in (7, 8)]
    assert computed(prompts, "batchllm") == expected
    assert computed(prompts, "single_level") == min(3 * (head + 2) + 6, head + 6 * 3)


def test_batchllm_cuts_prefixes_to_blocks() -> None:
    prompts = [[1] * 6 + [7], [1] * 6 + [8], [2] * 3 + [7], [2] * 3 + [8]]
    forest = share(tree_of(prompts), "batchllm", 4)
    # The remainder of 2 joins the distinct parts; the prefix of 3 is shorter than a block, so its prompts are plain.
    assert rows(forest) == [(-1, 0, 4), (0, 4, 7), (0, 4, 7), (-1, 0, 4), (-1, 0, 4)]


def test_worked_example() -> None:
    # A hundredth of the tokens and of the documents: instruction 10, 10 documents of 10, 16 rows of 1 on each.
    prompts = [[1] * 10 + [100 + d] * 10 + [row] for d in range(10) for row in range(16)]
    assert computed(prompts, "none") == 160 * 21
    assert computed(prompts, "multi_level") == 10 + 10 * 10 + 160
    assert computed(prompts, "single_level") == computed(prompts, "batchllm") == 10 * 20 + 160


@given(prompt_lists)
def test_single_level_is_the_optimum(prompts: list[list[int]]) -> None:
    assert computed(prompts, "single_level") == brute_force_single_level(prompts)


@given(prompt_lists)
def test_policies_are_ordered(prompts: list[list[int]]) -> None:
    multi, single, greedy, none = (computed(prompts, s) for s in ("multi_level", "single_level", "batchllm", "none"))
    assert multi <= single <= greedy
    assert single <= none == sum(map(len, prompts))


@given(prompt_lists, st.sampled_from(SHARING), st.sampled_from(ORDER), st.integers(1, 4))
def test_forest_covers_every_prompt(prompts: list[list[int]], sharing: Sharing, order: Order, block_size: int) -> None:
    forest = arrange(share(tree_of(prompts), sharing, block_size), np.arange(len(prompts)), order)
    users: dict[int, list[list[int]]] = {}
    for tokens, node in zip(prompts, forest.node_of.tolist(), strict=True):
        nodes = path(forest, node)
        assert [int(forest.start[n]) for n in nodes] == [0, *(int(forest.end[n]) for n in nodes[:-1])]
        assert int(forest.end[node]) == len(tokens)
        assert sharing == "multi_level" or len(nodes) <= 2
        for n in nodes:
            users.setdefault(n, []).append(tokens)
    assert set(users) == set(range(len(forest.parent)))
    assert (forest.num_tokens > 0).all()
    for n, below in users.items():
        assert len({tuple(tokens[: forest.end[n]]) for tokens in below}) == 1
    if sharing == "batchllm":
        assert (forest.end[np.unique(forest.parent[forest.parent >= 0])] % block_size == 0).all()


@given(prompt_lists, st.data(), st.sampled_from(SHARING), st.sampled_from(ORDER))
def test_order_keeps_subtrees_together(
    prompts: list[list[int]], data: st.DataObject, sharing: Sharing, order: Order
) -> None:
    decode = data.draw(st.lists(st.integers(0, 3), min_size=len(prompts), max_size=len(prompts)))
    shared = share(tree_of(prompts), sharing, 2)
    forest = arrange(shared, np.array(decode), order)
    assert sorted(forest.order.tolist()) == list(range(len(prompts)))
    assert sorted(forest.num_tokens.tolist()) == sorted(shared.num_tokens.tolist())
    sizes = subtree_sums(forest.parent, np.ones_like(forest.parent))
    for node, parent in enumerate(forest.parent.tolist()):
        assert parent < node
        assert parent == -1 or node < parent + sizes[parent]


@given(prompt_lists, st.randoms(), st.sampled_from(SHARING))
def test_computed_tokens_ignore_input_order(prompts: list[list[int]], random: Random, sharing: Sharing) -> None:
    shuffled = list(prompts)
    random.shuffle(shuffled)
    assert computed(shuffled, sharing, 2) == computed(prompts, sharing, 2)


# Two documents with two rows each, and a plain prompt; the second document comes first.
ORDERED = [[2, 2, 7], [1, 1, 7], [9, 9, 9], [1, 1, 8], [2, 2, 8]]


def run_order(decode: list[int], order: Order) -> list[int]:
    forest = arrange(share(tree_of(ORDERED), "multi_level", 1), np.array(decode), order)
    return [int(r) for r in forest.order]


def test_fcfs_runs_groups_by_first_appearance() -> None:
    assert run_order([0, 9, 9, 9, 9], "fcfs") == [0, 4, 1, 3, 2]


def test_ratio_runs_decode_heavy_groups_first() -> None:
    # 4 decode tokens for 4 prompt tokens, 9 for 4, and 6 for 3; the rows of a group by the same rule.
    assert run_order([0, 4, 6, 5, 4], "ratio") == [3, 1, 2, 4, 0]


@pytest.mark.parametrize(("order", "expected"), [("fcfs", [1, 3, 2, 0, 4]), ("ratio", [2, 1, 3, 0, 4])])
def test_groups_of_one_adapter_run_together(order: Order, expected: list[int]) -> None:
    """The adapter of the documents' second goes first; the policy orders what each has."""
    adapters = np.array([1, 0, 0, 0, 1])
    tree = build_prefix_tree(Prompts.of([np.array(p, dtype=np.int32) for p in ORDERED]), adapters)
    forest = arrange(share(tree, "multi_level", 1), np.array([9, 1, 5, 1, 9]), order, adapters)
    assert forest.order.tolist() == expected


def test_ratio_without_decode_is_fcfs() -> None:
    assert run_order([0] * 5, "ratio") == run_order([0] * 5, "fcfs")


def test_a_prompt_at_an_inner_node_runs_before_those_below() -> None:
    forest = arrange(share(tree_of([[1, 2], [1], [1, 3]]), "multi_level", 1), np.array([0, 0, 5]), "ratio")
    assert forest.order.tolist() == [1, 2, 0]
    assert rows(forest) == [(-1, 0, 1), (0, 1, 2), (0, 1, 2)]


def chain_optimum(depth: int) -> int:
    """Prompts of 1 to `depth` tokens, each a prefix of the next: best[i] is the least for those from i tokens on."""
    best = np.zeros(depth + 2, dtype=np.int64)
    for i in range(depth, -1, -1):
        until_next = np.arange(1, depth + 2 - i)  # the next opened depth is i + until_next; past the end there is none
        best[i] = i + (until_next * (until_next - 1) // 2 + best[i + until_next]).min()
    return int(best[0])


def test_deep_chain_stays_exact() -> None:
    tree = build_prefix_tree(Prompts.of([np.arange(length, dtype=np.int32) for length in range(1, 2001)]))
    assert share(tree, "single_level", 1).num_tokens.sum() == chain_optimum(2000)
