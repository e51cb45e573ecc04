from dataclasses import replace

from engine.bench.schedule import time_schedule
from engine.config import EngineConfig
from engine.model.checkpoint import load_shape, resolve_model


def test_cost_grows_with_requests_and_no_faster() -> None:
    shape = replace(load_shape(resolve_model("embedded")), max_model_len=1024)
    small, large = (time_schedule(count, shape, EngineConfig()) for count in (400, 3200))
    assert (small["requests"], large["requests"]) == (400, 3200)
    assert large["steps"] > small["steps"]
    assert [one["planned_steps"] for one in (small, large)] == [small["steps"], large["steps"]]
    # Eight times the requests: quadratic would be 64 times the time. A machine with other work pauses now and then.
    again = [time_schedule(count, shape, EngineConfig()) for count in (400, 3200, 3200)]
    rounds = ((small, again[0]), (large, *again[1:]))
    spent = [min(one["plan_seconds"] + one["schedule_seconds"] for one in each) for each in rounds]
    assert spent[1] < 24 * spent[0] + 0.5
