"""Memory in pages of 2 MiB, for what is large and lives long: weights, KV, activations.

With pages of 4 KiB the first touch of each costs a fault, and matmuls that walk over hundreds of megabytes miss the
address cache at every turn.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2**21
# A matmul takes several rows at once, and may read behind the last.
SPARE_ROWS = 16


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, resident only where it has been written."""
    size = math.prod(shape) * dtype.itemsize
    if size < PAGE:
        return torch.empty(tuple(shape), dtype=dtype)
    region = mmap.mmap(-1, -(size // -PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Elsewhere than on Linux, and on a kernel built without them, the pages are the usual ones.
    with suppress(AttributeError, OSError):
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=dtype, count=math.prod(shape)).view(tuple(shape))


def moved(tensor: Tensor) -> Tensor:
    """A copy in large pages."""
    return empty(tensor.shape, tensor.dtype).copy_(tensor)


class Workspace:
    """Buffers that every layer of every step writes anew; each is as large as the largest step needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def rows(self, use: str, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """(count, width), contiguous, with readable memory behind it: the one buffer for this use."""
        size = (count + SPARE_ROWS) * width * dtype.itemsize
        buffer = self._buffers.get(use)
        if buffer is None or buffer.nbytes < size:
            buffer = self._buffers[use] = empty((size,), torch.uint8)
        return buffer[: count * width * dtype.itemsize].view(dtype).view(count, width)
