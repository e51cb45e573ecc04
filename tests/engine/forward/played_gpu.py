"""A GPU that the CPU plays: Triton's interpreter runs its kernels, and a graph is a function that runs again."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.forward.forward_output import Forward
from engine.machine.device import Device
from kernels.backend import Backend


class PlayedGpu(Device):
    @property
    def backend(self) -> Backend:
        return "triton"


def played_gpu(dtype: str = "float32") -> PlayedGpu:
    return PlayedGpu("cpu", dtype, "played")


class _Capturing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return function(*args, **(kwargs or {}))


class PlayedCapture:
    """What CUDA graphs do: the result's tensors stay where they are, and are overwritten when it runs again. A number
    that is read back meanwhile ends the capture.

    `replays` is how often each captured step ran.
    """

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, run: Callable[[], Forward]) -> tuple[Callable[[], None], Forward]:
        with _Capturing():
            made = run()
        place = len(self.replays)
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
