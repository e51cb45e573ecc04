"""A GPU that the CPU plays: Triton's interpreter runs its kernels, and a graph is a function that runs again."""

from collections.abc import Callable

import torch

from engine.forward.forward_output import Forward
from engine.machine.device import Device
from kernels.backend import Backend


class PlayedGpu(Device):
    @property
    def backend(self) -> Backend:
        return "triton"


def played_gpu(dtype: str = "float32") -> PlayedGpu:
    return PlayedGpu("cpu", dtype, "played")


class PlayedCapture:
    """What CUDA graphs do: the result's tensors stay where they are, and are overwritten when it runs again.

    `replays` is how often each captured step ran.
    """

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, run: Callable[[], Forward]) -> tuple[Callable[[], None], Forward]:
        made, place = run(), len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[place] += 1
            again = run()
            made.hidden.copy_(again.hidden)
            assert made.best is not None
            assert again.best is not None
            for before, now in zip(made.best, again.best, strict=True):
                before.copy_(now)

        made.hidden.fill_(torch.nan)  # what was captured has not run
        return replay, made
