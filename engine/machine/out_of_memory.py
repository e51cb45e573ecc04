"""How a device, and the host, say that their memory is at its end."""

import errno

import torch

# torch's allocator for a CPU, a C++ library's, a driver's and a GPU library's own.
_SAY_SO = ("can't allocate memory", "not enough memory", "std::bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(problem: BaseException) -> bool:
    """On a GPU or on the host."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(problem, OSError):
        return problem.errno == errno.ENOMEM
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _SAY_SO)
