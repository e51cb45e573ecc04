"""The compiled softmax of a block against float64."""

from typing import Any

import numpy as np
import pytest
from numba import njit

from kernels.cpu.attention.attention_scratch import scratch_for
from kernels.cpu.attention.softmax import (
    LEAST,
    LOWEST,
    MOST,
    STEPS,
    byte_weights,
    highest,
    paired_weights,
    rescale,
    weights,
)
from kernels.cpu.language.openmp import lines_of
from kernels.cpu.language.vectors import WIDTH
from kernels.processor import NATIVE_BYTES

LANES = 2 * WIDTH
KINDS = ("float32", "pairs", "bytes")
_highest, _weights, _paired, _bytes = highest(2, masked=False), weights(2), paired_weights(2), byte_weights(2)
_rescale = {kind: rescale(2, kind) for kind in KINDS}


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
    scores[2, 4], scores[6, 5], scores[0, -2], scores[3] = np.nan, -np.nan, np.nan, LOWEST
    out = np.empty(LANES, np.float32)
    run_highest(scores.reshape(-1), out)
    assert np.array_equal(out, scores.max(0), equal_nan=True)
    assert np.isnan(out).sum() == 3


def rescaled(kind: str, factor: float, *lines: Any) -> list[Any]:
    """`lines` (pivots, best, upper) and what a rescaling makes of them: pivots, best, corrections, shares."""
    made = _rescale[kind]

    @njit
    def go(edge: Any, factor: Any) -> None:
        at = edge.ctypes.data
        made(at, factor, at + 4 * LANES, at + 8 * LANES, at + 12 * LANES, at + 16 * LANES)

    pivots, best, upper = lines
    edge = np.zeros(5 * LANES, np.float32)
    edge[:LANES], edge[LANES : 2 * LANES], edge[2 * LANES : 3 * LANES].view(np.int32)[:] = pivots, best, upper
    go(edge, np.float32(factor))
    return [edge[i * LANES : (i + 1) * LANES] for i in (0, 1, 3, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_rescale(kind: str) -> None:
    """Sums go over to the greater of what they are over and what a block has; lanes that read nothing keep theirs."""
    random = np.random.default_rng(0)
    pivots, before = (random.standard_normal((2, LANES)) * 30).astype(np.float32)
    before = np.floor(before * STEPS).astype(np.float32) / STEPS
    upper = np.where(np.arange(LANES) % 5, 9, 0)
    pivots[0], pivots[6], pivots[7], before[1], before[7] = LOWEST, LOWEST, np.nan, LEAST, LEAST
    over, best, corrections, shares = rescaled(kind, 0.5, pivots, before, upper)
    own = np.maximum(pivots * np.float32(0.5), LEAST)
    after = np.where(own < before, before, own)
    after = np.floor(after * STEPS) / STEPS if kind == "pairs" else after
    reads = upper > 0
    assert np.array_equal(best, np.where(reads, after, before), equal_nan=True)
    wanted = np.where(reads, 2.0 ** np.maximum(before - after, -100), 1)
    assert np.allclose(corrections, wanted, rtol=3e-6, equal_nan=True)
    if kind == "bytes":
        assert np.array_equal(over, own, equal_nan=True)
        wanted = np.where(reads, 2.0 ** np.maximum(own - after - np.log2(MOST), -100), 0)
        assert np.allclose(shares, wanted, rtol=3e-6, equal_nan=True)
    else:
        assert np.array_equal(over, np.where(reads, after, -LOWEST), equal_nan=True)


@njit
def run_bytes(scores: Any, factor: Any, pivot: Any, shares: Any, inverses: Any, made: Any, sums: Any) -> None:
    room, edge = lines_of(len(scores)), lines_of(3 * LANES)
    room[:], edge[:LANES], edge[LANES : 2 * LANES] = scores, pivot, shares
    at, count = edge.ctypes.data, len(scores) // LANES
    dithers = scratch_for(LANES, 64).dithers.ctypes.data
    _bytes(room.ctypes.data, count, factor, at, at + 4 * LANES, inverses.ctypes.data, dithers, at + 8 * LANES)
    made[:], sums[:] = room, edge[2 * LANES :]


@pytest.mark.skipif(not NATIVE_BYTES, reason="this processor has no products of bytes")
@pytest.mark.parametrize("keys", [4, 128])
def test_byte_weights(keys: int) -> None:
    """Each is one of the two integers beside it; sums are of what was rounded to those, over the keys' scales."""
    random = np.random.default_rng(0)
    scores = (random.random((keys, LANES)) * 18).astype(np.float32)
    scores[1, 3:9], scores[2, 4] = LOWEST, np.nan
    pivot = np.nanmax(scores, 0) * np.float32(0.5)
    shares = random.random(LANES).astype(np.float32)
    inverses = (2.0 ** random.integers(-3, 3, keys)).astype(np.float32)
    made, sums = np.empty(scores.size, np.float32), np.empty(LANES, np.float32)
    run_bytes(scores.reshape(-1), np.float32(0.5), pivot, shares, inverses, made, sums)
    quads = made.view(np.uint8)[: scores.size].reshape(keys // 4, LANES, 4).transpose(0, 2, 1).reshape(keys, LANES)
    wanted = np.nan_to_num(2.0 ** (scores.astype(np.float64) * 0.5 - pivot) * MOST)
    assert float(np.abs(quads - wanted).max()) < 1 + 0.002 * 255
    assert bool((quads[1, 3:9] == 0).all())
    rest = np.arange(LANES) != 4  # which has a NaN
    assert np.allclose(sums[rest], ((wanted * inverses[:, None]).sum(0) * shares)[rest], rtol=2e-3)
    assert np.isnan(sums).tolist() == (~rest).tolist()
    assert quads.max() > 250


@pytest.mark.skipif(not NATIVE_BYTES, reason="this processor has no products of bytes")
@pytest.mark.parametrize("weight", [0.02, 0.3, 1.7, 30.4])
def test_small_weights_count_for_what_they_are_together(weight: float) -> None:
    scores = np.full((128, LANES), np.log2(weight / MOST), np.float32)
    made, sums = np.empty(scores.size, np.float32), np.empty(LANES, np.float32)
    ones = np.ones(LANES, np.float32)
    run_bytes(scores.reshape(-1), np.float32(1), 0 * ones, ones, np.ones(128, np.float32), made, sums)
    quads = made.view(np.uint8)[: scores.size].reshape(32, LANES, 4).sum((0, 2), dtype=np.int64)
    assert abs(quads[0] / 128 - weight) < 0.01 * weight + 0.02
    assert abs(sums[0] / 128 - weight) < 0.01 * weight
    assert bool((quads == quads[0]).all())
