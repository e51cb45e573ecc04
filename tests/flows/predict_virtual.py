"""Runs workloads on a clock of ours and says what the progress bar expected of the whole at 10, 25 and 50 % of it.

    python -m tests.flows.predict_virtual

The engine's scheduler makes the steps, and the cost model's parts say how long each takes, with noise and a first step
of ten times its length that the bar does not know of: three workloads, three kinds of lengths, three devices; `--draws`
of each. A line of JSON a run, then the root of the mean square, the mean and the worst of the errors.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import typer
from numpy.random import Generator
from numpy.typing import NDArray

from engine.bench.workload import choice, generate, to_request
from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.model.checkpoint import load_shape, resolve_model
from engine.model.model_shape import max_model_len, num_kv_blocks
from engine.plan import PlanSummary
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from flows.progress import Meter, Work
from kernels.kv_format import FLOAT32
from tasks.answers_seen import AnswersSeen
from tasks.workers import Computed

Ints = NDArray[np.int64]

PARTS = (0.1, 0.25, 0.5)
SECONDS_A_READING = 0.5


@dataclass(frozen=True)
class Device:
    """Rows that decode together, what the device sustains, and seconds of any step besides."""

    rows: int
    rates: DeviceRates
    own_seconds: float


DEVICES = {
    "processor-16": Device(16, DeviceRates(6e11, 6e11, 4e10), 0.001),
    "processor-256": Device(256, DeviceRates(6e11, 6e11, 4e10), 0.001),
    "gpu-256": Device(256, DeviceRates(4e13, 4e13, 1.1e10), 0.03),
}
MOST = 256


def geometric(draw: Generator, count: int) -> Ints:
    return draw.geometric(1 / 60, count)


def lognormal(draw: Generator, count: int) -> Ints:
    return np.ceil(draw.lognormal(3.5, 0.9, count)).astype(np.int64)


def narrow(draw: Generator, count: int) -> Ints:
    return np.maximum(1, np.round(draw.normal(100, 25, count))).astype(np.int64)


LENGTHS: dict[str, Callable[[Generator, int], Ints]] = {
    "geometric": geometric,
    "lognormal": lognormal,
    "narrow": narrow,
}
WORKLOADS = ("choice", "generate", "mixed")


@dataclass(frozen=True)
class Moment:
    """What a run had computed by `seconds`, and the answers that have ended since the moment before."""

    seconds: float
    computed: Computed
    ended: tuple[int, ...]


def requests_of(workload: str, device: Device, seed: int) -> list[Request]:
    groups = 72 if device.rows == 16 else 160
    asked = choice(groups=groups, degree=8, prefix=500, distinct=80, labels=4, label_tokens=3, seed=seed)
    answered = generate(groups=2 * groups, degree=8, prefix=64, distinct=16, output=MOST, seed=seed)
    rows = {"choice": asked, "generate": answered, "mixed": answered[: len(answered) // 2] + asked[: len(asked) // 2]}
    return [to_request(row | {"id": f"r{number}"}) for number, row in enumerate(rows[workload])]


def run_on(
    device: Device, cost: CostModel, requests: list[Request], lengths: dict[str, int], draw: Generator
) -> tuple[list[Moment], PlanSummary]:
    """Moments half a second apart, the last at the end of the run, and what the plan says of it."""
    config = EngineConfig(
        kv_cache_memory=2**33, max_num_batched_tokens=512, admission="count", max_num_seqs=device.rows
    )
    plan = make_plan(requests, config, cost)
    pool = BlockPool(num_kv_blocks(cost.shape, config, cost.kv_format), config.block_size)
    scheduler = Scheduler(config, pool, max_model_len(cost.shape, config))
    for shard in plan.shards:
        scheduler.add(shard_work(plan, shard, requests))
    now, steps, told = 0.0, 0, 0.0
    computed = Computed()
    ended: list[int] = []
    moments = []
    while scheduler.has_work():
        output = scheduler.schedule()
        assert output is not None
        steps += 1
        slow = 10 if steps == 1 else 1
        now += slow * (device.own_seconds + sum(cost.step_parts(output))) * draw.lognormal(0, 0.1)
        sampled = {}
        for key in output.sampling:
            sequence = scheduler.sequences[key]
            most = min(lengths[sequence.request.request_id], sequence.max_tokens)
            sampled[key] = Sampled(0, len(sequence.token_ids) + 1 >= most)
        done = scheduler.update(output, sampled)
        ended += [len(one.token_ids) for one in done if one.request.labels is None]
        computed = replace(
            computed,
            requests=computed.requests + len(done),
            prefill=computed.prefill + output.num_prefill_tokens,
            label=computed.label + output.num_label_tokens,
            decode=computed.decode + len(sampled),
            steps=steps,
            going=scheduler.going,
        )
        if now - told >= SECONDS_A_READING or not scheduler.has_work():
            moments.append(Moment(now, computed, tuple(ended)))
            told = now
            ended.clear()
    return moments, plan.summary


def promised(moments: list[Moment], work: Work, until: float) -> float:
    """What the bar said last by then of the whole run."""
    clock, answers, left = [0.0], AnswersSeen(), 0.0
    meter = Meter(work, answers, lambda: clock[0])
    meter.read(Computed())
    for moment in moments:
        if moment.seconds > until:
            break
        clock[0] = moment.seconds
        for tokens in moment.ended:
            reason = "stop" if tokens < MOST else "length"
            answers.take(RequestOutput("", reason, 0, token_ids=(0,) * tokens))
        left = meter.read(moment.computed).seconds_left or 0.0
    return clock[0] + left


def errors(workload: str, lengths: str, device: Device, seed: int) -> list[float]:
    """Of the whole as the bar said it at each of `PARTS`, as parts of the truth."""
    shape = load_shape(resolve_model("embedded"))
    cost = CostModel(shape, FLOAT32, device.rates, 4.0 * (shape.matmul_params + shape.head_params))
    draw = np.random.default_rng(seed)
    requests = requests_of(workload, device, seed)
    drawn = np.minimum(LENGTHS[lengths](draw, len(requests)), MOST).tolist()
    tokens = dict(zip([one.request_id for one in requests], drawn, strict=True))
    moments, plan = run_on(device, cost, requests, tokens, draw)
    texts = sum(one.labels is None for one in requests)
    work = Work(
        rows=len(requests),
        rows_done=0,
        requests=len(requests),
        prefill=plan.computed_tokens,
        label=plan.label_tokens,
        decode=MOST * texts,
        most=float(MOST) if texts else 0.0,
        prices=cost.prices(),
    )
    truth = moments[-1].seconds
    return [promised(moments, work, truth * part) / truth - 1 for part in PARTS]


def main(draws: int = 1) -> None:
    found = []
    for workload, lengths, (name, device), seed in product(WORKLOADS, LENGTHS, DEVICES.items(), range(draws)):
        found.append(errors(workload, lengths, device, seed))
        said = [f"{error:+.1%}" for error in found[-1]]
        typer.echo(json.dumps({"workload": workload, "lengths": lengths, "device": name, "seed": seed, "errors": said}))
    table = np.array(found)
    figures = {"rms": np.sqrt((table**2).mean(axis=0)), "mean": table.mean(axis=0), "worst": np.abs(table).max(axis=0)}
    typer.echo(json.dumps({kind: [f"{one:.1%}" for one in figure] for kind, figure in figures.items()}))


if __name__ == "__main__":
    typer.run(main)
