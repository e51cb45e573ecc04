"""Workers that are several engines, each in a place of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from engine.config import EngineConfig
from engine.errors import EngineDeadError, EngineLostError
from tasks.workers import Computed, Worker, Workers


class Member(Worker, Workers, Protocol):
    """One of them, which could be a run's workers by itself."""

    @property
    def closed(self) -> bool: ...


class ManyEngines:
    """Several `Workers` of one engine as those of a run. As a context it closes them.

    Members may come later: `_members` is what is known of them now, those that are lost included.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        """They belong to this from now on."""
        assert members, "workers that are nobody"
        self._members = list(members)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: "type[BaseException] | BaseException | TracebackType | None") -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return all(one.closed for one in self._members)

    def each(self) -> Sequence[Worker]:
        return tuple(self._members)

    def start(self) -> None:
        self._all(start_member)

    def config(self) -> EngineConfig:
        """The least of what those have that could be loaded: a plan is for any of them. Raises what the last raised
        where none could.
        """
        found: list[EngineConfig] = []
        for left, one in zip(reversed(range(len(self._members))), self._members, strict=True):
            try:
                found.append(one.config())
            except (EngineDeadError, EngineLostError):
                if not left and not found:
                    raise
        return replace(
            found[0],
            kv_cache_memory=min(one.kv_cache_memory for one in found),
            max_num_batched_tokens=min(one.max_num_batched_tokens for one in found),
        )

    def totals(self) -> Computed:
        return sum((one.totals() for one in self._members), Computed())

    @property
    def stage(self) -> str | None:
        stages = [one.stage for one in self._members]
        return None if None in stages else stages[0]

    @property
    def waiting_for(self) -> str | None:
        """Whoever it is that the first waits for; None while one of them can go on."""
        holders = [one.waiting_for for one in self._members]
        return None if None in holders else holders[0]

    def close(self) -> None:
        self._all(lambda one: one.close())

    def _all(self, action: Callable[[Member], None]) -> None:
        """At the same time, for each may take seconds. Raises what the first of them raised."""
        with ThreadPoolExecutor(len(self._members)) as threads:
            list(threads.map(action, self._members))


def start_member(member: Member) -> None:
    """Who is lost before it began, or could not begin now, is found out when a shard is its."""
    with suppress(EngineLostError, EngineDeadError):
        member.start()
