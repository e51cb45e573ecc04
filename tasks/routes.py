"""Which worker computes which shard: what lies together in the plan stays together, and nobody is idle."""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from engine.plan import Shard

W = TypeVar("W")


class Routes(Generic[W]):
    """Ranges of the plan's order, one for each worker, from whose head it takes.

    Shards that follow each other share prefixes, so a range is computed with as few of them twice as there are ranges.
    Who has none left takes over the later half of the longest that another has, as thieves of work do that steal half
    (Hendler and Shavit, PODC 2002): what it took is again a range, in order. What a lost worker had is taken likewise.
    """

    def __init__(self, shards: Sequence[Shard], workers: Sequence[W]) -> None:
        """Ranges take about equally long, as the plan expects it; with no workers yet, whoever comes takes the next."""
        self._ranges: dict[W, deque[Shard]] = {worker: deque() for worker in workers}
        self._again: deque[Shard] = deque() if workers else deque(shards)
        if not workers:
            return
        ends = list(accumulate(shard.expected_seconds for shard in shards))
        for shard, end in zip(shards, ends, strict=True):
            middle = end - shard.expected_seconds / 2
            part = int(len(workers) * middle / ends[-1]) if ends[-1] else 0
            self._ranges[workers[min(part, len(workers) - 1)]].append(shard)

    def __len__(self) -> int:
        """Shards that nobody took."""
        return len(self._again) + sum(map(len, self._ranges.values()))

    def take(self, worker: W) -> Shard | None:
        """The next shard for a worker, who may be new; None where all are taken."""
        if self._again:
            return self._again.popleft()
        own = self._ranges.setdefault(worker, deque())
        if not own:
            own.extend(self._steal())
        return own.popleft() if own else None

    def give_back(self, shard: Shard) -> None:
        """Whoever comes first takes it again."""
        self._again.append(shard)

    def _steal(self) -> Sequence[Shard]:
        """The later half of the longest range in seconds, or all of a range of one shard."""
        longest = max(self._ranges.values(), key=_seconds)
        half, taken = _seconds(longest) / 2, deque[Shard]()
        while longest and (not taken or _seconds(taken) + longest[-1].expected_seconds <= half):
            taken.appendleft(longest.pop())
        return taken


def _seconds(shards: deque[Shard]) -> float:
    return sum(shard.expected_seconds for shard in shards)
