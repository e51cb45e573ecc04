"""What steps take on a device, learnt from those that it has run."""

import numpy as np

from engine.planning.cost import CostModel
from engine.scheduling.scheduler_output import SchedulerOutput

# That all parts are as far from what is expected counts as so many steps.
DOUBTED_STEPS = 2.0
NUM_FACTORS = 5


class StepTimes:
    """A step takes the same of its own, and what its parts take by the cost model, each times a factor of its own.

    Least squares over the steps so far, no factor below 0. A step weighs one over its expected time: the error of a sum
    over steps is what counts, and it grows with their time. Before anything is learnt, a step takes what is expected;
    until much is, all parts are as far from it as all steps are.
    """

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self.rates = cost.rates
        self._squares = np.zeros((NUM_FACTORS, NUM_FACTORS))
        self._products = np.zeros(NUM_FACTORS)
        self._seconds = self._expected = 0.0
        self.num_steps = 0

    def learn(self, step: SchedulerOutput, seconds: float) -> None:
        """`step` took so long."""
        parts = np.array([1.0, *self._cost.step_parts(step)])
        expected = max(float(parts[1:].sum()), 1e-9)
        weight = 1.0 / expected
        self._squares += weight * np.outer(parts, parts)
        self._products += weight * seconds * parts
        self._seconds += seconds
        self._expected += expected
        self.num_steps += 1

    def factors(self) -> tuple[float, ...]:
        """Seconds of any step, then a factor for each of `CostModel.step_parts`."""
        level = self._seconds / self._expected if self.num_steps else 1.0
        alike = level * np.array([0.0, 1.0, 1.0, 1.0, 1.0])
        doubt = DOUBTED_STEPS * np.diag(self._squares) / max(self.num_steps, 1)
        squares = self._squares + np.diag(doubt)
        products = self._products + doubt * alike
        factors = alike.copy()
        free = np.diag(squares) > 0
        while free.any():
            factors[free] = np.linalg.lstsq(squares[np.ix_(free, free)], products[free], rcond=None)[0]
            lowest = int(np.argmin(np.where(free, factors, 0.0)))
            if factors[lowest] >= 0:
                break
            factors[lowest], free[lowest] = 0.0, False
        return tuple(factors.tolist())
