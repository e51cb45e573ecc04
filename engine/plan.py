"""The plan: frozen plain data that says what will run, in which order, and what it will cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from engine.figures import figure, percent
from engine.request import Request


@dataclass(frozen=True, slots=True)
class PrefixNode:
    """Prompt tokens `[start, end)` that every request below the node shares; `parent` is -1 at a root.

    `num_requests` counts the plan's requests that end at the node or below it, which are all of one `adapter`.
    """

    node_id: int
    parent: int
    start: int
    end: int
    num_requests: int
    adapter: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PrefixNodes:
    """A plan's nodes as columns, where node i has row i; `adapter` are places in `adapters`.

    A `PrefixNode` is made when one is asked for, so that a plan of millions holds none.
    """

    parent: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    num_requests: NDArray[np.int64]
    adapter: NDArray[np.int64]
    adapters: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, node_id: int) -> PrefixNode:
        return PrefixNode(
            node_id=node_id,
            parent=int(self.parent[node_id]),
            start=int(self.start[node_id]),
            end=int(self.end[node_id]),
            num_requests=int(self.num_requests[node_id]),
            adapter=self.adapters[self.adapter[node_id]],
        )

    def __iter__(self) -> Iterator[PrefixNode]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of commit: requests `order[first:last]` of a plan, which are whole rows.

    `shard_id` is derived from the requests' ids and adapters alone, so equal work has an equal name in any run.
    """

    index: int
    shard_id: str
    first: int
    last: int
    prefill_tokens: int
    decode_tokens: int
    expected_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """What each step of a plan is expected to run, and the KV blocks in use while it runs: an array a figure."""

    prefill_tokens: NDArray[np.int64]
    decode_tokens: NDArray[np.int64]
    label_tokens: NDArray[np.int64]
    kv_blocks: NDArray[np.int64]

    @property
    def num_steps(self) -> int:
        return len(self.kv_blocks)

    @property
    def peak_blocks(self) -> int:
        return int(self.kv_blocks.max(initial=0))


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What sharing saves and what the run will need, before anything runs.

    Tokens are prompt tokens. `computed_tokens` runs under the plan's policy; `ideal_tokens` is the
    compact trie over all prompts, the least that any policy can reach. `decode_seconds` are the part of the expected
    ones in which answers become as long as they may. Weights of `adapters`, `adapter_bytes` in all, lie where KV does,
    and count in its peak as long as they are in.
    """

    requests: int
    groups: int
    prompt_tokens: int
    computed_tokens: int
    ideal_tokens: int
    label_tokens: int
    max_decode_tokens: int
    peak_kv_bytes: int
    kv_cache_memory: int
    expected_seconds: float
    decode_seconds: float = 0.0
    adapters: int = 0
    adapter_bytes: int = 0

    @property
    def saved_fraction(self) -> float:
        return 1 - self.computed_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def ideal_saved_fraction(self) -> float:
        return 1 - self.ideal_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class PlanOutline:
    """What a plan will do, without its nodes and requests; as text, what a person reads before paying."""

    layout_id: str
    shards: tuple[Shard, ...]
    summary: PlanSummary

    def __str__(self) -> str:
        s = self.summary
        saved = f"{percent(s.saved_fraction)} saved (ideal {percent(s.ideal_saved_fraction)})"
        peak = figure(s.peak_kv_bytes / 2**20)
        lines = [
            f"plan {self.layout_id}",
            f"  requests        {s.requests:>14,}   in {s.groups:,} prefix groups, {len(self.shards):,} shards",
            f"  prompt tokens   {s.prompt_tokens:>14,}   of different prompts",
            f"  computed tokens {s.computed_tokens:>14,}   {saved}",
        ]
        if s.label_tokens:
            lines.append(f"  label tokens    {s.label_tokens:>14,}")
        if s.max_decode_tokens:
            lines.append(f"  decode tokens   {s.max_decode_tokens:>14,}   at most")
        if s.adapters:
            each = figure(s.adapter_bytes / s.adapters / 2**20)
            lines.append(f"  adapters        {s.adapters:>14,}   {each} MiB of the KV's memory each while they are in")
        lines += [
            f"  KV peak         {peak:>10} MiB   of {s.kv_cache_memory / 2**20:,.0f} MiB",
            f"  computing       {figure(s.expected_seconds):>12} s{'   at most' if s.decode_seconds else ''}",
        ]
        return "\n".join(lines)


def join(outlines: Sequence[PlanOutline], kv_cache_memory: int) -> PlanOutline:
    """The outline of plans that run one after the other, with the shards of all and the highest of their KV peaks.

    A prefix that prompts of two plans have in common is computed, and counted, in each.
    """
    if len(outlines) == 1:
        return outlines[0]
    shards: list[Shard] = []
    for outline in outlines:
        index, first = len(shards), shards[-1].last if shards else 0
        shards += [
            replace(shard, index=index + shard.index, first=first + shard.first, last=first + shard.last)
            for shard in outline.shards
        ]
    summaries = [outline.summary for outline in outlines]
    sums = {name: sum(getattr(summary, name) for summary in summaries) for name in _SUMMED}
    peak = max((summary.peak_kv_bytes for summary in summaries), default=0)
    names = "\n".join(outline.layout_id for outline in outlines)
    return PlanOutline(
        layout_id=blake2b(names.encode(), digest_size=16).hexdigest(),
        shards=tuple(shards),
        summary=PlanSummary(**sums, peak_kv_bytes=peak, kv_cache_memory=kv_cache_memory),
    )


_SUMMED = [field.name for field in fields(PlanSummary) if field.name not in ("peak_kv_bytes", "kv_cache_memory")]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Nodes in execution order (a parent before its children, a subtree contiguous), requests, shards.

    `order[i]` is the index of the i-th request to run; `node_of[r]` the node at which request r's prompt ends.
    """

    layout_id: str
    nodes: PrefixNodes
    order: NDArray[np.int64]
    node_of: NDArray[np.int64]
    shards: tuple[Shard, ...]
    summary: PlanSummary
    trajectory: Trajectory

    @property
    def outline(self) -> PlanOutline:
        return PlanOutline(self.layout_id, self.shards, self.summary)

    def __str__(self) -> str:
        return str(self.outline)


@dataclass(frozen=True, slots=True, eq=False)
class ShardWork:
    """All that an engine needs to run a shard: what goes from a stored plan to the scheduler.

    `requests` are in execution order, `node_of[i]` is the node where `requests[i]` ends, and `nodes` holds
    every node on their paths. All shards of one `layout_id` number nodes alike, so that an engine that runs several
    at once computes a node they share once. One shard twice at once is computed twice.
    """

    layout_id: str
    index: int
    shard_id: str
    nodes: tuple[PrefixNode, ...]
    requests: tuple[Request, ...]
    node_of: tuple[int, ...]
