"""Both attentions over segments, compiled and in torch, against a row-by-row definition in float64."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.cpu.attention import byte_kv
from kernels.cpu.attention.attention_plan import MAX_ROWS, AttentionPlan, plan_attention
from kernels.cpu.attention.cpu_attention import cpu_attention, cpu_attention_takes
from kernels.cpu.language import openmp
from kernels.processor import takes_bytes
from kernels.reference.segment_attention import attend, merge_into, segment_attention
from kernels.segments import Segment, Segments

COMPILED = pytest.mark.skipif(not openmp.available(), reason="this torch has no libgomp: nothing is compiled")
# (heads, kv_heads, dim)
SHAPES = [
    pytest.param(shape, id="h{}kv{}-d{}".format(*shape))
    for shape in [(1, 1, 64), (9, 3, 64), (8, 1, 60), (4, 4, 100), (32, 8, 128), (6, 2, 80), (20, 1, 6), (71, 1, 16)]
]
DTYPES = [
    pytest.param((torch.float32, torch.float32, 1e-5), id="f32"),
    pytest.param((torch.float32, torch.bfloat16, 2e-2), id="f32 over bf16"),
    pytest.param((torch.bfloat16, torch.bfloat16, 2e-2), id="bf16"),
]


@dataclass(frozen=True)
class Drawn:
    plan: AttentionPlan
    query: Tensor
    cache: tuple[Tensor, Tensor]
    own: tuple[Tensor, Tensor]


def draw(
    positions: list[int], segments: list[tuple[int, ...]], shape: tuple[int, int, int], dtypes: tuple[Any, ...]
) -> Drawn:
    """Queries, keys and values; what no segment reads is NaN."""
    heads, kv_heads, dim = shape
    query_dtype, kv_dtype, _ = dtypes
    torch.manual_seed(len(positions) * dim)
    table = np.array(segments, dtype=np.int64).reshape(-1, 6)
    plan = plan_attention(np.array(positions, dtype=np.int64), Segments(table), kv_heads, 2)
    query = torch.randn(len(positions), heads * dim + 3).to(query_dtype)[:, : heads * dim].view(-1, heads, dim)
    kept: list[list[Tensor]] = [[], []]
    for in_step in (0, 1):
        slots = max((int(end) for _, _, _, end, _, where in table if where == in_step), default=0)
        for _ in range(2):
            whole = torch.full((kv_heads, slots + 5, dim), torch.nan, dtype=kv_dtype)
            for _, _, start, end, _, where in table:
                if where == in_step:
                    whole[:, start:end] = torch.randn(kv_heads, end - start, dim)
            kept[in_step].append(whole)
    return Drawn(plan, query, (kept[0][0], kept[0][1]), (kept[1][0], kept[1][1]))


def by_definition(
    drawn: Drawn, scale: float, *, window: int | None = None, softcap: float = 0.0, sinks: Tensor | None = None
) -> Tensor:
    rows, heads, _ = drawn.query.shape
    kv_heads = len(drawn.cache[0])
    out = torch.empty(drawn.query.shape, dtype=torch.float64)
    for row in range(rows):
        keys, values = [], []
        for row_start, row_end, kv_start, kv_end, position, in_step in drawn.plan.segments:
            behind = int(drawn.plan.positions[row]) - np.arange(position, position + kv_end - kv_start)
            read = (behind >= 0) & (behind < (np.inf if window is None else window)) & (row_start <= row < row_end)
            source = drawn.own if in_step else drawn.cache
            for kept, made in zip((keys, values), source, strict=True):
                kept.append(made[:, kv_start:kv_end][:, torch.from_numpy(read)])
        key, value = torch.cat(keys, 1).double(), torch.cat(values, 1).double()
        query = drawn.query[row].double().view(kv_heads, heads // kv_heads, -1)
        scores = query @ key.transpose(1, 2) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        if sinks is not None:
            scores = torch.cat([scores, sinks.double().view(kv_heads, -1, 1)], dim=-1)
        weights = scores.softmax(-1)[..., : key.shape[1]]
        out[row] = (weights @ value).view(heads, -1)
    return out


def both(drawn: Drawn, scale: float, **limits: Any) -> list[Tensor]:
    assert cpu_attention_takes(drawn.query, drawn.cache[0])
    made = []
    for attend_all in (cpu_attention, segment_attention):
        out = torch.full(drawn.query.shape, torch.nan, dtype=drawn.query.dtype)
        made.append(attend_all(drawn.plan, drawn.query, drawn.cache, drawn.own, scale, out, **limits))
    return made


# Two prompts' chunks below one prefix of two runs, a row that decodes, and one that reads a single token of its own.
POSITIONS = [*range(150, 190), *range(150, 161), 170, 150]
SEGMENTS = [
    (0, 53, 7, 107, 0, 0),
    (0, 53, 300, 350, 100, 0),
    (0, 40, 0, 40, 150, 1),
    (40, 51, 120, 131, 150, 0),
    (51, 52, 400, 421, 150, 0),
    (52, 53, 52, 53, 150, 1),
]


@COMPILED
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 30, 165])
@pytest.mark.parametrize(("softcap", "sunk"), [(0.0, False), (2.0, True)], ids=["plain", "capped, sinks"])
def test_equals_its_definition(
    shape: tuple[int, int, int], dtypes: tuple[Any, ...], window: int, softcap: float, sunk: bool
) -> None:
    drawn = draw(POSITIONS, SEGMENTS, shape, dtypes)
    limits = {"window": window, "softcap": softcap, "sinks": torch.randn(shape[0]) if sunk else None}
    wanted = by_definition(drawn, 0.2, **limits)
    for got in both(drawn, 0.2, **limits):
        assert got.dtype == drawn.query.dtype
        assert float((got.double() - wanted).abs().max()) < dtypes[2]


@COMPILED
@pytest.mark.parametrize("levels", [1, 17])
@pytest.mark.parametrize("rows", [1, 63, MAX_ROWS + 1, 300])
def test_any_number_of_levels_and_rows(levels: int, rows: int) -> None:
    """Each level is read by fewer rows than the one above it."""
    bounds = np.linspace(0, rows - 1, levels, dtype=int).tolist()
    segments = [(start, rows, 20 * i, 20 * i + 7 + i % 3, 0, 0) for i, start in enumerate(bounds)]
    drawn = draw([50] * rows, segments, (6, 2, 64), DTYPES[0].values[0])
    wanted = by_definition(drawn, 0.125)
    for got in both(drawn, 0.125):
        assert float((got.double() - wanted).abs().max()) < 1e-5


@COMPILED
@settings(max_examples=60)
@given(st.data())
def test_drawn_trees(data: Any) -> None:
    """A forest of segments over rows, nested as a scheduler nests them, then a causal part of each row's own."""
    rows = data.draw(st.integers(1, 90))
    shape = data.draw(st.sampled_from([(9, 3, 64), (4, 4, 10), (5, 1, 32)]))
    dtypes = data.draw(st.sampled_from([param.values[0] for param in DTYPES]))
    segments, depth, slot = [], [0] * rows, 0
    for _ in range(data.draw(st.integers(0, 6))):
        start = data.draw(st.integers(0, rows - 1))
        end, length = data.draw(st.integers(start + 1, rows)), data.draw(st.integers(1, 150))
        segments.append((start, end, slot, slot + length, 0, 0))
        slot += length
        depth[start:end] = [max(depth[start:end]) + length] * (end - start)
    positions = [200 * 6 + row for row in range(rows)]
    segments.append((0, rows, 0, rows, 200 * 6, 1))
    window = data.draw(st.sampled_from([None, 1, 40, 200 * 6]))
    drawn = draw(positions, segments, shape, dtypes)
    drawn.query.copy_(drawn.query.to(dtypes[1]))  # which the compiled one does, and the definition does not
    wanted = by_definition(drawn, 0.2, window=window)
    for got in both(drawn, 0.2, window=window):
        assert float((got.double() - wanted).abs().max()) < dtypes[2]


@COMPILED
def test_queries_are_rounded_to_narrower_keys() -> None:
    """A tree whose few keys let the rounding of a query move a result by 0.02: none is moved by anything else."""
    segments = [(0, 1, 0, 1, 0, 0), (0, 1, 1, 2, 0, 0), (5, 6, 2, 18, 0, 0), (0, 25, 0, 25, 1200, 1)]
    drawn = draw([*range(1200, 1225)], segments, (9, 3, 64), DTYPES[1].values[0])
    rounded = replace(drawn, query=drawn.query.bfloat16().float())
    out, out_rounded = torch.empty(drawn.query.shape), torch.empty(drawn.query.shape)
    cpu_attention(drawn.plan, drawn.query, drawn.cache, drawn.own, 0.2, out)
    cpu_attention(rounded.plan, rounded.query, rounded.cache, rounded.own, 0.2, out_rounded)
    assert torch.equal(out, out_rounded)
    assert float((out.double() - by_definition(rounded, 0.2)).abs().max()) < 1e-2


def in_steps(rows: Tensor) -> Tensor:
    """rows (..., dim) to the nearest of 255 steps of their own."""
    step = rows.float().abs().amax(-1, keepdim=True) / 127
    return (rows.float() / step).round() * step


def root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def out_of(drawn: Drawn, **limits: Any) -> Tensor:
    out = torch.full(drawn.query.shape, torch.nan)
    return cpu_attention(drawn.plan, drawn.query, drawn.cache, drawn.own, 0.2, out, **limits)


def in_bytes(drawn: Drawn) -> Drawn:
    cache, own = ((byte_kv.key_rows(keys), byte_kv.value_rows(values)) for keys, values in (drawn.cache, drawn.own))
    return replace(drawn, cache=cache, own=own)


def rounded(drawn: Drawn) -> Drawn:
    """What is left of it in bytes, queries too."""
    cache, own = (
        (byte_kv.keys_of(keys), byte_kv.values_of(values))
        for keys, values in (in_bytes(drawn).cache, in_bytes(drawn).own)
    )
    return replace(drawn, query=in_steps(drawn.query), cache=cache, own=own)


BYTES = pytest.mark.skipif(not takes_bytes(64), reason="this processor has no products of bytes")
BYTE_SHAPES = [(9, 3, 64), (8, 1, 128), (2, 2, 192), (32, 8, 64)]


@BYTES
@pytest.mark.parametrize("shape", BYTE_SHAPES)
@pytest.mark.parametrize("window", [None, 1, 30, 200])
@pytest.mark.parametrize("sunk", [False, True])
def test_over_bytes(shape: tuple[int, int, int], window: int, sunk: bool) -> None:
    """Of what rows share and what they read alone, whose values differ a hundredfold from key to key."""
    segments = [(0, 60, 0, 300, 0, 0), (0, 20, 310, 415, 300, 0), (0, 59, 0, 59, 405, 1), (59, 60, 415, 567, 300, 0)]
    drawn = draw([*range(405, 464), 451], segments, shape, (torch.float32, torch.float32, 0))
    for _, values in (drawn.cache, drawn.own):
        values *= 10 ** (2 * torch.rand(values.shape[:2]) - 2)[..., None]
    limits = {"window": window, "sinks": torch.randn(shape[0]) if sunk else None}
    got = out_of(in_bytes(drawn), **limits).double()
    wanted, exact = by_definition(rounded(drawn), 0.2, **limits), by_definition(drawn, 0.2, **limits)
    size = root_mean_square(exact)
    assert root_mean_square(got - wanted) < 1.6e-2 * size
    assert root_mean_square(got - exact) < 2.5e-2 * size
    assert float((got - wanted).abs().max()) < 2e-2


@BYTES
@pytest.mark.parametrize("shape", [(3, 3, 64), (4, 2, 128), (9, 3, 64), (8, 2, 192)])
@pytest.mark.parametrize("window", [None, 30, 200])
@pytest.mark.parametrize("keys", [1, 15, 128, 301])
def test_over_bytes_that_one_row_reads(shape: tuple[int, int, int], window: int, keys: int) -> None:
    """In two runs; its weights have 15 bits."""
    segments = [(0, 1, 0, keys, 0, 0), (0, 1, keys + 9, keys + 59, keys, 0), (1, 2, keys + 70, keys + 90, keys, 0)]
    drawn = draw([keys + 40, keys + 19], segments, shape, (torch.float32, torch.float32, 0))
    got = out_of(in_bytes(drawn), window=window).double()
    wanted = by_definition(rounded(drawn), 0.2, window=window)
    assert root_mean_square(got - wanted) < 2e-4 * root_mean_square(wanted)


@BYTES
def test_values_of_nothing_in_bytes() -> None:
    """Rows of zeros, and of less than a step can be, weigh as others do."""
    drawn = draw([230] * 20, [(0, 20, 0, 230, 0, 0)], (3, 1, 64), (torch.float32, torch.float32, 0))
    drawn.cache[1][:, ::2] = 0
    drawn.cache[1][:, 1::4] *= 1e-12
    wanted = by_definition(drawn, 0.2)
    assert root_mean_square(out_of(in_bytes(drawn)).double() - wanted) < 2.5e-2 * root_mean_square(wanted)


@COMPILED
def test_large_scores_do_not_overflow() -> None:
    drawn = draw([63] * 5, [(0, 5, 0, 64, 0, 0)], (2, 1, 64), (torch.float32, torch.float32, 0))
    drawn.query.mul_(1e4)
    wanted = by_definition(drawn, 1.0)
    for got in both(drawn, 1.0):
        assert float((got.double() - wanted).abs().max()) < 2e-2


def test_tiles_cover_all_rows_and_end_where_segments_do() -> None:
    segments = Segments.of([Segment(0, 16, 0, 9, 0), Segment(16, 45, 9, 20, 0), Segment(3, 4, 30, 31, 9)])
    plan = plan_attention(np.full(45, 40), segments, 3, 2)
    assert plan.tiles.tolist() == [[16, 45], [0, 16]]
    assert plan.tile_offsets.tolist() == [0, 1, 3]
    assert plan.tile_segments.tolist() == [1, 0, 2]
    for rows in (1, 15, 16, 17, 64, 1000):
        tiles = plan_attention(np.zeros(rows, dtype=np.int64), Segments.of([]), 3, 2).tiles
        assert tiles[0, 0] == 0
        assert tiles[-1, 1] == rows
        assert tiles[1:, 0].tolist() == tiles[:-1, 1].tolist()
        assert all(0 < end - start <= MAX_ROWS for start, end in tiles)


def test_tiles_that_take_longest_come_first() -> None:
    """By the keys that their rows read, not those of their segments; what is behind all of a tile's rows costs none."""
    causal = plan_attention(np.arange(256), Segments.of([Segment(0, 256, 0, 256, 0, in_step=True)]), 3, 2)
    assert causal.tiles.tolist() == [[192, 256], [144, 192], [96, 144], [48, 96], [0, 48]]
    alone = [Segment(row, row + 1, 100 * row, 100 * row + 100, 0) for row in range(16)]
    shared = Segment(16, 32, 9000, 9300, 0)
    plan = plan_attention(np.full(32, 999), Segments.of([shared, *alone]), 3, 2)
    assert plan.tiles.tolist() == [[0, 16], [16, 32]]
    assert plan.tile_offsets.tolist() == [0, 16, 17]
    assert plan.tile_segments.tolist() == [*range(1, 17), 0]


@pytest.mark.parametrize("cut", [1, 50, 110])
def test_merged_halves_equal_the_whole(cut: int) -> None:
    torch.manual_seed(cut)
    query, key, value = torch.randn(9, 20, 64), torch.randn(3, 111, 64), torch.randn(3, 111, 64)
    whole_out, whole_lse = attend(query, key, value, 0.125, mask=torch.zeros(20, 111))
    out, lse = (state.clone() for state in attend(query, key[:, :cut], value[:, :cut], 0.125))
    merge_into(out, lse, *attend(query, key[:, cut:], value[:, cut:], 0.125))
    assert float((out - whole_out).abs().max()) < 2e-5
    assert float((lse - whole_lse).abs().max()) < 2e-5


def test_merge_keeps_a_state_that_outweighs_the_other_beyond_float32() -> None:
    out, lse = torch.ones(1, 1, 4), torch.full((1, 1), 1e4)
    merge_into(out, lse, torch.full((1, 1, 4), 9.0), torch.full((1, 1), -1e4))
    merge_into(out, lse, torch.full((1, 1, 4), 9.0), torch.full((1, 1), -torch.inf))
    assert torch.equal(out, torch.ones(1, 1, 4))
    assert torch.equal(lse, torch.full((1, 1), 1e4))
