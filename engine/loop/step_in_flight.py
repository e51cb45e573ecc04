"""A step between its launch and the moment when the scheduler has its tokens."""

from dataclasses import dataclass
from itertools import pairwise

from engine.loop.step_launcher import LaunchedStep
from engine.loop.trace import StepTrace
from engine.scheduling.lost_rows import LostRows


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A launched step, and what is lost with rows of it that no memory was found for.

    `held` were running, unfinished and KV bytes behind the scheduling; `budget` is the tokens and KV bytes that a step
    may have; `times` are when scheduling began and ended, and when all was launched.
    """

    launched: LaunchedStep
    lost: LostRows
    held: tuple[int, int, int]
    budget: tuple[int, int]
    times: tuple[float, float, float]

    def trace(self, number: int, taking: tuple[float, float, float]) -> StepTrace:
        """What it did and took; `taking`: when it was waited for, taken, and with the scheduler."""
        step, (running, unfinished, kv_bytes) = self.launched.step, self.held
        scheduled, launched = (1000 * (after - before) for before, after in pairwise(self.times))
        computed = 1000 * self.launched.forward_seconds
        taken, updated = (1000 * (after - before) for before, after in pairwise(taking))
        return StepTrace(
            step=number,
            prefill_tokens=step.num_prefill_tokens + step.num_forced_tokens,
            decode_tokens=step.num_decode_tokens,
            label_tokens=step.num_label_tokens,
            running=running,
            waiting=unfinished - running,
            kv_bytes=kv_bytes,
            schedule_ms=scheduled + updated,
            model_ms=computed,
            sample_ms=launched - computed + taken,
            step_tokens=self.budget[0],
            kv_budget_bytes=self.budget[1],
        )
