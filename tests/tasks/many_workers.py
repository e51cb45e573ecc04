"""Times a workload on one worker, and on several that have as many cores each.

    python -m engine.bench.workload generate --groups 8 --degree 16 --prefix 1024 --distinct 64 --output 32 > rows.jsonl
    python -m tests.tasks.many_workers rows.jsonl --workers 2 --rounds 3

With `--ray` the workers of both sides are actors of a Ray of this machine's own. Sides alternate. The last line printed
is JSON, with medians: seconds from the first shard's start to the last one's end, with the models loaded; the
processor's own time of the worker that had the most, which others on the machine disturb less; and prompt tokens that
sharing saved. All rows must have an answer on both sides.
"""

import json
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import typer

from engine.bench.workload import read_workload
from engine.config import EngineConfig
from engine.loop.plan_cost import plan_cost
from engine.machine.device import resolve_device
from engine.machine.place import Place, places
from engine.model.checkpoint import load_shape, resolve_model
from engine.plan import Plan
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from flows.in_flight import run_in_flight
from tasks.cluster.asked_model import AskedModel
from tasks.dispatch import Dispatch, Turn
from tasks.engine_process.engine_process import SERVER, EngineProcess
from tasks.error_limit import ErrorLimit
from tasks.job.job_file import parse_job
from tasks.many_engines import ManyEngines
from tasks.plan import SHARDS_A_WORKER
from tests.tasks.fakes import job_content

CONFIG = EngineConfig(device="cpu", dtype="float32")


class Side:
    """The workload on workers in these places."""

    def __init__(
        self, requests: list[Request], model: str, here: tuple[Place, ...], cores: int, *, on_ray: bool
    ) -> None:
        self.seconds: list[float] = []
        self.own_seconds: list[float] = []
        self.computed: list[int] = []
        self.answers: dict[str, tuple[int, ...]] = {}
        self.here = here
        self._requests = requests
        self._asked = AskedModel(model, resolve_model(model))
        self._model = self._asked.here
        self._on_ray = on_ray
        self._cores = cores

    def plan(self, config: EngineConfig) -> Plan:
        device = resolve_device(config).shared_by(self._cores)
        cost = plan_cost(self._model, load_shape(self._model), config, device)
        least = SHARDS_A_WORKER * len(self.here) if len(self.here) > 1 else 1
        return make_plan(self._requests, config, cost, min_shards=least)

    def run(self) -> Plan:
        with self._workers() as workers, ThreadPoolExecutor() as threads:
            workers.start()
            plan = self.plan(workers.config())
            job = parse_job(job_content(Path(), {"csv": "none.csv"}), "none")
            dispatch = Dispatch(plan.shards, workers, ErrorLimit(job), job.max_engine_deaths)
            outputs: list[RequestOutput] = []

            def compute(turn: Turn) -> None:
                outputs.extend(turn.worker.submit(shard_work(plan, turn.shard, self._requests)).result())

            def finished(turn: Turn, future: "Future[None]") -> bool:
                dispatch.ended(turn)
                future.result()
                return True

            before = _own_seconds()
            started = time.perf_counter()
            run_in_flight(dispatch.next, lambda turn: threads.submit(compute, turn), finished, lambda: None)  # type: ignore[arg-type, return-value]
            self.seconds.append(time.perf_counter() - started)
            self.own_seconds.append(max(now - then for now, then in zip(_own_seconds(), before, strict=True)))
            self.computed.append(workers.totals().prefill)
        self.answers = {output.request_id: output.token_ids for output in outputs}
        return plan

    def _workers(self) -> AbstractContextManager[ManyEngines]:
        if self._on_ray:
            from tasks.ray_cluster.ray_workers import ray_workers

            return ray_workers(self._asked, CONFIG, None, len(self.here), self.here)
        return ManyEngines([EngineProcess(self._model, CONFIG, place=place, label=str(place)) for place in self.here])


def _own_seconds() -> list[float]:
    """Of the processor, by each of this process's engines."""
    below = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in below if SERVER in " ".join(child.cmdline())]
    return [each.user + each.system for each in times]


def main(workload: Path, workers: int = 2, rounds: int = 3, model: str = "embedded", ray: bool = False) -> None:
    requests = read_workload(workload)
    parts = places(CONFIG, workers)
    sides = [Side(requests, model, parts[:number], workers, on_ray=ray) for number in (1, workers)]
    for _ in range(rounds):
        for side in sides:
            plan = side.run()
            report = {"workers": len(side.here), "shards": len(plan.shards), "seconds": round(side.seconds[-1], 2)}
            report |= {"own_seconds": round(side.own_seconds[-1], 2)}
            typer.echo(json.dumps(report | {"computed_prompt_tokens": side.computed[-1]}))
    typer.echo(json.dumps(_figures(*sides, requests)))


def _figures(one: Side, several: Side, requests: list[Request]) -> dict[str, Any]:
    prompt = sum(len(request.prompt_token_ids) for request in requests)
    seconds = [statistics.median(side.seconds) for side in (one, several)]
    own = [statistics.median(side.own_seconds) for side in (one, several)]
    saved = [prompt - statistics.median(side.computed) for side in (one, several)]
    same = sum(one.answers[name] == several.answers[name] for name in one.answers)
    assert len(one.answers) == len(several.answers) == len(requests)
    return {
        "seconds": [round(each, 2) for each in seconds],
        "times": round(seconds[0] / seconds[1], 3),
        "own_seconds": [round(each, 2) for each in own],
        "own_times": round(own[0] / own[1], 3),
        "saved_tokens": [int(each) for each in saved],
        "saved_less": round(1 - saved[1] / saved[0], 4),
        "same_answers": same / len(requests),
        "rows": len(requests),
    }


if __name__ == "__main__":
    typer.run(main)
