"""The traffic model: equal to the bytes that the interpreter loads, and near the least there is."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.attention.prefix_attention import prefix_shared_attention
from kernels.gpu.attention.traffic import Traffic, traffic
from kernels.gpu.attention.work_items import TileShape, work_items
from kernels.gpu.tuning.attention_config import ATTENTION, AttentionConfig
from kernels.gpu.tuning.device_limits import LIMITS
from kernels.segments import Segment, Segments
from tests.kernels.gpu.attention.attention_case import drawn_inputs
from tests.kernels.gpu.attention.test_prefix_attention import CONFIG, mixed

loaded: list[np.ndarray] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every address that a kernel loads, where its mask is true."""
    load = InterpreterBuilder.create_masked_load

    def watching(self, ptrs, mask, other, *rest):  # type: ignore[no-untyped-def]
        loaded.append(np.broadcast_to(ptrs.data, mask.data.shape)[mask.data])
        return load(self, ptrs, mask, other, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watching)
    loaded.clear()
    yield
    loaded.clear()


@pytest.mark.parametrize("heads", [4, 71])
@pytest.mark.parametrize("window", [None, 20])
def test_the_model_counts_what_is_loaded(watched: None, heads: int, window: int | None) -> None:
    case, shape = mixed(), AttentionShape(heads, 1, 16, 16)
    inputs = drawn_inputs(case, shape, torch.float16)
    tables = launch_tables(case.segments, case.row_positions, shape, "cpu", windows=(window,), config=CONFIG)
    prefix_shared_attention(tables, inputs, 0.2, window=window)
    addresses = np.concatenate(loaded)
    spans = [(s.untyped_storage().data_ptr(), s.untyped_storage().nbytes()) for s in inputs.keys_and_values]
    counted = sum(2 * int(((addresses >= start) & (addresses < start + size)).sum()) for start, size in spans)
    tile = TileShape(
        max(CONFIG.small, 64 if heads > 4 else 16),
        max(CONFIG.large, 64 if heads > 4 else 16),
        CONFIG.keys,
        shape.slice_heads,
    )
    items = work_items(
        case.segments, case.row_positions, 16, tile, window=window, processors=8, head_slices=shape.slices
    )
    model = traffic(
        items,
        case.segments,
        case.row_positions,
        heads=heads,
        kv_heads=1,
        dim=16,
        kv_bytes=2,
        window=window,
        slices=shape.slices,
    )
    assert model.requested == counted
    assert model.least <= model.memory <= model.requested


def decoding(groups: int, degree: int, prefix: int, own: int) -> tuple[Segments, np.ndarray]:
    """A step of `groups * degree` decoding rows, each behind its group's prefix and `own` keys of its own."""
    segments, positions, slot = [], [], 0
    for group in range(groups):
        segments.append(Segment(group * degree, (group + 1) * degree, slot, slot + prefix, 0))
        slot += -(-prefix // 16) * 16
        for row in range(group * degree, (group + 1) * degree):
            segments.append(Segment(row, row + 1, slot, slot + own, prefix))
            positions.append(prefix + own - 1)
            slot += -(-own // 16) * 16
    return Segments.of(segments), np.array(positions, dtype=np.int64)


def of(arch: str, heads: int, kv_heads: int, groups: int, degree: int, prefix: int, own: int) -> Traffic:
    segments, positions = decoding(groups, degree, prefix, own)
    group = heads // kv_heads
    config: AttentionConfig = next(
        (c for c in ATTENTION[arch][128] if c.large >= degree * group), ATTENTION[arch][128][-1]
    )
    tile = TileShape(max(config.small, group), config.large, config.keys, group)
    processors = LIMITS[arch].processors * config.programs
    items = work_items(segments, positions, 16, tile, processors=processors, head_slices=kv_heads)
    return traffic(items, segments, positions, heads=heads, kv_heads=kv_heads, dim=128, kv_bytes=2)


# Groups of BatchLLM's workloads (arXiv 2412.03594): shared and own tokens as there, decoding half of the answer.
SHAPES = [(4, 16, 2000, 250), (16, 4, 500, 70), (8, 32, 1000, 120), (1, 128, 2000, 250)]


@pytest.mark.parametrize("arch", ATTENTION)
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (32, 32), (28, 4), (16, 1)], ids=["8B", "7B", "7", "mqa"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keys_are_read_hardly_more_than_once(arch: str, heads: int, kv_heads: int, shape: tuple[int, ...]) -> None:
    model = of(arch, heads, kv_heads, *shape)
    stacked = shape[1] * heads // kv_heads
    assert model.memory <= 1.1 * model.least
    if stacked <= 128:
        assert model.requested <= 1.1 * model.least
    assert model.unshared > 2 * model.least or shape[1] < 16
