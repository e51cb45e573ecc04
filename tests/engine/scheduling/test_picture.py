"""The picture in docs/how-it-works.md is what the planner and the scheduler make of its three prompts."""

from pathlib import Path

from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Segment
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config, plan_of, request, shard_work

PAGE = Path(__file__).parents[3] / "docs" / "how-it-works.md"
NUM_BLOCKS = 16


def picture(step: SchedulerOutput) -> str:
    columns = {
        "row": range(step.num_scheduled_tokens),
        "token": step.input_ids.tolist(),
        "position": step.position_ids.tolist(),
        "slot": ["-" if slot < 0 else slot for slot in step.slot_mapping.tolist()],
    }
    lines = [f"{name:<9}" + "".join(f"{value:>4}" for value in values) for name, values in columns.items()]
    return "\n".join([*lines, "", *map(line, step.segments)])


def line(segment: Segment) -> str:
    kept = "rows" if segment.in_step else "slots"
    rows, keys = f"{segment.row_start}-{segment.row_end}", f"{segment.kv_start}-{segment.kv_end}"
    return f"rows {rows:<5} read {kept:<5} {keys:<6} from position {segment.position}"


def test_the_page_shows_the_steps_of_its_prompts() -> None:
    labels = [[17], [18]]
    requests = [
        request("a", [10, 11, 12, 13], max_tokens=2),
        request("b", [10, 11, 12, 14, 15], max_tokens=2),
        request("c", [10, 11, 16], labels=labels),
    ]
    limits = config(NUM_BLOCKS, order="fcfs")
    plan = plan_of(requests, limits)
    scheduler = Scheduler(limits, BlockPool(NUM_BLOCKS, BLOCK), SHAPE.max_model_len)
    for shard in plan.shards:
        scheduler.add(shard_work(plan, shard, requests))
    steps = []
    for token in (20, 21):
        step = scheduler.schedule()
        assert step is not None
        steps.append(picture(step))
        unfinished = {key: Sampled(token, finished=token == 21) for key in scheduler.sequences}
        scheduler.update(step, unfinished)
    scheduler.check_integrity()
    page = PAGE.read_text()
    for step_picture in steps:
        assert step_picture in page, step_picture
