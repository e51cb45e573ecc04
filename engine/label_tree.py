"""A request's labels as one small trie under its prompt: a token that several labels begin with runs once."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.request import TokenIds


@dataclass(frozen=True, slots=True)
class LabelTree:
    """The trie over each label without its last token, which is only looked up in logits and never computed.

    Entry i is token `token_ids[i]` at position prompt length + `depths[i]`, behind entry `parents[i]` (-1: the
    prompt's last token), which comes before it. A target `(label, parent, token)` asks the logits of entry `parent`
    for `token`; a label's log-likelihood is the sum over its targets, which come in label and token order.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...]


def build_label_tree(labels: Sequence[TokenIds]) -> LabelTree:
    entries: dict[tuple[int, int], int] = {}
    depths: list[int] = []
    targets: list[tuple[int, int, int]] = []
    for label, token_ids in enumerate(labels):
        assert len(token_ids) > 0, f"label {label} has no token"
        *head, last = token_ids.tolist()
        parent = -1
        for depth, token in enumerate(head):
            targets.append((label, parent, token))
            entry = (parent, token)
            if entry not in entries:
                entries[entry] = len(entries)
                depths.append(depth)
            parent = entries[entry]
        targets.append((label, parent, last))
    return LabelTree(
        token_ids=tuple(token for _, token in entries),
        parents=tuple(parent for parent, _ in entries),
        depths=tuple(depths),
        targets=tuple(targets),
    )
