"""Kernels run in Triton's interpreter here, and what they allocate is NaN until it is written."""

import pytest


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    empty = torch.empty

    def nan(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() and made.itemsize > 1 else made

    monkeypatch.setattr(torch, "empty", nan)


@pytest.fixture(autouse=True, scope="session")
def wide_sums() -> None:
    """The interpreter keeps bfloat16 as 16 bits and multiplies those; matrix units take their values, and so do we."""
    import numpy as np
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot
