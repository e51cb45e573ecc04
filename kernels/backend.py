"""The one place that chooses between Triton's kernels and the rest, by device."""

import importlib.util
from typing import Literal

import torch

Backend = Literal["triton", "torch"]


def backend_of(device: torch.device | str) -> Backend:
    """`triton` on a GPU, if it is installed there; else torch, whose place compiled loops take on the CPU.

    Triton's interpreter is for tests, which name it themselves: on a CPU torch is faster by orders of magnitude.
    """
    on_gpu = torch.device(device).type == "cuda"
    return "triton" if on_gpu and importlib.util.find_spec("triton") is not None else "torch"
