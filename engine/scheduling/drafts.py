"""Drafts: tokens that a text may go on with, copied from where its prompt, or itself, said the same before.

Texts that repeat their prompt (extraction, rewriting) are foretold so (prompt lookup: Saxena, 2023; verified in one
step as by Leviathan et al., arXiv 2211.17192). A draft is one more row of the step, behind the row of the text's last
token; what the row before it samples says whether it was right. A text is therefore the same with drafts as without:
each of its tokens is sampled behind those before it, by the draw that is its place's own.

A step that decodes waits for the weights, however many rows it has up to a number; drafts take the rows that are left
of it, and no others.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.scheduling.sequence import Sequence

# Tokens at a text's end that are looked for, the more of them the better; a single one foretells little.
LONGEST_MATCH, SHORTEST_MATCH = 4, 2
# Drafts of a text in a step: so many at first, twice as many after a step in which all were right.
FIRST_DRAFTS, MOST_DRAFTS = 4, 32


@dataclass(slots=True, eq=False)
class _Draft:
    """A text's tokens so far, prompt first, in a buffer for all that it can become; `limit` drafts are worth a try."""

    tokens: NDArray[np.int32]
    length: int
    limit: int = FIRST_DRAFTS
    proposed: int = 0

    @classmethod
    def of(cls, sequence: Sequence) -> "_Draft":
        prompt = sequence.request.prompt_token_ids
        tokens = np.empty(len(prompt) + sequence.max_tokens, dtype=np.int32)
        tokens[: len(prompt)] = prompt
        return cls(tokens, len(prompt))

    def follow(self, sequence: Sequence) -> None:
        """Takes in what the text has become, and learns from how many drafts were right."""
        new = sequence.token_ids[self.length - sequence.num_prompt_tokens :]
        self.tokens[self.length : self.length + len(new)] = new
        self.length += len(new)
        if self.proposed:
            right = len(new) - 1
            self.limit = min(2 * self.limit, MOST_DRAFTS) if right == self.proposed else max(right, 1)
            self.proposed = 0

    def propose(self, most: int) -> list[int]:
        """So many tokens: those that followed the latest of the longest matches of the text's end, or none.

        Where they reach the end, the text goes on as it would if they were right: what repeats itself repeats itself.
        """
        text = self.tokens[: self.length]
        places = np.flatnonzero(text[:-1] == text[-1])
        for back in range(1, min(LONGEST_MATCH, self.length)):
            closer = places[(places >= back) & (text[places - back] == text[-1 - back])]
            if not len(closer) and back < SHORTEST_MATCH:
                return []
            if not len(closer):
                break
            places = closer
        if not len(places):
            return []
        behind = int(places[-1]) + 1
        found: list[int] = text[behind + np.arange(most) % (self.length - behind)].tolist()
        self.proposed = most
        return found


@dataclass(slots=True, eq=False)
class Drafter:
    """Drafts for steps of at most `free_rows` rows, which cost as much as steps of one."""

    free_rows: int
    _drafts: dict[int, _Draft] = field(default_factory=dict)

    def propose(self, sequences: Iterable[Sequence], num_rows: int) -> dict[int, list[int]]:
        """By key, the drafts of texts that decode in a step of `num_rows` without them: as many as are free.

        Texts whose drafts were right last come first.
        """
        spare = self.free_rows - num_rows
        if spare <= 0:
            return {}
        proposed: dict[int, list[int]] = {}
        for sequence, draft in sorted(self._follow(sequences), key=lambda pair: -pair[1].limit):
            # There is no room for the text's very last token, which is sampled and never computed.
            most = min(spare, draft.limit, sequence.kv_left)
            tokens = draft.propose(most) if most > 0 else []
            if tokens:
                proposed[sequence.key] = tokens
                spare -= len(tokens)
        return proposed

    def forget(self, key: int) -> None:
        self._drafts.pop(key, None)

    def _follow(self, sequences: Iterable[Sequence]) -> list[tuple[Sequence, _Draft]]:
        followed = []
        for sequence in sequences:
            if can_draft(sequence):
                draft = self._drafts.get(sequence.key)
                if draft is None:
                    draft = self._drafts[sequence.key] = _Draft.of(sequence)
                draft.follow(sequence)
                followed.append((sequence, draft))
        return followed


def can_draft(sequence: Sequence) -> bool:
    """Whether each of the text's next tokens follows from its logits and its place alone."""
    params = sequence.request.params
    return not params.changes_logits and sequence.num_output_tokens >= params.min_tokens and not sequence.num_pending
