"""Sums of hidden states: by key, over any number of rows, each apart from the others."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from engine.forward import pooler
from engine.forward.model_runner import ModelRunner
from engine.forward.pooler import launch_sums
from engine.scheduling.hidden_reads import from_digits
from engine.scheduling.reads import Reads


class OnTheHost:
    """As much of a runner as sums need."""

    def index(self, places: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(places))


def summed(hidden: torch.Tensor, places: list[int], keys: list[int], weights: list[int]) -> dict[int, torch.Tensor]:
    parts = [
        Reads.hidden(np.array([row]), key, np.array([weight]))
        for row, (key, weight) in enumerate(zip(keys, weights, strict=True))
    ]
    made = launch_sums(cast(ModelRunner, OnTheHost()), hidden, np.array(places, dtype=np.int64), Reads.of([], *parts))
    found: dict[int, torch.Tensor] = {}
    for pooled in made:
        for key, part in zip(pooled.keys.tolist(), pooled.sums, strict=True):
            found[key] = found.get(key, torch.zeros(hidden.shape[1])) + part
    return found


@pytest.mark.parametrize("most", [1, 2, 3, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_weighted_and_by_key(monkeypatch: pytest.MonkeyPatch, most: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(pooler, "POOLED_ROWS", most)
    hidden = torch.arange(1.0, 13.0).reshape(4, 3).to(dtype)
    found = summed(hidden, [0, 1, 3, 0], [7, 7, 8, 9], [1, 2, 5, 1])
    wanted = {7: hidden[0] + 2 * hidden[1], 8: 5 * hidden[3], 9: hidden[0]}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == torch.float32
        assert found[key].tolist() == value.tolist()


def test_a_row_that_is_not_finite_is_its_own_keys_alone() -> None:
    hidden = torch.ones(3, 64)
    hidden[1] = torch.nan
    found = summed(hidden, [0, 1, 2], [1, 2, 3], [1, 1, 1])
    assert [bool(found[key].isfinite().all()) for key in (1, 2, 3)] == [True, False, True]


def test_nothing_is_made_of_nothing() -> None:
    assert (
        launch_sums(cast(ModelRunner, OnTheHost()), torch.ones(2, 4), np.empty(0, dtype=np.int64), Reads.of([])) == []
    )


def test_exact_sums_are_the_same_in_any_parts() -> None:
    """In digits, whatever the parts and their order; what is dropped is less than a float32 sees."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 48, generator=generator) * torch.logspace(-6, 3, 48)
    runner = cast(ModelRunner, OnTheHost())

    def total(order: list[int], cut: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        made = []
        for part in (order[:cut], order[cut:]):
            reads = [Reads.hidden(np.array([row]), 7, np.array([row + 1])) for row in part]
            places = np.array(part, dtype=np.int64)
            made += launch_sums(runner, hidden, places, Reads.of([], *reads), exact=True)
        return from_digits(sum(pooled.sums.numpy()[0] for pooled in made))

    forth, back = total(list(range(200)), 60), total(list(range(199, -1, -1)), 133)
    assert forth.tobytes() == back.tobytes()
    wanted = (hidden.double() * torch.arange(1, 201)[:, None]).sum(0).numpy()
    assert np.allclose(forth, wanted, rtol=1e-7, atol=1e-9)
