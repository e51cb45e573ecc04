"""What steps take: what was put in comes out, and the cost model stands where little ran."""

import numpy as np
import pytest

from engine.device_rates import DeviceRates
from engine.planning.cost import CostModel
from engine.planning.step_times import StepTimes
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import FLOAT32
from kernels.segments import Segment, Segments
from tests.engine.planning.test_virtual_run import SHAPE

COST = CostModel(SHAPE, FLOAT32, DeviceRates(100.0, 30.0, 50.0), weight_bytes=20.0)


def step(rows: int, context: int, reads: int) -> SchedulerOutput:
    """So many rows of one prompt behind `context` tokens, of which the first `reads` ask for logits."""
    positions = context + np.arange(rows)
    segments = Segments.of([Segment(0, rows, 0, context, 0), Segment(0, rows, context, context + rows, context)])
    sampled = Reads.samples(np.arange(reads), np.arange(reads))
    return SchedulerOutput(positions, positions, positions, segments, sampled, rows, 0, 0)


STEPS = [step(rows, context, reads) for rows in (1, 7, 30) for context in (3, 50, 400) for reads in (1, rows)]


def taken(step: SchedulerOutput, factors: tuple[float, ...]) -> float:
    return float(np.dot(factors, (1.0, *COST.step_parts(step))))


def test_before_any_step_the_cost_model_is_believed() -> None:
    assert StepTimes(COST).factors() == (0.0, 1.0, 1.0, 1.0, 1.0)


def test_what_steps_took_is_found() -> None:
    """With many steps the doubt is nothing, and the factors that made the times are those that are learnt."""
    truth = (0.25, 1.5, 3.0, 0.5, 2.0)
    times = StepTimes(COST)
    for _ in range(500):
        for one in STEPS:
            times.learn(one, taken(one, truth))
    assert times.factors() == pytest.approx(truth, rel=0.05)


def test_one_step_says_how_far_all_are_from_what_is_expected() -> None:
    """A step that took twice as long: so will others, whatever they are of."""
    times, [seen, *_] = StepTimes(COST), STEPS
    times.learn(seen, 2 * taken(seen, (0.0, 1.0, 1.0, 1.0, 1.0)))
    assert times.factors() == pytest.approx((0.0, 2.0, 2.0, 2.0, 2.0))


def test_no_part_takes_less_than_nothing() -> None:
    """Steps that were the faster the more they read: the best line falls, and is not taken."""
    times = StepTimes(COST)
    for one in STEPS * 50:
        times.learn(one, 10.0 - 0.01 * COST.step_parts(one)[3])
    assert min(times.factors()) >= 0
    assert times.num_steps == len(STEPS) * 50


def test_an_accident_is_forgotten() -> None:
    """The first step waits ten seconds for what is compiled: whatever comes then, it is told as if it had not."""
    truth = (0.25, 1.5, 3.0, 0.5, 2.0)
    for places in ({0}, {5}, {0, 40}):
        times, calm = StepTimes(COST), StepTimes(COST)
        for number, one in enumerate(STEPS * 8):
            seconds = taken(one, truth)
            calm.learn(one, seconds)
            times.learn(one, seconds * 200 if number in places else seconds)
        assert times.factors() == pytest.approx(calm.factors(), rel=0.15, abs=0.05)


def test_what_comes_again_is_no_accident() -> None:
    """Every fourth step takes ten times as long: so will the others, and the sum of all is what counts."""
    times = StepTimes(COST)
    expected = (0.0, 1.0, 1.0, 1.0, 1.0)
    total = 0.0
    for number in range(144):
        one = STEPS[0]
        seconds = taken(one, expected) * (10 if number % 4 == 0 else 1)
        total += seconds
        times.learn(one, seconds)
    assert 144 * taken(STEPS[0], times.factors()) == pytest.approx(total, rel=0.02)
