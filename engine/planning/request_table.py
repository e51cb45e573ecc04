"""Requests as columns: what planning reads of them, without a Python object for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.planning.prompts import Ints, Prompts
from engine.request import Request, TokenIds

# A request's `label_set` where it asks for text.
NO_LABELS = -1
# A request's `logprobs_from` where it asks for no log-probability of its prompt.
NO_LOGPROBS = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, eq=False)
class RequestTable:
    """A row a request: columns are as long as `request_ids`.

    `max_tokens` are those that may be generated. `label_set` and `adapter` are places in `label_sets` and `adapters`,
    of which most tables have few. `logprobs_from` is the first prompt token whose log-probability is asked for.
    """

    request_ids: Sequence[str]
    prompts: Prompts
    max_tokens: Ints
    label_set: Ints
    label_sets: Sequence[tuple[TokenIds, ...]]
    logprobs_from: Ints
    adapter: Ints
    adapters: Sequence[str | None]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "RequestTable":
        adapters: dict[str | None, int] = {}
        label_set, label_sets = number_label_sets([request.labels for request in requests])
        firsts = [request.prompt_logprobs_from for request in requests]
        return cls(
            request_ids=[request.request_id for request in requests],
            prompts=Prompts.of([request.prompt_token_ids for request in requests]),
            max_tokens=np.array([request.max_tokens for request in requests], dtype=np.int64),
            label_set=label_set,
            label_sets=label_sets,
            logprobs_from=np.array([NO_LOGPROBS if first is None else first for first in firsts], dtype=np.int64),
            adapter=np.array([adapters.setdefault(r.adapter, len(adapters)) for r in requests], dtype=np.int64),
            adapters=tuple(adapters),
        )

    def __len__(self) -> int:
        return len(self.request_ids)

    @property
    def names(self) -> list[str]:
        """What names each request's work, in any run; without an adapter its id alone."""
        if self.adapters in ((), (None,)):
            return list(self.request_ids)
        names = [self.adapters[number] for number in self.adapter.tolist()]
        return [one if name is None else f"{one}\0{name}" for one, name in zip(self.request_ids, names, strict=True)]


def number_label_sets(
    labels: Sequence[tuple[TokenIds, ...] | None],
) -> tuple[Ints, Sequence[tuple[TokenIds, ...]]]:
    """`RequestTable.label_set` and `label_sets` of requests with these `labels`."""
    numbers: dict[tuple[bytes, ...], int] = {}
    sets: list[tuple[TokenIds, ...]] = []
    found = []
    for own in labels:
        if own is None:
            found.append(NO_LABELS)
            continue
        number = numbers.setdefault(tuple(label.tobytes() for label in own), len(sets))
        if number == len(sets):
            sets.append(own)
        found.append(number)
    return np.array(found, dtype=np.int64), sets
