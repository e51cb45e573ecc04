"""Attention over shared prefixes in Triton's interpreter, against its float32 twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.attention_inputs import AttentionInputs
from kernels.gpu.attention.attention_shape import AttentionShape, dim_tiles
from kernels.gpu.attention.capacity import Capacity
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.attention.prefix_attention import prefix_shared_attention
from kernels.gpu.tuning.attention_config import AttentionConfig
from kernels.reference.prefix_attention import prefix_shared_attention_reference
from kernels.segments import Segment, Segments
from tests.kernels.gpu.attention.attention_case import Case, drawn_inputs, wanted

CONFIG = AttentionConfig(16, 32, 16, 4, 1, 1, "small, so that few keys make many blocks")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_equal(
    case: Case,
    shape: AttentionShape,
    dtype: torch.dtype = torch.float32,
    *,
    config: AttentionConfig = CONFIG,
    processors: int = 8,
    fp8: bool = False,
    scale: float = 0.2,
    window: int | None = None,
    **options: object,
) -> None:
    inputs = drawn_inputs(case, shape, dtype, fp8=fp8)
    want_out, want_lse = wanted(case, inputs, scale, window=window, **options)
    tables = launch_tables(
        case.segments,
        case.row_positions,
        shape,
        "cpu",
        windows=(window,),
        config=config,
        processors=processors,
    )
    out, lse = prefix_shared_attention(tables, inputs, scale, window=window, **options)
    tolerance = TOLERANCE[dtype]
    assert out.dtype == dtype
    empty = want_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert float((lse - want_lse).masked_fill(empty, 0).abs().max()) < tolerance
    assert float((out.float() - want_out).abs().max()) < tolerance


def mixed(page: int = 16, seed: int = 0) -> Case:
    """A prefix under a chunk, decoding rows and a second level; nothing is a multiple of anything."""
    case = Case(page, seed)
    prefix = case.cached(53, 0, runs=2)
    first = case.chunk(21, 53)
    for own in (1, 19, 33):
        case.decode(own, 53)
    inner = case.cached(18, 53)
    start = len(case.positions)
    for own in (5, 40):
        case.decode(own, 71)
    case.chunk(7, 71)
    case.reads(start, inner)
    case.reads(first, prefix)
    return case


@pytest.mark.parametrize("dim", [60, 80, 100, 128])
def test_head_sizes(dim: int) -> None:
    assert_equal(mixed(), AttentionShape(4, 2, dim, 16))


def test_heads_of_two_tiles() -> None:
    assert {dim: dim_tiles(dim) for dim in (8, 60, 64, 72, 80, 96, 100, 112, 128, 192, 256)} == {
        8: (16, 0),
        60: (64, 0),
        64: (64, 0),
        72: (128, 0),
        80: (64, 16),
        96: (64, 32),
        100: (128, 0),
        112: (128, 0),
        128: (128, 0),
        192: (128, 64),
        256: (256, 0),
    }


@pytest.mark.parametrize("fp8", [False, True], ids=["", "fp8"])
def test_two_tiles_capped_with_a_window_and_sinks(fp8: bool) -> None:
    options = {"softcap": 1.5, "sinks": torch.tensor([0.5, -1.0])}
    assert_equal(mixed(), AttentionShape(2, 1, 48, 16), torch.float16, fp8=fp8, window=30, **options)


@pytest.mark.nightly
@pytest.mark.parametrize("dim", [64, 96, 192, 256])
def test_more_head_sizes(dim: int) -> None:
    assert_equal(mixed(), AttentionShape(4, 2, dim, 16))


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(2, 2), (3, 1), (6, 2), (7, 1), (20, 1)], ids=["mha", "3", "3 of 2", "7", "mqa 20"]
)
def test_every_ratio_of_heads(heads: int, kv_heads: int) -> None:
    assert_equal(mixed(), AttentionShape(heads, kv_heads, 16, 16))


def test_more_query_heads_than_a_tile_takes() -> None:
    shape = AttentionShape(71, 1, 16, 16)
    assert (shape.slices, shape.slice_heads) == (2, 36)
    assert_equal(mixed(), shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("fp8", [False, True], ids=["", "fp8"])
def test_dtypes(dtype: torch.dtype, fp8: bool) -> None:
    assert_equal(mixed(), AttentionShape(4, 2, 32, 16), dtype, fp8=fp8)


@pytest.mark.parametrize("page", [16, 32, 64])
def test_pages(page: int) -> None:
    """Prefixes shorter than a page, longer ones in two runs, an end within a page."""
    case = mixed(page, seed=page)
    start = len(case.positions)
    short = case.cached(3, 0)
    case.decode(2 * page + 1, 3, runs=2)
    case.decode(page, 3)
    case.reads(start, short)
    assert_equal(case, AttentionShape(4, 2, 16, page))


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}], ids=["", "capped"])
def test_windows_and_caps(window: int, options: dict[str, float]) -> None:
    """Some windows let rows read nothing of what is shared."""
    assert_equal(mixed(), AttentionShape(4, 2, 16, 16), window=window, scale=0.7, **options)


@pytest.mark.parametrize("sink", [-30.0, 0.0, 30.0])
def test_sinks(sink: float) -> None:
    """Rows with one part, with several, and with none, which a sink alone gives a denominator."""
    case = mixed()
    case.positions.append(9)
    sinks = torch.tensor([0.0, 1.0, -1.0, 2.0]) + sink
    assert_equal(case, AttentionShape(4, 2, 16, 16), sinks=sinks)


def test_one_query_with_one_key() -> None:
    case = Case()
    case.decode(1, 0)
    assert_equal(case, AttentionShape(2, 1, 16, 16))


def test_rows_that_read_nothing() -> None:
    """A row with no segment at all, and one whose segment lies behind it."""
    case = Case()
    case.positions += [0, 5]
    case.reads(1, case.cached(20, 6))
    case.decode(4, 0)
    assert_equal(case, AttentionShape(2, 1, 16, 16))


def test_seventeen_levels() -> None:
    """A branch at each level: every row reads 17 segments or fewer, and no two rows the same ones."""
    case, starts = Case(seed=3), []
    for level in range(17):
        starts.append((len(case.positions), case.cached(3 + level % 5, 10 * level)))
        case.decode(2, 10 * level + 8)
    for first, spans in reversed(starts):
        case.reads(first, spans)
    assert_equal(case, AttentionShape(2, 1, 16, 16))


@pytest.mark.parametrize("degree", [1, 300])
def test_groups_of(degree: int) -> None:
    case = Case()
    prefix = case.cached(37, 0)
    for _ in range(degree):
        case.positions.append(37)
    case.reads(0, prefix)
    assert_equal(case, AttentionShape(2, 2, 16, 16), config=replace(CONFIG, large=64))


def test_a_chunk_that_fills_tiles_needs_no_merge() -> None:
    """Its tiles take the prefix and the causal part in one pass; keys after a tile's last row are not read."""
    case = Case()
    prefix = case.cached(40, 0)
    first = case.chunk(67, 40)
    case.reads(first, prefix)
    shape = AttentionShape(2, 1, 16, 16)
    tables = launch_tables(case.segments, case.row_positions, shape, "cpu", config=CONFIG, processors=1)
    assert tables.by_window[None].grid_merges == 0
    assert_equal(case, AttentionShape(2, 1, 16, 16), processors=1)
    assert_equal(case, AttentionShape(2, 1, 16, 16), processors=1, window=33)


def test_a_label_tree_needs_no_mask() -> None:
    """Rows 0 -> (1 -> 2, 3 -> 4): each reads itself and its ancestors, as segments over subtrees."""
    case = Case()
    case.positions += [0, 1, 2, 1, 2]
    subtrees = [(0, 5), (1, 3), (2, 3), (3, 5), (4, 5)]
    case.rows += [Segment(first, last, first, first + 1, case.positions[first], True) for first, last in subtrees]
    assert_equal(case, AttentionShape(2, 1, 16, 16))


def test_a_long_prefix_is_split_and_merged() -> None:
    case = Case()
    prefix = case.cached(700, 0)
    for own in (3, 9):
        case.decode(own, 700)
    case.reads(0, prefix)
    shape = AttentionShape(2, 1, 16, 16)
    tables = launch_tables(case.segments, case.row_positions, shape, "cpu", config=CONFIG, processors=8)
    assert tables.by_window[None].grid_items > 6
    assert_equal(case, AttentionShape(2, 1, 16, 16))


def untouched(size: int) -> torch.Tensor:
    """Zeros in float16 that take memory only where they are written."""
    return torch.from_numpy(np.zeros(size, dtype=np.float16))


@pytest.mark.parametrize("far", ["heads", "blocks"])
def test_more_elements_than_32_bits_count(far: str) -> None:
    """Heads 2^30 elements apart, or blocks behind 2^31: factors of an address fit 32 bits, their product does not."""
    dim, page, block = 16, 16, 0 if far == "heads" else 2**23
    kv_heads = 3 if far == "heads" else 1
    case, shape = Case(), AttentionShape(3, kv_heads, dim, page)
    case.positions += [40, 41, 55]
    case.reads(0, [(block * page, block * page + 41, 0)])
    stores = [untouched(2**31 + 1024) for _ in range(2)]
    if far == "heads":
        caches = [store.as_strided((4, page, 3, dim), (page * dim, dim, 2**30, 1)) for store in stores]
    else:
        caches = [store.view(-1, page, 1, dim) for store in stores]
    query, out = (untouched(2**31 + 64).as_strided((3, 3, dim), (dim, 2**30, 1)) for _ in range(2))
    query[:] = torch.randn(3, 3, dim)
    for cache in caches:
        cache[block:] = torch.randn(4, page, kv_heads, dim)
    none = torch.zeros(3, kv_heads, dim, dtype=torch.float16)
    tables = launch_tables(case.segments, case.row_positions, shape, "cpu", config=CONFIG, processors=8)
    got, _ = prefix_shared_attention(tables, AttentionInputs(query, none, none, *caches), 0.2, out=out)
    near, small = Segments.of([Segment(0, 3, 0, 41, 0)]), [cache[block:].clone() for cache in caches]
    inputs = AttentionInputs(query.clone(), none, none, *small)
    want, _ = prefix_shared_attention_reference(inputs, near, case.row_positions, 0.2)
    assert float((got - want).abs().max()) < 4e-3
    assert float(want.abs().max()) > 0.1


def test_a_step_without_rows() -> None:
    case, shape = Case(), AttentionShape(2, 1, 16, 16)
    inputs = drawn_inputs(case, shape, torch.float32)
    for capacity in (None, Capacity(items=4, pieces=4, entries=8, rows=4, partials=4)):
        tables = launch_tables(case.segments, case.row_positions, shape, "cpu", config=CONFIG, capacity=capacity)
        out, lse = prefix_shared_attention(tables, inputs, 0.2)
        assert (out.shape, lse.shape) == ((0, 2, 16), (0, 2))


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """Any trie: nodes of cached or in-step tokens, chunks, decoding rows, in any nesting."""
    case = Case(draw(st.sampled_from([16, 32])), draw(st.integers(0, 99)))

    def node(depth: int, position: int) -> None:
        first, tokens = len(case.positions), draw(st.integers(0, 40))
        if draw(st.booleans()) and tokens:
            shared = case.cached(tokens, position, runs=draw(st.integers(1, 2)))
        else:
            tokens = draw(st.integers(1, 20))
            case.chunk(tokens, position)
            rows = (first, first + tokens, position)
            shared = [rows]
        below = len(case.positions)
        for _ in range(draw(st.integers(1 if depth == 0 else 0, 2))):
            if depth < 3 and draw(st.booleans()):
                node(depth + 1, position + tokens)
            else:
                case.decode(draw(st.integers(1, 50)), position + tokens)
        if below < len(case.positions) and shared:
            case.reads(below, shared, in_step=below > first)

    node(0, draw(st.integers(0, 5)))
    if not case.positions:
        case.decode(1, 0)
    return case


def holds(case: Case, kv_heads: int, group: int, window: int | None, processors: int) -> None:
    assert_equal(case, AttentionShape(kv_heads * group, kv_heads, 16, case.page), window=window, processors=processors)


DRAWN = given(
    batches(), st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.sampled_from([None, 1, 20]), st.integers(1, 40)
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@DRAWN
def test_drawn_batches(case: Case, kv_heads: int, group: int, window: int | None, processors: int) -> None:
    holds(case, kv_heads, group, window, processors)


@pytest.mark.nightly
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@DRAWN
def test_many_drawn_batches(case: Case, kv_heads: int, group: int, window: int | None, processors: int) -> None:
    holds(case, kv_heads, group, window, processors)
