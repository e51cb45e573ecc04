"""Kernels run in Triton's interpreter here, and what they allocate is NaN until it is written."""

import os
from collections.abc import Iterator

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any is imported


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    empty = torch.empty

    def nan(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() and made.itemsize > 1 else made

    monkeypatch.setattr(torch, "empty", nan)
    yield
