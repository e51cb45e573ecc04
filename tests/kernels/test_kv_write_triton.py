"""Rotary embedding and cache write in one kernel, in Triton's interpreter, against their definition."""

import pytest
import torch

from kernels.kv_write_triton import rope_write, rope_write_reference


@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (60, 60), (100, 40), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("rows", [1, 19])
def test_turned_and_written(dim: int, rotary: int, dtype: torch.dtype, rows: int) -> None:
    check(dim, rotary, dtype, dtype, rows)


@pytest.mark.parametrize("page", [16, 64])
def test_float8_saturates_and_rounds_to_the_nearest(page: int) -> None:
    """Scales are powers of two, so that one rounding is all there is and every bit must agree."""
    check(64, 64, torch.bfloat16, torch.float8_e4m3fn, 19, page)


def check(dim: int, rotary: int, dtype: torch.dtype, kept: torch.dtype, rows: int, page: int = 16) -> None:
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
    got = rope_write(query, key, value, cos, sin, slots, *caches[0], **scales)
    want = rope_write_reference(query, key, value, cos, sin, slots, *caches[1], **scales)
    for ours, theirs in zip((*got, *caches[0]), (*want, *caches[1]), strict=True):
        assert ours.dtype == theirs.dtype
        if ours.dtype == torch.float8_e4m3fn:
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
        else:
            # The interpreter cuts a bfloat16's end off where hardware rounds: a step of 2^-7 of the number.
            error = (ours.float() - theirs.float()).abs() / theirs.float().abs().clamp(min=1)
            assert float(error.max()) < (1e-5 if dtype == torch.float32 else 0.0079)
