"""Times three workloads on an engine and says what each was expected to take when a tenth of it had passed, and more.

    python -m tests.flows.predict_runs --model embedded

On a machine that others use, `--processor-time` with OMP_NUM_THREADS=1 counts what this process computes alone.

A line of JSON a workload. `simulated` runs the scheduler on the cost model's clock, with what steps took so far
(`engine.planning.step_times`) and answers as long as those so far say (`engine.scheduling.answer_lengths`); `progress`
is what the run's bar promised when a tenth, a quarter and a half had passed (`flows.progress`); `before` is the
simulation of a device whose rates were measured while it loaded, and that has run nothing. `truth` is what the whole
took, from the first step to the last.

Answers are cut where a draw says, which neither prediction knows: to them each may have its `most` tokens.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import typer

from engine.bench.workload import Rows, choice, generate, to_request
from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.loop.plan_cost import plan_cost
from engine.model.checkpoint import resolve_model
from engine.plan import PlanSummary
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.planning.step_times import StepTimes
from engine.planning.virtual_run import run_virtually
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling.answer_lengths import AnswerLengths
from engine.scheduling.scheduler_output import SchedulerOutput
from flows.progress import Meter, Work
from tasks.answers_seen import AnswersSeen
from tasks.workers import Computed

# Of a run: when the bar is asked.
PARTS = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Workload:
    """Requests as they may become, and how many tokens each answer has in truth."""

    requests: list[Request]
    answer_tokens: dict[str, int]

    @property
    def run(self) -> list[Request]:
        return [self._cut(request) for request in self.requests]

    def _cut(self, request: Request) -> Request:
        if request.labels is not None:
            return request
        tokens = self.answer_tokens[request.request_id]
        return replace(request, params=SamplingParams(max_tokens=tokens, ignore_eos=True))


def drawn(rows: Rows, mean: int) -> Workload:
    """Answers end at one rate, as those of a model that may stop at any token; none passes its `max_tokens`."""
    draw = np.random.default_rng(0)
    requests = list(map(to_request, rows))
    lengths = {
        one.request_id: int(min(draw.geometric(1 / mean), one.max_tokens)) for one in requests if one.labels is None
    }
    return Workload(requests, lengths)


def workloads(scale: float) -> dict[str, Workload]:
    def some(count: int) -> int:
        return max(1, round(count * scale))

    labelled = choice(groups=some(24), degree=8, prefix=500, distinct=80, labels=4, label_tokens=3)
    answered = generate(groups=some(24), degree=8, prefix=64, distinct=16, output=96)
    both = generate(groups=some(12), degree=8, prefix=300, distinct=60, output=64, seed=1)
    asked = choice(groups=some(12), degree=8, prefix=300, distinct=60, labels=4, label_tokens=3, seed=2)
    mixed = [row | {"id": f"{kind}-{row['id']}"} for kind, rows in (("g", both), ("c", asked)) for row in rows]
    return {"choice": drawn(labelled, 1), "generate": drawn(answered, 48), "mixed": drawn(mixed, 32)}


def counted(engine: Engine) -> Computed:
    """All that it ever computed."""
    now = engine.counters()
    return Computed(now.finished_requests, now.computed_prompt_tokens, now.label_tokens, now.generated_tokens)


class Watched:
    """What an engine's steps were, when they ended, and how long their answers were by then."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self.engine, self.clock = engine, clock
        self.before = counted(engine)
        self.steps: list[tuple[float, SchedulerOutput, float]] = []
        self.counted: list[tuple[float, Computed]] = []
        self.lengths: list[tuple[float, dict[str, int]]] = []
        self.started = clock()

    def took(self, step: SchedulerOutput, _: float) -> float:
        now = self.clock() - self.started
        self.steps.append((now, step, now - (self.steps[-1][0] if self.steps else 0.0)))
        # What the engine has counted by now is all before this step.
        self.counted.append((now, counted(self.engine) - self.before))
        going = {one.request.request_id: len(one.token_ids) for one in self.engine.scheduler.sequences.values()}
        self.lengths.append((now, going))
        return 0.0


def predictions(engine: Engine, cost: CostModel, load: Workload, clock: Callable[[], float]) -> dict[str, Any]:
    """What was expected of a run, and what came."""
    watched = Watched(engine, clock)
    engine.took = watched.took
    run = load.run
    plan = plan_requests(engine, load.requests)  # whose order is not to know the lengths
    watched.started = clock()
    run_plan(engine, plan, run)
    truth = watched.steps[-1][0]
    at = next(number for number, (when, _, _) in enumerate(watched.steps) if when >= truth / 10)
    learnt = StepTimes(cost)
    for _, step, seconds in watched.steps[: at + 1]:
        learnt.learn(step, seconds)
    taught = replace(cost, step_factors=learnt.factors())
    shapes = make_plan(load.requests, engine.config, cost)
    works = [shard_work(shapes, shard, load.requests) for shard in shapes.shards]
    lengths = expected_lengths(load, watched.lengths[at][1])
    simulated = run_virtually(works, engine.config, taught, answer_tokens=lengths).seconds
    known = run_virtually(works, engine.config, taught, answer_tokens=load.answer_tokens).seconds
    before = run_virtually(works, engine.config, replace(cost, step_factors=())).seconds
    return {
        "truth": truth,
        "steps": len(watched.steps),
        "simulated": simulated,
        "lengths_known": known,
        "progress": [promised(load, watched, truth * part, shapes.summary) for part in PARTS],
        "before": before,
        "mean_tokens": float(np.mean([*load.answer_tokens.values()] or [0])),
        "expected_tokens": float(np.mean([*lengths.values()] or [0])),
        "factors": learnt.factors(),
    }


def expected_lengths(load: Workload, going: dict[str, int]) -> dict[str, int]:
    """Each answer's: what it was, of those that have ended; else what those and the others so far say."""
    most = {one.request_id: one.max_tokens for one in load.requests if one.labels is None}
    done = {name: tokens for name, tokens in load.answer_tokens.items() if name not in going}
    stopped = [tokens for name, tokens in done.items() if tokens < most[name]]
    cut = [tokens for name, tokens in done.items() if tokens >= most[name]]
    left = {name: tokens for name, tokens in going.items() if name in most}
    lengths = AnswerLengths(stopped, [*cut, *left.values()])
    expected = lengths.expected([*left.values()], [most[name] for name in left])
    return done | dict(zip(left, expected.tolist(), strict=True))


def promised(load: Workload, watched: Watched, until: float, plan: PlanSummary) -> float:
    """What the bar said last, all in all: it is told every half a second, and of each answer that ends."""
    most = {one.request_id: one.max_tokens for one in load.requests if one.labels is None}
    work = Work(
        rows=len(load.requests),
        rows_done=0,
        requests=len(load.requests),
        prefill=plan.computed_tokens,
        label=plan.label_tokens,
        decode=sum(most.values()),
        most=float(np.mean([*most.values()] or [0])),
    )
    clock, left, answers, going = [0.0], 0.0, AnswersSeen(), most.keys()
    meter = Meter(work, answers, lambda: clock[0])
    meter.read(Computed())
    ends = [computed for _, computed in watched.counted[1:]]
    for (now, lengths), computed in zip(watched.lengths, ends, strict=False):
        if now > until:
            break
        if now - clock[0] < 0.5:
            continue
        clock[0] = now
        for name in going - lengths.keys():
            tokens = load.answer_tokens[name]
            reason = "stop" if tokens < most[name] else "length"
            answers.take(RequestOutput(name, reason, 0, token_ids=(0,) * tokens))
        going = going & lengths.keys()
        texts = tuple(lengths[name] for name in going if lengths[name])
        left = meter.read(replace(computed, going=texts)).seconds_left or 0.0
    return clock[0] + left


def main(
    model: Annotated[str, typer.Option()] = "embedded",
    scale: float = 1.0,
    kv_gib: float = 0.5,
    rounds: int = 1,
    processor_time: Annotated[bool, typer.Option(help="Of this process, on a machine that others use.")] = False,
) -> None:
    clock = time.process_time if processor_time else time.perf_counter
    files = resolve_model(model)
    config = EngineConfig(
        kv_cache_memory=int(kv_gib * 2**30), max_num_batched_tokens=512, admission="count", max_num_seqs=16
    )
    engine = build_engine(files, config, detokenize=False)
    shape = engine.runner.model.shape
    cost = plan_cost(files, shape, engine.config, engine.runner.device)
    try:
        for _ in range(rounds):
            for name, load in workloads(scale).items():
                said = predictions(engine, cost, load, clock)
                errors = {
                    kind: [f"{one / said['truth'] - 1:+.1%}" for one in np.atleast_1d(said[kind])]
                    for kind in ("simulated", "lengths_known", "progress", "before")
                }
                typer.echo(json.dumps({"workload": name, "errors": errors, **said}))
    finally:
        engine.close()


if __name__ == "__main__":
    typer.run(main)
