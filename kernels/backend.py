"""The one place that chooses between Triton's kernels and the rest, by device."""

import importlib.util
from typing import Literal

Backend = Literal["triton", "torch"]


def backend_of(device: object) -> Backend:
    """`triton` on a GPU (`cuda:0`), if it is installed there; else torch, in whose place loops are compiled on the CPU.

    Triton's interpreter is for tests, which name it themselves: on a CPU torch is faster by orders of magnitude.
    """
    on_gpu = str(device).startswith("cuda")
    return "triton" if on_gpu and importlib.util.find_spec("triton") is not None else "torch"
