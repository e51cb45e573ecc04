"""The compiled softmax of a block against float64."""

from typing import Any

import numpy as np
import pytest
from numba import njit

from kernels.openmp import lines_of
from kernels.softmax import LOWEST, STEPS, highest, paired_weights, weights

LANES = 32
_highest, _weights, _paired = highest(2, masked=False), weights(2), paired_weights(2)


@njit
def run(paired: bool, scores: Any, factor: Any, pivot: Any, made: Any, sums: Any) -> None:
    count = len(scores) // LANES
    room, edge = lines_of(len(scores)), lines_of(2 * LANES)
    room[:], edge[:LANES] = scores, pivot
    if paired:
        _paired(room.ctypes.data, count, factor, edge.ctypes.data, edge[LANES:].ctypes.data)
    else:
        _weights(room.ctypes.data, count, factor, edge.ctypes.data, edge[LANES:].ctypes.data)
    made[:], sums[:] = room, edge[LANES:]


@njit
def run_highest(scores: Any, out: Any) -> None:
    room = lines_of(len(scores) + LANES)
    room[: len(scores)] = scores
    edge = room[len(scores) :]
    _highest(room.ctypes.data, len(scores) // LANES, edge.ctypes.data, 0, 0, 0)
    out[:] = edge


def drawn(paired: bool, factor: float) -> tuple[Any, Any, Any, Any]:
    """Scores (40, lanes) that span 90 powers of two, their pivots, and what became of them."""
    random = np.random.default_rng(0)
    scores = (random.random((40, LANES)) * 90 - 30).astype(np.float32) / np.float32(factor)
    pivot = (scores * np.float32(factor)).max(0)
    pivot = np.floor(pivot * STEPS).astype(np.float32) / np.float32(STEPS) if paired else pivot
    made, sums = np.empty(scores.size, np.float32), np.empty(LANES, np.float32)
    run(paired, scores.reshape(-1), np.float32(factor), pivot, made, sums)
    return scores.astype(np.float64) * factor, pivot, made, sums


@pytest.mark.parametrize("factor", [1.0, 0.18])
def test_weights(factor: float) -> None:
    powers, pivot, made, sums = drawn(False, factor)
    wanted = 2.0 ** np.maximum(powers - pivot, -100)
    assert np.allclose(made.reshape(40, LANES), wanted, rtol=3e-5)
    assert np.allclose(sums, wanted.sum(0), rtol=3e-5)


@pytest.mark.parametrize("factor", [1.0, 0.18])
def test_paired_weights_are_as_near_as_bfloat16_is(factor: float) -> None:
    powers, pivot, made, sums = drawn(True, factor)
    halves = made.view(np.uint16)[: 20 * LANES * 2].reshape(20, LANES, 2).transpose(0, 2, 1).reshape(40, LANES)
    got = (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    ratio = got / 2.0 ** np.maximum(powers - pivot, -100)
    assert abs(ratio.mean() - 1) < 5e-4
    assert ratio.std() < 0.003
    assert np.abs(ratio - 1).max() < 0.009
    assert np.allclose(sums, got.sum(0), rtol=1e-5), "sums are of what was written"


def test_what_is_far_below_weighs_next_to_nothing() -> None:
    scores = np.full(2 * LANES, LOWEST, np.float32)
    scores[3], scores[LANES + 5] = np.nan, -1e30
    made, sums = np.empty(scores.size, np.float32), np.empty(LANES, np.float32)
    run(True, scores, np.float32(1), np.zeros(LANES, np.float32), made, sums)
    assert bool((sums == 2 * 2.0**-100).all())


def test_the_highest_is_nan_where_one_is() -> None:
    scores = np.random.default_rng(0).standard_normal((7, LANES)).astype(np.float32)
    scores[2, 4], scores[6, 9], scores[0, 30], scores[3] = np.nan, -np.nan, np.nan, LOWEST
    out = np.empty(LANES, np.float32)
    run_highest(scores.reshape(-1), out)
    assert np.array_equal(out, scores.max(0), equal_nan=True)
    assert np.isnan(out).sum() == 3
