"""What a runner asks of a device's way to record a step and to repeat it."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engine.forward.forward_output import Forward
from engine.scheduling.scheduler_output import SchedulerOutput


class NotRecorded(Exception):
    """There is no memory to record a step in; none of its size is taken from now on.

    Seen as: nothing; such steps run without being recorded.
    """


class StepRecorder(Protocol):
    """Runs steps as the model would, but launches again what a step before launched where the two are alike."""

    def sizes(self, most: int, /) -> Sequence[int]:
        """Rows of the decode steps to run before the first request, where steps have at most `most` rows."""

    def rehearse(self, step: SchedulerOutput, /) -> None:
        """Launches what recording the step would, so that what is built once is built; records nothing."""

    def takes(self, step: SchedulerOutput, last_tokens: Tensor, /) -> bool:
        """Whether `run` takes the step; one that it does not take is the model's own to run."""

    def run(self, step: SchedulerOutput, last_tokens: Tensor, /) -> Forward:
        """The step's result, which lasts until the next run; `last_tokens` are what the step before sampled.

        Raises NotRecorded for a step that is then the model's own to run.
        """
