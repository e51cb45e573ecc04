"""What a job would take on so many devices, policy by policy: the scheduler on the cost model's clock, and no model."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from engine.config import ADMISSION, ORDER, SHARING, EngineConfig
from engine.errors import UserError
from engine.loop.plan_cost import plan_cost
from engine.loop.step_budget import planning_config
from engine.model.model_shape import num_kv_blocks
from engine.plan import ShardWork
from engine.planning.cost import CostModel
from engine.planning.described_table import DescribedTable
from engine.planning.planner import make_plan, shard_work
from engine.planning.virtual_run import VirtualRun, run_virtually
from tasks.deduplicate import PENDING, find_pending
from tasks.extract import extract_rows
from tasks.job.job import ScoringJob
from tasks.plan import plan_sections
from tasks.request.requests import to_requests
from tasks.storage.open_folder import folder_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, make_run
from tasks.storage.run_adapters import adapter_sizes

# A device's share goes through the scheduler request by request, which takes some 0.1 ms of each.
MOST_ROWS, MOST_TOKENS = 1_000_000, 2**28


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """A job under one policy. Tokens are those of all devices; `seconds` are the busiest one's, which all are paid for.

    `utilisation` is the share of the devices' FLOP/s in matmuls that is used in that time. `kv_peak` and `kv_mean` are
    of the busiest device, as parts of its KV budget. `cost` is in whatever the price is. `refused` requests fit neither
    context nor KV budget.
    """

    sharing: str
    order: str
    admission: str
    seconds: float
    steps: int
    prompt_tokens: int
    computed_tokens: int
    saved_fraction: float
    label_tokens: int
    decode_tokens: int
    utilisation: float
    kv_peak: float
    kv_mean: float
    device_hours: float
    cost: float | None
    refused: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """`policies` begin with the job's own; each other differs from it in one choice."""

    rows: int
    devices: int
    device: str
    policies: tuple[PolicyRun, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Share:
    """The shards of a device, which stands for `devices` of them, and the prompt tokens of what they ask."""

    works: Sequence[ShardWork]
    prompt_tokens: int
    devices: float = 1.0
    adapter_blocks: Mapping[str, int] = field(default_factory=dict)


def simulate_job(
    job: ScoringJob,
    *,
    devices: int = 1,
    device: str | None = None,
    price_per_hour: float | None = None,
    table: DescribedTable | None = None,
) -> Simulation:
    """The job's rows without an answer, or those of `table` in their place, on so many `devices`, each of them this
    machine's or the GPU of the name `device`. Raises UserError as a run would, and for more than is simulated.
    """
    with tempfile.TemporaryDirectory(prefix="trunkline-") as scratch:
        folder = OutputFolder(Path(scratch))
        folder.create()
        run = make_run(job, folder, not_here=device)
        config = planning_config(run.model, run.config, run.device)
        cost = plan_cost(run.model, run.shape, run.config, run.device)
        configs = [*_one_choice_apart(config)]
        engines = _engines(devices, config)
        if table is None:
            found = find_pending(run, extract_rows(run), folder_of(job).look())
            _refuse_too_many(found.pending, engines)
            rows, pending = found.pending, found.folder / PENDING
            by_policy = (_read_shares(run, pending, one, engines) for one in configs)
        else:
            _refuse_too_many(table.rows, engines, table.rows * (table.prefix + table.distinct))
            rows, share = table.rows, table.largest_share(engines)
            by_policy = (_described_shares(share, table.groups / share.groups, one, cost) for one in configs)
        policies = [
            _policy_run(shares, one, cost, engines, price_per_hour)
            for shares, one in zip(by_policy, configs, strict=True)
        ]
    return Simulation(rows, devices, run.device.label, tuple(policies))


def _engines(devices: int, config: EngineConfig) -> int:
    """How many share the work. Raises UserError where devices would be left over."""
    engines, left = divmod(devices, config.tensor_parallel)
    if left:
        raise UserError(
            f"--devices: {devices} is no multiple of the {config.tensor_parallel} of engine.tensor_parallel"
        )
    return engines


def _one_choice_apart(config: EngineConfig) -> Iterator[EngineConfig]:
    yield config
    yield from (replace(config, sharing=one) for one in SHARING if one != config.sharing)
    yield from (replace(config, order=one) for one in ORDER if one != config.order)
    yield from (replace(config, admission=one) for one in ADMISSION if one != config.admission)


def _refuse_too_many(rows: int, engines: int, tokens: int = 0) -> None:
    if rows > MOST_ROWS * engines or tokens > MOST_TOKENS * engines:
        raise UserError(
            f"a device's share is more than is simulated ({MOST_ROWS:,} rows, {MOST_TOKENS:,} prompt tokens): "
            "ask for more --devices"
        )


def _described_shares(share: DescribedTable, devices: float, config: EngineConfig, cost: CostModel) -> list[_Share]:
    """One that stands for all: groups are alike, and so are the devices that have as many of them."""
    requests = share.requests()
    plan = make_plan(requests, config, cost)
    works = [shard_work(plan, shard, requests) for shard in plan.shards]
    return [_Share(works, plan.summary.prompt_tokens, devices)]


def _read_shares(run: Run, pending: Path, config: EngineConfig, engines: int) -> list[_Share]:
    """The plan's shards in their order, so that neighbours stay together, cut where expected times are about equal."""
    planned: list[tuple[float, ShardWork]] = []
    adapters: set[str | None] = set()
    for section in plan_sections(run, pending, config):
        requests = [*chain.from_iterable(own for batch in section.rows.to_batches() for own in to_requests(batch))]
        adapters.update(request.adapter for request in requests)
        planned += [
            (shard.expected_seconds, shard_work(section.plan, shard, requests)) for shard in section.plan.shards
        ]
    blocks = {name: size.blocks for name, size in adapter_sizes(adapters, run.shape, config, run.device).items()}
    total, before = sum(seconds for seconds, _ in planned), 0.0
    works: list[list[ShardWork]] = [[] for _ in range(engines)]
    for seconds, work in planned:
        works[min(int((before + seconds / 2) / total * engines), engines - 1)].append(work)
        before += seconds
    return [_Share(own, _prompt_tokens(own), adapter_blocks=blocks) for own in works if own]


def _prompt_tokens(works: Iterable[ShardWork]) -> int:
    return sum(len(request.prompt_token_ids) for work in works for request in work.requests)


def _policy_run(
    shares: Sequence[_Share], config: EngineConfig, cost: CostModel, engines: int, price_per_hour: float | None
) -> PolicyRun:
    ran = [(share, run_virtually(share.works, config, cost, share.adapter_blocks)) for share in shares]
    busiest = max((run for _, run in ran), key=lambda run: run.seconds, default=VirtualRun())
    seconds, num_blocks = busiest.seconds, num_kv_blocks(cost.shape, config, cost.kv_format)

    def total(values: Iterable[float]) -> float:
        return sum(value * share.devices for value, (share, _) in zip(values, ran, strict=True))

    prompt_tokens = round(total(share.prompt_tokens for share, _ in ran))
    computed_tokens = round(total(run.prefill_tokens for _, run in ran))
    device_hours = seconds * engines * config.tensor_parallel / 3600
    flops = total(run.flops for _, run in ran)
    return PolicyRun(
        sharing=config.sharing,
        order=config.order,
        admission=config.admission,
        seconds=seconds,
        steps=busiest.steps,
        prompt_tokens=prompt_tokens,
        computed_tokens=computed_tokens,
        saved_fraction=1 - computed_tokens / prompt_tokens if prompt_tokens else 0.0,
        label_tokens=round(total(run.label_tokens for _, run in ran)),
        decode_tokens=round(total(run.decode_tokens for _, run in ran)),
        utilisation=flops / (seconds * engines * cost.rates.matmul_flops) if seconds else 0.0,
        kv_peak=busiest.peak_kv_blocks / num_blocks,
        kv_mean=busiest.kv_block_seconds / seconds / num_blocks if seconds else 0.0,
        device_hours=device_hours,
        cost=None if price_per_hour is None else price_per_hour * device_hours,
        refused=round(total(run.refused for _, run in ran)),
    )
