"""Prompts that a text is asked for, as engine requests: equal ones are one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.request import Request
from engine.sampling_params import SamplingParams


class AskedTexts:
    """Prompts with what is asked of each."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_cut = 0
        self._places: dict[tuple[bytes, SamplingParams], int] = {}
        self._asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, number: int, prompt: Sequence[int], params: SamplingParams, room: int) -> None:
        """A prompt of more than `room` tokens loses its beginning."""
        assert len(prompt) > 0, number
        self.num_cut += len(prompt) > room
        ids = np.array(prompt[-room:], np.int32).tobytes()
        place = self._places.setdefault((ids, params), len(self._asked))
        if place == len(self._asked):
            self._asked.append([])
            self.num_tokens += len(prompt[-room:])
        self._asked[place].append(number)

    def requests(self) -> list[Request]:
        return [
            Request(str(place), np.frombuffer(ids, np.int32), params)
            for place, (ids, params) in enumerate(self._places)
        ]

    def numbers(self, request_id: str) -> list[int]:
        return self._asked[int(request_id)]


class Seeds:
    """Seeds of sampled texts: the first that is asked of a prompt has the first seed, its n-th repetition the n-th.

    So what is drawn depends on neither batch nor order, and repetitions differ.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._asked: Counter[tuple[tuple[int, ...], SamplingParams]] = Counter()

    def seeded(self, prompt: Sequence[int], params: SamplingParams) -> SamplingParams:
        if params.greedy or params.seed is not None:
            return params
        asked = tuple(prompt), params
        self._asked[asked] += 1
        return replace(params, seed=self._first + self._asked[asked] - 1)
