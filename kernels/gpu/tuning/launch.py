"""How every kernel here is launched, so that all that a model needs can be compiled before anything runs."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import triton

# Called with how many kernels are compiled, and how many there are.
Tell = Callable[[int, int], None]
_compiles_only: ContextVar[bool] = ContextVar("compiles_only", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Runs the kernel over the grid; within `compile_only` asks for its compilation alone."""
    if _compiles_only.get():
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


@contextmanager
def compile_only(tell: Tell, workers: int = 0) -> Iterator[None]:
    """Launches within it run nothing, and leave what they would write as it is. Their kernels are compiled beside each
    other by `workers` threads, if not given as many as this process has processors; all are there at the end.

    What a launch compiles follows from its arguments, so no list of a model's kernels has to be kept. Triton keeps
    them on disk by source, device and arguments: only the first time on a machine takes long.
    """
    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, "compile-kernel") as pool, triton.AsyncCompileMode(pool) as mode:
        token = _compiles_only.set(True)
        try:
            yield
        finally:
            _compiles_only.reset(token)
        for done, _ in enumerate(as_completed(mode.raw_futures), 1):
            tell(done, len(mode.raw_futures))
