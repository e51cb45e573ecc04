"""From requests to a plan: shared prefixes, order, shards, and what the run will need."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.adapter_size import NO_ADAPTERS, AdapterSizes, size_of
from engine.config import EngineConfig
from engine.model.model_shape import num_kv_blocks
from engine.plan import Plan, PlanSummary, PrefixNodes, Shard, ShardWork
from engine.planning.cost import CostModel, Work, count_work
from engine.planning.groups import Forest, arrange, first_seen, share
from engine.planning.prefix_tree import build_prefix_tree, renumber, subtree_sums
from engine.planning.prompts import Ints
from engine.planning.request_table import RequestTable
from engine.planning.rows import row_starts, spread
from engine.planning.simulator import PlannedAdapters, simulate
from engine.request import Request

# A shard may be this much shorter or longer than asked, so as to end where little is shared.
SHARD_SLACK = 0.25
# A run of several engines is cut finer than asked, down to this, so that each of them gets several shards.
LEAST_SHARD_SECONDS = 2.0
# A fast model computes more in a shard's seconds than a process wants to hold: about 7 KiB a request until its commit.
MAX_SHARD_REQUESTS = 2**13

T = TypeVar("T", np.int64, np.float64)
V = TypeVar("V")


def make_plan(
    requests: Sequence[Request],
    config: EngineConfig,
    cost: CostModel,
    *,
    shard_seconds: float = 45.0,
    min_shards: int = 1,
    row_sizes: Sequence[int] | None = None,
    adapters: AdapterSizes = NO_ADAPTERS,
) -> Plan:
    """Plans requests under `config`'s policies, as `plan_table` does."""
    sizes = None if row_sizes is None else np.array(row_sizes, dtype=np.int64)
    table = RequestTable.of(requests)
    return plan_table(
        table, config, cost, shard_seconds=shard_seconds, min_shards=min_shards, row_sizes=sizes, adapters=adapters
    )


def plan_table(
    requests: RequestTable,
    config: EngineConfig,
    cost: CostModel,
    *,
    shard_seconds: float = 45.0,
    min_shards: int = 1,
    row_sizes: Ints | None = None,
    adapters: AdapterSizes = NO_ADAPTERS,
) -> Plan:
    """Plans requests under `config`'s policies; their ids differ, and each fits `max_request_tokens`.

    `cost` says what they take on a device, and so where shards of about `shard_seconds` end, or of fewer, so that there
    are `min_shards`. `row_sizes` says how many of the requests, which follow each other, each row has (None: one): a
    row is placed by its first request, and lies in one shard. The others share with it what their prompts begin with
    alike, and nothing with other rows. `adapters` has what each of the requests' takes: nothing for one that it lacks.

    `groups` in the summary are nodes that more than one request is below. A shard's `prefill_tokens` are prompt
    tokens alone, and a node counts for the first shard that needs it: shards run at once share it.
    """
    assert len(set(requests.request_ids)) == len(requests), "ids differ"
    starts = row_starts(row_sizes, len(requests))
    numbers = _adapter_numbers(requests.adapter[starts])
    tree = build_prefix_tree(requests.prompts.choose(starts), numbers)
    decode_tokens = _by_row(requests.max_tokens, starts)
    rows = arrange(share(tree, config.sharing, config.block_size), decode_tokens, config.order, numbers)
    forest = spread(rows, requests, starts, shares=config.sharing == "multi_level")
    others = int(forest.num_tokens.sum() - rows.num_tokens.sum())
    work = count_work(forest, requests, adapters)
    seconds = cost.seconds(work, config)
    names = _in_order(requests.names, forest.order)
    nodes = _nodes(forest, requests)
    sizes = np.diff(np.append(starts, len(requests)))[rows.order]
    ends = _shard_ends(rows, sizes, seconds, _seconds_each(seconds, shard_seconds, min_shards))
    block_bytes = config.block_size * cost.shape.kv_bytes_per_token(cost.kv_format)
    num_blocks = num_kv_blocks(cost.shape, config, cost.kv_format)
    planned = _planned(adapters, requests, forest)
    trajectory = simulate(forest, work, config, num_blocks, planned)
    summary = PlanSummary(
        requests=len(requests),
        groups=int(np.count_nonzero(nodes.num_requests > 1)),
        prompt_tokens=_prompt_tokens(requests, forest, starts),
        computed_tokens=int(work.prefill_tokens.sum()),
        ideal_tokens=int((tree.end - tree.start).sum()) + others,
        label_tokens=int(work.label_tokens.sum()),
        max_decode_tokens=int(work.decode_tokens.sum()),
        peak_kv_bytes=min(trajectory.peak_blocks, num_blocks) * block_bytes,
        kv_cache_memory=config.kv_cache_memory,
        expected_seconds=float(seconds.sum()),
        decode_seconds=_decode_seconds(work, seconds, cost, config),
        adapters=len(planned.blocks),
        adapter_bytes=block_bytes * sum(planned.blocks.values()),
    )
    shards = _shards(names, work, seconds, ends)
    layout_id = _layout_id(names, forest, shards)
    return Plan(layout_id, nodes, forest.order, forest.node_of, shards, summary, trajectory)


def _decode_seconds(work: Work, seconds: NDArray[np.float64], cost: CostModel, config: EngineConfig) -> float:
    """What is left of `seconds` without the prompts' and the labels'."""
    if not work.decode_steps.any():
        return 0.0
    return float((seconds - cost.seconds(work.without_answers(), config)).sum())


def _seconds_each(seconds: NDArray[np.float64], shard_seconds: float, min_shards: int) -> float:
    """How long a shard is to take: less where there would not be `min_shards`, but hardly less than the least."""
    finest = max(float(seconds.sum()) / min_shards, LEAST_SHARD_SECONDS)
    return min(shard_seconds, finest) if min_shards > 1 else shard_seconds


def _shard_ends(rows: Forest, sizes: Ints, seconds: NDArray[np.float64], shard_seconds: float) -> list[int]:
    """Requests before each shard, and behind the last; a row has `sizes` of them, in execution order."""
    row_ends = np.cumsum(sizes)
    cuts = _cuts(_by_row(seconds, row_ends - sizes), row_ends, _shared_depths(rows), shard_seconds)
    return [0, *row_ends[np.array(cuts, dtype=np.int64) - 1].tolist()]


def _prompt_tokens(requests: RequestTable, forest: Forest, starts: Ints) -> int:
    """Of each row's first request, and of those whose prompt is another than its."""
    lengths = requests.prompts.lengths
    own = int(lengths[starts].sum())
    if forest.row_node is None:
        return own
    return own + int(lengths[forest.node_of != forest.row_node].sum())


def _planned(adapters: AdapterSizes, requests: RequestTable, forest: Forest) -> PlannedAdapters:
    of_place = _in_order(requests.adapters, requests.adapter[forest.order])
    blocks = {name: size_of(adapters, name).blocks for name in requests.adapters if name is not None}
    return PlannedAdapters(of_place, blocks)


def _in_order(values: Sequence[V], places: Ints) -> list[V]:
    return [values[place] for place in places.tolist()]


def shard_work(plan: Plan, shard: Shard, requests: Sequence[Request]) -> ShardWork:
    """A shard's requests, out of those that `make_plan` was given, and every node on their paths, by id."""
    chosen = plan.order[shard.first : shard.last].tolist()
    node_of = plan.node_of[chosen].tolist()
    parent = plan.nodes.parent
    path_nodes: set[int] = set()
    for node in node_of:
        while node >= 0 and node not in path_nodes:
            path_nodes.add(node)
            node = int(parent[node])
    return ShardWork(
        layout_id=plan.layout_id,
        index=shard.index,
        shard_id=shard.shard_id,
        nodes=tuple(plan.nodes[node] for node in sorted(path_nodes)),
        requests=tuple(requests[r] for r in chosen),
        node_of=tuple(node_of),
    )


def _adapter_numbers(adapter: Ints) -> Ints | None:
    """A number for each row's adapter, in the order in which they first appear; None if it is the same for all."""
    found, first, number = np.unique(adapter, return_index=True, return_inverse=True)
    return renumber(np.argsort(first))[number] if len(found) > 1 else None


def _nodes(forest: Forest, requests: RequestTable) -> PrefixNodes:
    num_nodes = len(forest.parent)
    num_requests = subtree_sums(forest.parent, np.bincount(forest.node_of, minlength=num_nodes))
    one = len(requests.adapters) < 2
    adapter = np.zeros(num_nodes, dtype=np.int64) if one else requests.adapter[first_seen(forest)]
    return PrefixNodes(forest.parent, forest.start, forest.end, num_requests, adapter, requests.adapters)


def _by_row(values: NDArray[T], starts: Ints) -> NDArray[T]:
    """The sums of the requests of each row, which begin at `starts`."""
    return np.add.reduceat(values, starts) if len(starts) < len(values) else values


def _shards(names: Sequence[str], work: Work, seconds: NDArray[np.float64], cuts: Sequence[int]) -> tuple[Shard, ...]:
    """A shard between each two of `cuts`, which count requests in execution order."""
    return tuple(
        Shard(
            index=index,
            shard_id=_digest(sorted(names[first:last])),
            first=first,
            last=last,
            prefill_tokens=int(work.prefill_tokens[first:last].sum()),
            decode_tokens=int(work.decode_tokens[first:last].sum()),
            expected_seconds=float(seconds[first:last].sum()),
        )
        for index, (first, last) in enumerate(pairwise(cuts))
    )


def _cuts(seconds: NDArray[np.float64], row_ends: Ints, shared: Ints, shard_seconds: float) -> list[int]:
    """How many rows lie before each shard's end: near `shard_seconds`, where the least prefix is shared across it.

    So a cut falls between groups if one ends near, else between a group's rows. `row_ends` has the requests before each
    row's end, of which a shard has `MAX_SHARD_REQUESTS` at most, or one row.
    """
    ends = np.cumsum(seconds)
    cuts: list[int] = []
    first, start = 0, 0.0
    while first < len(ends):
        shortest, longest = start + np.array([1 - SHARD_SLACK, 1 + SHARD_SLACK]) * shard_seconds
        most = int(np.searchsorted(row_ends, (row_ends[first - 1] if first else 0) + MAX_SHARD_REQUESTS, side="right"))
        if ends[-1] <= longest and most == len(ends):
            last = len(ends)
        else:
            low = max(int(np.searchsorted(ends, shortest)) + 1, first + 1)
            high = max(int(np.searchsorted(ends, longest, side="right")), low)
            if high > most:
                high = max(most, first + 1)
                low = min(low, first + math.ceil((high - first) * (1 - SHARD_SLACK) / (1 + SHARD_SLACK)))
            window = np.arange(low, high + 1)
            distance = np.abs(ends[window - 1] - (start + shard_seconds))
            last = int(window[np.lexsort((distance, shared[window]))[0]])
        cuts.append(last)
        first, start = last, float(ends[last - 1])
    return cuts


def _shared_depths(forest: Forest) -> Ints:
    """Prompt tokens that each row shares with the one before it, in execution order; 0 before and after all."""
    node_of = forest.node_of[forest.order]
    before, after = node_of[:-1], node_of[1:]
    # In pre-order the node behind the last row's is the first that the next row does not share.
    inner = np.where(before < after, forest.start[np.minimum(before + 1, after)], forest.end[after])
    return np.concatenate([[0], inner, [0]])


def _layout_id(names: Sequence[str], forest: Forest, shards: Sequence[Shard]) -> str:
    """A digest of the shards, the requests and the numbering of nodes: plans that have it in common share KV."""
    layout = (forest.parent, forest.start, forest.end, forest.node_of[forest.order])
    return _digest([*(shard.shard_id for shard in shards), *names, *(column.tobytes().hex() for column in layout)])


def _digest(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
