"""Plans and runs a list of requests on one engine, in this process."""

from engine.loop.engine import Engine
from engine.plan import Plan
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput


def plan_requests(engine: Engine, requests: list[Request]) -> Plan:
    """Under the engine's own limits and policies."""
    return make_plan(
        requests,
        engine.runner.model.shape,
        engine.config,
        kv_format=engine.runner.cache.kv_format,
        flops_per_second=engine.runner.device.flops_per_second,
    )


def run_plan(engine: Engine, plan: Plan, requests: list[Request]) -> list[RequestOutput]:
    """All shards at once: the engine's own order decides. Outputs come in the plan's order."""
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    return [output for future in futures for output in future.result()]
