"""The compact trie: drawn trees node by node, any prompts against a naive trie of prefixes, and size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.prefix_tree import PrefixTree, build_prefix_tree, renumber, subtree_sums
from engine.planning.prompts import Prompts

prompt_lists = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=12)


def tree_of(*prompts: list[int]) -> PrefixTree:
    return build_prefix_tree(Prompts.of([np.array(prompt, dtype=np.int32) for prompt in prompts]))


def rows(tree: PrefixTree) -> list[tuple[int, int, int]]:
    return list(zip(tree.parent.tolist(), tree.start.tolist(), tree.end.tolist(), strict=True))


def naive_nodes(prompts: list[list[int]]) -> dict[tuple[int, ...], int]:
    """Whole prefix of each compact node -> token depth of its parent: a prefix is a node if it ends or branches."""
    prefixes = {tuple(prompt[:depth]) for prompt in prompts for depth in range(1, len(prompt) + 1)}
    branches = {p for p in prefixes if sum(q[:-1] == p for q in prefixes) > 1}
    nodes = branches | {tuple(prompt) for prompt in prompts}
    return {node: max((len(n) for n in nodes if n != node and node[: len(n)] == n), default=0) for node in nodes}


def test_drawn_tree() -> None:
    tree = tree_of([1, 2, 3], [1, 2, 4, 4], [1, 2], [5], [1, 2, 4, 6])
    assert rows(tree) == [(-1, 0, 2), (0, 2, 3), (0, 2, 3), (2, 3, 4), (2, 3, 4), (-1, 0, 1)]
    assert tree.order.tolist() == [2, 0, 1, 4, 3]
    assert tree.first.tolist() == [0, 1, 2, 2, 3, 4]
    assert tree.last.tolist() == [4, 2, 4, 3, 4, 5]
    assert tree.node_of.tolist() == [1, 3, 0, 5, 4]


def test_equal_prompts_end_at_one_node() -> None:
    tree = tree_of([7, 8], [7, 8], [7, 8])
    assert rows(tree) == [(-1, 0, 2)]
    assert tree.node_of.tolist() == [0, 0, 0]
    assert tree.order.tolist() == [0, 1, 2]


def test_prompts_of_two_adapters_share_nothing() -> None:
    prompts = [np.array(tokens, dtype=np.int32) for tokens in ([1, 2, 3], [1, 2, 4], [1, 2, 4], [1, 2])]
    tree = build_prefix_tree(Prompts.of(prompts), np.array([0, 1, 0, 1]))
    assert rows(tree) == [(-1, 0, 2), (0, 2, 3), (0, 2, 3), (-1, 0, 2), (3, 2, 3)]
    assert tree.node_of.tolist() == [1, 4, 2, 3]
    assert tree.order.tolist() == [0, 2, 3, 1]


def test_one_prompt_and_none() -> None:
    assert rows(tree_of([3, 1, 2])) == [(-1, 0, 3)]
    assert rows(tree_of()) == []


def test_sorts_by_token_and_not_by_low_byte() -> None:
    tree = tree_of([256], [1], [255], [65536])
    assert tree.order.tolist() == [1, 2, 0, 3]


def test_one_branch_above_another_is_found_after_it() -> None:
    tree = tree_of([1, 1, 1, 1], [1, 1, 1, 2], [1, 2], [2])
    assert rows(tree) == [(-1, 0, 1), (0, 1, 3), (1, 3, 4), (1, 3, 4), (0, 1, 2), (-1, 0, 1)]


@given(prompt_lists)
def test_same_nodes_as_naive_trie(prompts: list[list[int]]) -> None:
    tree = tree_of(*prompts)
    members = [[prompts[r] for r in tree.order[a:b]] for a, b in zip(tree.first, tree.last, strict=True)]
    found = {tuple(below[0][:end]): int(start) for below, start, end in zip(members, tree.start, tree.end, strict=True)}
    assert found == naive_nodes(prompts)
    assert len(found) == len(tree.end)
    for below, end in zip(members, tree.end, strict=True):
        assert len({tuple(prompt[:end]) for prompt in below}) == 1


@given(prompt_lists)
def test_structure(prompts: list[list[int]]) -> None:
    tree = tree_of(*prompts)
    assert sorted(tree.order.tolist()) == list(range(len(prompts)))
    assert [prompts[r] for r in tree.order] == sorted(prompts)
    assert len(tree.end) <= max(2 * len(prompts) - 1, 0)
    assert (tree.start < tree.end).all()
    assert [int(tree.end[node]) for node in tree.node_of] == [len(prompt) for prompt in prompts]
    sizes = subtree_sums(tree.parent, np.ones_like(tree.parent))
    for node, parent in enumerate(tree.parent.tolist()):
        assert parent < node
        assert parent == -1 or node < parent + sizes[parent]
        assert tree.start[node] == (0 if parent == -1 else tree.end[parent])
    counts = subtree_sums(tree.parent, np.bincount(tree.node_of, minlength=len(tree.end)))
    assert counts.tolist() == (tree.last - tree.first).tolist()


def test_renumber_keeps_root_mark() -> None:
    new_id = renumber(np.array([2, 0, 1]))
    assert new_id[np.array([-1, 0, 1, 2])].tolist() == [-1, 1, 2, 0]


def test_many_prompts() -> None:
    rng = np.random.default_rng(0)
    instruction = rng.integers(0, 50_000, 60).astype(np.int32)
    documents = [np.concatenate([instruction, rng.integers(0, 50_000, 40).astype(np.int32)]) for _ in range(1250)]
    prompts = [np.concatenate([d, np.array([q, q + 1], dtype=np.int32)]) for d in documents for q in range(16)]
    tree = build_prefix_tree(Prompts.of(prompts))
    assert len(prompts) == 20_000
    assert 20_000 + 1250 < len(tree.end) < 2 * 20_000
    assert (tree.end - tree.start).sum() == len({p[:d].tobytes() for p in prompts for d in range(1, len(p) + 1)})


def test_deep_chain() -> None:
    tokens = np.arange(5000, dtype=np.int32)
    tree = build_prefix_tree(Prompts.of([tokens[:length] for length in range(5000, 0, -1)]))
    assert tree.parent.tolist() == list(range(-1, 4999))
    assert tree.node_of.tolist() == list(range(4999, -1, -1))
