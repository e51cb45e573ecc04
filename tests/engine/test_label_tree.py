"""The label trie: drawn, and its targets read back as the labels."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.label_tree import LabelTree, build_label_tree


def tree_of(*labels: list[int]) -> LabelTree:
    return build_label_tree([np.array(label, dtype=np.int32) for label in labels])


def test_labels_of_one_token_compute_nothing() -> None:
    assert tree_of([4], [5]) == LabelTree((), (), (), ((0, -1, 4), (1, -1, 5)))


def test_shared_first_tokens_run_once() -> None:
    tree = tree_of([1, 2, 3], [1, 2, 4], [1, 5], [6, 2])
    assert tree.token_ids == (1, 2, 6)
    assert tree.parents == (-1, 0, -1)
    assert tree.depths == (0, 1, 0)
    assert tree.targets[:3] == ((0, -1, 1), (0, 0, 2), (0, 1, 3))


def test_a_label_may_begin_another() -> None:
    tree = tree_of([1], [1, 2])
    assert tree.token_ids == (1,)
    assert tree.targets == ((0, -1, 1), (1, -1, 1), (1, 0, 2))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6))
def test_targets_spell_the_labels(labels: list[list[int]]) -> None:
    tree = tree_of(*labels)
    entries = {tuple(label[:end]) for label in labels for end in range(1, len(label))}
    assert len(tree.token_ids) == len(entries)
    for index, label in enumerate(labels):
        targets = [(parent, token) for of, parent, token in tree.targets if of == index]
        assert [token for _, token in targets] == label
        assert targets[0][0] == -1
        for (above, token), (parent, _) in pairwise(targets):
            assert (tree.parents[parent], tree.token_ids[parent]) == (above, token)
            assert tree.depths[parent] == (tree.depths[above] + 1 if above >= 0 else 0)
