"""Requests planned and run on an engine, with the time that both take."""

import time
from dataclasses import dataclass, replace

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.errors import UserError
from engine.loop.batch import plan_requests, run_plan
from engine.loop.engine import Engine
from engine.plan import Plan
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan
from engine.request import Request, RequestOutput

# dtype and quantization of each precision that a benchmark can name.
PRECISIONS = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("float32", "int8"),
    "bfloat16+int8": ("bfloat16", "int8"),
}


@dataclass(frozen=True, slots=True)
class TimedRun:
    """`seconds` cover planning and running; `flops` are the plan's, in matmuls and attention."""

    seconds: float
    plan: Plan
    outputs: list[RequestOutput]
    flops: float

    def ceiling_fraction(self, flops_per_second: float) -> float:
        """The time that the plan's FLOPs would take at a rate, over the time taken."""
        return self.flops / flops_per_second / self.seconds


def time_run(engine: Engine, requests: list[Request]) -> TimedRun:
    """Raises UserError where a row fails."""
    started = time.perf_counter()
    plan = plan_requests(engine, requests)
    outputs = run_plan(engine, plan, requests)
    seconds = time.perf_counter() - started
    failed = [output for output in outputs if output.finish_reason == "error"]
    if failed:
        raise UserError(f"{len(failed)} rows failed, the first {failed[0].request_id}: {failed[0].error_message}")
    return TimedRun(seconds, plan, outputs, plan_flops(engine, requests))


def plan_flops(engine: Engine, requests: list[Request]) -> float:
    """The seconds that a device of one FLOP/s and endless bandwidth would take."""
    cost = CostModel(engine.runner.model.shape, engine.runner.cache.kv_format, DeviceRates(1.0, 1.0))
    return make_plan(requests, engine.config, cost).summary.expected_seconds


def precise(config: EngineConfig, precision: str) -> EngineConfig:
    """Raises UserError for a precision that has no name here."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    dtype, quantization = PRECISIONS[precision]
    return replace(config, dtype=dtype, quantization=quantization)  # type: ignore[arg-type]
