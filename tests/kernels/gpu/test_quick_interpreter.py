"""Triton's interpreter as tests run it, against Triton's own."""

import pytest
import torch
import triton
from triton import language as tl
from triton.runtime.errors import InterpreterError

from tests.quick_interpreter import REPLACED


@triton.jit
def _normed(row, SIZE: tl.constexpr):
    return row / tl.sqrt(tl.sum(row * row) / SIZE + 1e-6)


@triton.jit
def every_way(values, counts, out, rows, SIZE: tl.constexpr):
    """Blocks and scalars of several types, made alike either way; a loop, a call, products, masks and pointers."""
    places = tl.arange(0, SIZE)
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for row in range(rows):
        mask = places < SIZE - row
        read = tl.load(values + row * SIZE + places, mask=mask, other=0.5).to(tl.float32)
        count = tl.load(counts + row)
        weights = tl.where(mask, count * 2 - places, 7).to(tl.float16)
        total += _normed(read, SIZE)[:, None] * weights[None, :]
        if row % 2 == 0:
            total = tl.maximum(total, -3.5) + 1e-3 * tl.dot(total, total, input_precision="ieee")
    tl.store(out + places[:, None] * SIZE + places, total, mask=(places != 3)[:, None])


@triton.jit
def product(out, one, other):
    tl.store(out, one * other)


def computed() -> list[torch.Tensor]:
    found = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        draw = torch.Generator().manual_seed(0)
        values = torch.randn(5, 16, generator=draw).to(dtype)
        counts = torch.randint(0, 100, (5,), generator=draw, dtype=torch.int32)
        out = torch.zeros(16, 16)
        every_way[(1,)](values, counts, out, 5, 16)
        found.append(out)
    return found


def plain_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(REPLACED) == 6
    for owner, name, plain in REPLACED:
        monkeypatch.setattr(owner, name, plain)


def test_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = computed()
    assert all(bool(out[:3].any()) and not out[3].any() for out in quick)
    plain_again(monkeypatch)
    assert all(torch.equal(one, other) for one, other in zip(quick, computed(), strict=True))


@pytest.mark.parametrize(("one", "other", "fits"), [(46_340, 46_340, True), (46_341, 46_341, False)])
def test_whole_numbers_that_leave_their_type(one: int, other: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 ** 31 is 46,340.95 squared. The interpreter says nothing by itself."""
    out = torch.zeros(1, dtype=torch.int32)
    if fits:
        product[(1,)](out, one, other)
    else:
        with pytest.raises(InterpreterError, match="int32 overflow detected for operation mul"):
            product[(1,)](out, one, other)
        plain_again(monkeypatch)
        product[(1,)](out, one, other)
    assert int(out) == (one * other + 2**31) % 2**32 - 2**31
