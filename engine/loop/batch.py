"""Plans and runs a list of requests on one engine, in this process."""

from engine.loop.engine import Engine
from engine.loop.plan_cost import step_weight_bytes
from engine.machine.expected_rates import expected_rates
from engine.plan import Plan
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput


def plan_requests(engine: Engine, requests: list[Request]) -> Plan:
    """Under the engine's own limits and policies."""
    runner, shape = engine.runner, engine.runner.model.shape
    rates = expected_rates(runner.device)
    cost = CostModel(shape, runner.cache.kv_format, rates, step_weight_bytes(shape, engine.config, runner.device))
    adapters = runner.adapters.sizes({request.adapter for request in requests if request.adapter is not None})
    return make_plan(requests, engine.config, cost, adapters=adapters)


def run_plan(engine: Engine, plan: Plan, requests: list[Request]) -> list[RequestOutput]:
    """All shards at once: the engine's own order decides. Outputs come in the plan's order."""
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    return [output for future in futures for output in future.result()]
