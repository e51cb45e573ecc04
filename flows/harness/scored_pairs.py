"""Pairs of a context and a continuation as engine requests: each context is computed once, whatever follows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.request import Request, RequestOutput, TokenIds

# Labels run whole, in the step of their prompt's end. More of them than so many tokens are asked as parts of prompts,
# which run in chunks.
LABEL_TOKENS = 512


@dataclass(frozen=True, slots=True)
class PairScore:
    """A continuation's summed log-likelihood behind its context, and whether greedy decoding would have given it."""

    number: int
    logprob: float
    is_greedy: bool


@dataclass(slots=True, eq=False)
class _Asked:
    """A prompt with its labels, and the pairs that ask for each; `places` has a label's place by its bytes.

    `read_from`: the place in the prompt where the continuation begins, of which only the last token is the label.
    """

    prompt: TokenIds
    read_from: int | None
    labels: list[TokenIds] = field(default_factory=list)
    pairs: list[list[int]] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)
    num_label_tokens: int = 0

    def ask(self, label: TokenIds, pair: int) -> None:
        place = self.places.setdefault(label.tobytes(), len(self.labels))
        if place == len(self.labels):
            self.labels.append(label)
            self.pairs.append([])
            self.num_label_tokens += len(label)
        self.pairs[place].append(pair)

    def takes(self, label: TokenIds) -> bool:
        return self.num_label_tokens + len(label) <= LABEL_TOKENS or label.tobytes() in self.places


_NOTHING = _Asked(np.zeros(0, np.int32), None)


class ScoredPairs:
    """Pairs, of which equal ones are one, and those of one context are labels of one request."""

    def __init__(self, max_length: int) -> None:
        """The model sees `max_length` tokens at most: what is longer loses the beginning of its context."""
        self._max_length = max_length
        self._by_prompt: dict[tuple[bytes, int | None], _Asked] = {}
        self._asked: list[_Asked] = []
        self.num_tokens = 0
        self.num_cut = 0

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, pair: int, context: Sequence[int], continuation: Sequence[int]) -> None:
        """Neither is empty, and the continuation has `max_length` tokens at most. `pair` names it in `scores`."""
        assert len(context) > 0, pair
        assert 0 < len(continuation) <= self._max_length, (pair, len(continuation), self._max_length)
        self.num_cut += len(context) + len(continuation) > self._max_length + 1
        whole = np.array([*context, *continuation][-(self._max_length + 1) :], np.int32)
        first = len(whole) - len(continuation)
        context_ids, label = whole[:first], whole[first:]
        there = self._by_prompt.get((context_ids.tobytes(), None), _NOTHING)
        if there.takes(label):
            self._at(context_ids, None).ask(label, pair)
        else:
            self._at(whole[:-1], first).ask(label[-1:], pair)

    def requests(self) -> list[Request]:
        return [
            Request(str(number), asked.prompt, labels=tuple(asked.labels), prompt_logprobs_from=asked.read_from)
            for number, asked in enumerate(self._asked)
        ]

    def numbers(self, request_id: str) -> list[int]:
        return [pair for pairs in self._asked[int(request_id)].pairs for pair in pairs]

    def scores(self, output: RequestOutput) -> list[PairScore]:
        """Of each pair in `numbers`; the output is no error."""
        assert output.label_scores is not None, output.finish_reason
        before, all_best = 0.0, True
        if output.prompt_logprobs is not None:
            before = float(output.prompt_logprobs.logprobs.sum(dtype=np.float64))
            all_best = bool(output.prompt_logprobs.is_greedy.all())
        asked = self._asked[int(output.request_id)]
        return [
            PairScore(pair, before + score.logprob, all_best and score.is_greedy)
            for pairs, score in zip(asked.pairs, output.label_scores, strict=True)
            for pair in pairs
        ]

    def _at(self, prompt: TokenIds, read_from: int | None) -> _Asked:
        key = prompt.tobytes(), read_from
        if key not in self._by_prompt:
            self._by_prompt[key] = _Asked(np.frombuffer(key[0], np.int32), read_from)
            self._asked.append(self._by_prompt[key])
            self.num_tokens += len(prompt)
        return self._by_prompt[key]
