"""What steps take on a device, learnt from those that it has run."""

from engine.planning.cost import CostModel
from engine.planning.part_times import PartTimes
from engine.scheduling.scheduler_output import SchedulerOutput

NUM_FACTORS = 5


class StepTimes:
    """A step takes the same of its own, and what its parts take by the cost model, each times a factor of its own.

    Before anything is learnt, a step takes what is expected (`engine.planning.part_times`).
    """

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self.rates = cost.rates
        self._times = PartTimes((0.0, 1.0, 1.0, 1.0, 1.0))
        self.num_steps = 0

    def learn(self, step: SchedulerOutput, seconds: float) -> None:
        """`step` took so long."""
        self._times.learn((1.0, *self._cost.step_parts(step)), seconds)
        self.num_steps += 1

    def factors(self) -> tuple[float, ...]:
        """Seconds of any step, then a factor for each of `CostModel.step_parts`."""
        return tuple(self._times.factors().tolist())
