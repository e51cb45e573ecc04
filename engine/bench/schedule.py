"""What planning and scheduling cost, with no model behind them; the last line printed is JSON.

    python -m engine.bench.schedule --requests 1000 --requests 10000

Groups of 16 requests share 100 tokens, have 20 of their own and generate 8. A step's tokens come from nowhere, so that
all the time is the plan's and the scheduler's own. `schedule_fraction` is that time over what the model is expected to
take: at `RATES`, several times what float32 reaches on two cores, so that int8 is covered.
"""

import json
import time
from typing import Annotated

import numpy as np
import typer

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.model.checkpoint import load_shape, resolve_model
from engine.model.model_shape import ModelShape, num_kv_blocks
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from kernels.kv_format import FLOAT32

RATES = DeviceRates(600e9, 600e9)
DEGREE, PREFIX, OWN, OUTPUT = 16, 100, 20, 8


def requests_in_groups(count: int) -> list[Request]:
    draw = np.random.default_rng(0)
    params = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
    prefixes = draw.integers(0, 40_000, (-(count // -DEGREE), PREFIX), dtype=np.int32)
    own = draw.integers(0, 40_000, (count, OWN), dtype=np.int32)
    return [
        Request(str(i), np.concatenate([prefixes[i // DEGREE], own[i]]), params)
        for i in draw.permutation(count).tolist()
    ]


def time_schedule(count: int, shape: ModelShape, config: EngineConfig) -> dict[str, float]:
    """Seconds for `count` requests: to plan them, and in all steps of the scheduler."""
    requests = requests_in_groups(count)
    started = time.perf_counter()
    plan = make_plan(requests, config, CostModel(shape, FLOAT32, RATES))
    planned = time.perf_counter()
    pool = BlockPool(num_kv_blocks(shape, config, FLOAT32), config.block_size)
    scheduler = Scheduler(config, pool, shape.max_model_len)
    steps = 0
    for shard in plan.shards:
        scheduler.add(shard_work(plan, shard, requests))
    while scheduler.has_work():
        output = scheduler.schedule()
        assert output is not None, "nothing is in flight"
        steps += 1
        sampled = {}
        for key in output.reads.key.tolist():
            sequence = scheduler.sequences[key]
            sampled[key] = Sampled(7, len(sequence.token_ids) + 1 >= sequence.max_tokens)
        scheduler.update(output, sampled)
    ended = time.perf_counter()
    scheduler.check_integrity()
    return {
        "requests": count,
        "steps": steps,
        "planned_steps": plan.trajectory.num_steps,
        "plan_seconds": round(planned - started, 3),
        "schedule_seconds": round(ended - planned, 3),
        "microseconds_a_request": round(1e6 * (ended - started) / count, 1),
        "expected_model_seconds": round(plan.summary.expected_seconds, 1),
        "schedule_fraction": round((ended - started) / plan.summary.expected_seconds, 5),
    }


def bench_schedule(requests: Annotated[list[int], typer.Option(min=1)] = [1000, 10_000, 100_000]) -> None:  # noqa: B006
    """Time the schedule of so many requests."""
    shape = load_shape(resolve_model("embedded"))
    typer.echo(json.dumps([time_schedule(count, shape, EngineConfig()) for count in requests]))


if __name__ == "__main__":
    typer.run(bench_schedule)
