"""Rotary embedding and cache write in one kernel, in Triton's interpreter, against their definition."""

from typing import Any

import numpy as np
import pytest
import torch

from kernels.gpu.attention.kv_write import HeadNorms, rope_write, rope_write_reference


@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (60, 60), (100, 40), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("rows", [1, 19])
def test_turned_and_written(dim: int, rotary: int, dtype: torch.dtype, rows: int) -> None:
    check(dim, rotary, dtype, dtype, rows)


@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (100, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("rounded", [True, False])
def test_heads_are_normed_before_they_turn(dim: int, rotary: int, dtype: torch.dtype, rounded: bool) -> None:
    norms = HeadNorms(torch.rand(dim).to(dtype) + 0.5, torch.rand(dim).to(dtype) + 0.5, 1e-6, rounded)
    check(dim, rotary, dtype, dtype, 19, norms=norms, roundings=4)


@pytest.mark.parametrize("page", [16, 64])
def test_float8_saturates_and_rounds_to_the_nearest(page: int) -> None:
    """Scales are powers of two, so that one rounding is all there is and every bit must agree."""
    check(64, 64, torch.bfloat16, torch.float8_e4m3fn, 19, page)


def check(
    dim: int,
    rotary: int,
    dtype: torch.dtype,
    kept: torch.dtype,
    rows: int,
    page: int = 16,
    roundings: int = 1,
    **options: Any,
) -> None:
    torch.manual_seed(0)
    heads, kv_heads, blocks = 3, 2, 4
    query, key, value = (torch.randn(n, rows, dim).to(dtype).transpose(0, 1) for n in (heads, kv_heads, kv_heads))
    if kept == torch.float8_e4m3fn:
        key[:, :, 0], value[:, :, 0] = 3000, -3000
        value[:, :, 1] = 0.001
    angles = torch.randn(rows, rotary // 2).repeat(1, 2)
    if kept == torch.float8_e4m3fn:
        angles.zero_()
    cos, sin = angles.cos(), angles.sin()
    slots = torch.randperm(blocks * page)[:rows]
    slots[::5] = -1
    scales = {}
    if kept == torch.float8_e4m3fn:
        scales = {"key_scales": torch.tensor([0.5, 2.0]), "value_scales": torch.tensor([0.25, 1.0])}
    caches = [[torch.full((blocks, page, kv_heads, dim), 9.0).to(kept) for _ in range(2)] for _ in range(2)]
    got = rope_write(query, key, value, cos, sin, slots, *caches[0], **scales, **options)
    want = rope_write_reference(query, key, value, cos, sin, slots, *caches[1], **scales, **options)
    for ours, theirs in zip((*got, *caches[0]), (*want, *caches[1]), strict=True):
        assert ours.dtype == theirs.dtype
        if ours.dtype == torch.float8_e4m3fn:
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
        else:
            # The interpreter cuts a bfloat16's end off where hardware rounds: a step of 2^-7 of the number.
            error = (ours.float() - theirs.float()).abs() / theirs.float().abs().clamp(min=1)
            assert float(error.max()) < roundings * (1e-5 if dtype == torch.float32 else 0.0079)


def test_slots_behind_2_to_the_31_elements() -> None:
    """In a cache that takes memory only where it is written."""
    slots, dim = 2**27 + 64, 16
    query, key, value = (torch.randn(2, n, dim).half() for n in (4, 1, 1))
    cos, sin = torch.ones(2, dim), torch.zeros(2, dim)
    caches = [torch.from_numpy(np.zeros(slots * dim, dtype=np.float16)).view(-1, 16, 1, dim) for _ in range(2)]
    rope_write(query, key, value, cos, sin, torch.tensor([slots - 1, 3]), *caches)
    for cache, made in zip(caches, (key, value), strict=True):
        assert torch.equal(cache[-1, -1], made[0])
        assert torch.equal(cache[0, 3], made[1])


def test_no_rows_write_nothing() -> None:
    query, key, value = (torch.empty(0, n, 16) for n in (4, 2, 2))
    cache = torch.zeros(4, 16, 2, 16)
    turned, _, _ = rope_write(
        query, key, value, torch.empty(0, 16), torch.empty(0, 16), torch.empty(0).long(), cache, cache
    )
    assert turned.shape == (0, 4, 16)
    assert not cache.any()
