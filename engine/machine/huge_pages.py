"""Memory in pages of 2 MiB, for what is large and lives long: weights, KV, activations.

With pages of 4 KiB the first touch of each costs a fault, and matmuls that walk over hundreds of megabytes miss the
address cache at every turn.
"""

import ctypes
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """Buffers that every layer of every step writes anew; each is as large as the largest step needed.

    `moves` counts how often one was made, or made larger, and so where another had not been.
    """

    def __init__(self) -> None:
        self.moves = 0
        self._buffers: dict[str, Tensor] = {}

    def rows(self, use: str, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """(count, width), contiguous, with readable memory behind it: the one buffer for this use."""
        size = (count + SPARE_ROWS) * width * dtype.itemsize
        buffer = self._buffers.get(use)
        if buffer is None or buffer.nbytes < size:
            buffer = self._buffers[use] = empty((size,), torch.uint8)
            self.moves += 1
        return buffer[: count * width * dtype.itemsize].view(dtype).view(count, width)


def leave_files(modules: Sequence[nn.Module]) -> int:
    """Copies weights out of mapped files of which they are less than half; returns the bytes copied.

    One tensor left in a mapping keeps all of it resident, so that weights which were fused or quantised would be held
    twice. Where a file is mostly in use, its pages stay: they are shared, and the kernel may drop them.
    """
    found = {
        id(t): t for module in modules for t in (*module.parameters(), *module.buffers()) if t.device.type == "cpu"
    }
    copies: dict[int, Tensor] = {}
    drop_file_pages()
    for first, last in _mapped_files():
        inside = [tensor for tensor in found.values() if first <= tensor.data_ptr() < last]
        if 2 * sum({tensor.data_ptr(): tensor.nbytes for tensor in inside}.values()) >= last - first:
            continue
        for tensor in inside:
            start = tensor.data_ptr()
            copies[start] = tensor.data = copies[start] if start in copies else moved(tensor.data)
    return sum(copy.nbytes for copy in copies.values())


def drop_file_pages() -> None:
    """Gives back what is resident of mapped weight files; a page that is read again comes from the system's cache.

    For the moments in which weights are held twice. Nothing is lost: nobody writes into these mappings.
    """
    for first, last in _mapped_files():  # none but on Linux, whose libc has madvise
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of safetensors that are mapped; none where the system does not say."""
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
        return [(int(first, 16), int(last, 16)) for first, last in ranges]
    return []
