"""Each compiled loop against its twin in torch, over awkward sizes and memory poisoned with NaN."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import cpu
from kernels.cpu.attention.byte_kv import keys_of, values_of
from kernels.cpu.attention.kv_write import reslot, write_kv, write_kv_reference
from kernels.cpu.language import openmp
from kernels.cpu.language.loop_cache import NAMES
from kernels.cpu.layer.rms_norm import rms_norm, rms_norm_reference
from kernels.cpu.layer.rotary import rotate, rotate_reference
from kernels.cpu.matmul import matmul
from kernels.cpu.matmul.int8_rows import byte_rows, hadamard_rows, hadamard_transform, quantize_rows
from kernels.processor import takes_bytes

# In 8 bits, blocks of 1, 2, 4, 8 and 16 vectors are transformed, or none.
SIZES = [(0, 64), (1, 1), (1, 63), (3, 100), (5, 48), (4, 96), (3, 384), (63, 576), (111, 1536)]


@pytest.fixture(autouse=True)
def _compiled_and_drawn() -> None:
    assert openmp.available(), "this torch has no libgomp: the loops would not be reached"
    torch.manual_seed(0)


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_rms_norm(rows: int, size: int) -> None:
    x, weight, out = torch.randn(rows, size) * 30, torch.randn(size), torch.full((rows, size), torch.nan)
    rms_norm(x, weight, 1e-5, out)
    wanted = rms_norm_reference(x, weight, 1e-5)
    assert worst(out, wanted) < 3e-6 * 5
    short = rms_norm(x, weight, 1e-5, torch.full((rows, size), torch.nan, dtype=torch.bfloat16))
    assert bool(((short.float() - wanted).abs() <= wanted.abs() / 250 + 1e-6).all())


def test_what_is_not_finite_stays_so() -> None:
    rows = torch.zeros(3, 8)
    rows[1, 2], rows[2, 5] = torch.nan, torch.inf
    out = torch.empty(3, 8)
    rms_norm(rows, torch.ones(8), 1e-5, out)
    assert torch.isfinite(out).all(1).tolist() == [True, False, False]
    _, scales = byte_rows(rows, torch.ones(8))
    assert torch.isfinite(scales).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("rows", "heads", "others", "dim"), [(0, 1, 0, 2), (1, 3, 2, 64), (17, 12, 3, 64), (5, 4, 1, 100), (5, 4, 1, 192)]
)
@pytest.mark.parametrize("hadamard", [False, True])
def test_rotate(rows: int, heads: int, others: int, dim: int, hadamard: bool) -> None:
    x, (cos, sin) = torch.randn(rows, (heads + others) * dim), torch.randn(2, rows, dim)
    wanted = x.clone()
    rotate_reference(wanted, cos, sin, heads, hadamard=hadamard)
    rotate(x, cos, sin, heads, hadamard=hadamard)
    assert worst(x, wanted) < (6e-6 if hadamard else 2e-6)
    assert rows == 0 or others == 0 or worst(x[:, heads * dim :], wanted[:, heads * dim :]) == 0


@pytest.mark.parametrize(("rows", "size"), SIZES)
@pytest.mark.parametrize("gap", [0, 7])
def test_byte_rows(rows: int, size: int, gap: int) -> None:
    values = torch.full((rows, size + gap), torch.nan)[:, :size].copy_(torch.randn(rows, size) * 1e3)
    factors = torch.rand(size) + 0.5
    (got, scales), (wanted, wanted_scales) = byte_rows(values, factors), quantize_rows(values, factors)
    assert scales.shape == (rows,)
    assert got.shape[1] % 4 == 0
    assert got[:, size:].tolist() == [[128] * (got.shape[1] - size)] * rows
    assert worst(scales, wanted_scales) <= 1e-6 * 1e3
    # A value in the middle between two steps may go to either.
    signed = got[:, :size].int() - 128
    assert worst(signed, wanted.int()) <= 1
    assert float((signed != wanted).float().mean() if rows else 0) < 1e-2


@pytest.mark.parametrize(("rows", "size"), [(3, 100), (63, 576)])
def test_a_norm_before_byte_rows_is_in_their_scales(rows: int, size: int) -> None:
    values, weight, factors = torch.randn(rows, size) * 7, torch.rand(size), torch.rand(size) + 0.5
    normed = rms_norm(values, weight, 1e-5, torch.empty(rows, size))
    (got, scales), (wanted, wanted_scales) = byte_rows(values, weight * factors, 1e-5), byte_rows(normed, factors)
    assert worst(got.int(), wanted.int()) <= 1
    assert torch.allclose(scales, wanted_scales, rtol=1e-5)


@pytest.mark.parametrize(("rows", "size"), SIZES)
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_hadamard_rows(rows: int, size: int, eps: float | None) -> None:
    values, factors = torch.randn(rows, size) * 7, torch.rand(size) + 0.5
    got = hadamard_rows(values, factors, eps, torch.full((rows, -(size // -4) * 4), torch.nan))
    wanted = hadamard_transform(values * factors)
    if eps is not None:
        wanted *= torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    assert worst(got[:, :size], wanted) < 1e-4
    assert bool((got[:, size:] == 0).all())


@pytest.mark.parametrize("from_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("to_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [5, 64])
def test_write_kv(from_dtype: torch.dtype, to_dtype: torch.dtype, dim: int) -> None:
    made = torch.randn(2, 7, 3, dim).to(from_dtype).transpose(1, 2)
    slots = torch.tensor([4, 9, -1, 0, -1, 2, 1])
    got, wanted = ([torch.full((2, 3, 12, dim), 9.0, dtype=to_dtype) for _ in range(2)] for _ in range(2))
    for (cache, own), write in ((got, write_kv), (wanted, write_kv_reference)):
        write((made[0], made[1]), slots, (cache[0], cache[1]), (own[0], own[1]))
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    assert float((wanted[0][:, :, 9] - made[:, :, 1].to(to_dtype)).abs().max()) == 0
    assert float((wanted[1][:, :, 4] - made[:, :, 4].to(to_dtype)).abs().max()) == 0


@pytest.mark.skipif(not takes_bytes(64), reason="this processor has no products of bytes")
@pytest.mark.parametrize("dim", [64, 192])
def test_write_kv_in_bytes(dim: int) -> None:
    """To the bit what its definition makes, which is within half a step of what was given."""
    made = torch.randn(2, 7, 3, dim) * 10 ** torch.linspace(-20, 5, 7)[:, None, None]
    made[:, 3, 0], made[:, 5, 1, 7], made[:, 6, 2, 9] = 0, torch.inf, torch.nan
    made = made.transpose(1, 2)
    slots = torch.tensor([4, 9, -1, 0, -1, 2, 1])
    got, wanted = ([torch.full((2, 3, 12, dim + 4), 9, dtype=torch.uint8) for _ in range(2)] for _ in range(2))
    for (cache, own), write in ((got, write_kv), (wanted, write_kv_reference)):
        write((made[0], made[1]), slots, (cache[0], cache[1]), (own[0], own[1]))
    finite = made.isfinite().all(-1)
    for row, slot in enumerate(slots.tolist()):
        kept, twin = (places[int(slot < 0)][:, :, slot if slot >= 0 else row] for places in (got, wanted))
        assert torch.equal(kept[finite[:, :, row]], twin[finite[:, :, row]])
        for which, read in ((0, keys_of), (1, values_of)):
            exact, back = made[which, :, row], read(kept[which])
            assert torch.equal(back.isfinite().all(-1), finite[which, :, row])
            largest = exact.abs().amax(-1, keepdim=True)
            error = ((back - exact).abs() / (largest / 127 + 2.0**-29))[finite[which, :, row]]
            assert bool((error <= 0.51).all())


def test_every_loop_is_compiled_ahead() -> None:
    assert len(NAMES) == sum(file.read_text().count(" = Loop(") for file in Path(cpu.__file__).parent.rglob("*.py"))
    assert all(importlib.import_module(name).LOOP.available for name in NAMES)


def test_a_recording_makes_its_calls_again() -> None:
    """On what lies there by then, counters begin at zero, and what was called outside is not in it."""
    rows, weight = torch.randn(40, 64), torch.randn(96, 64)
    weights, made = matmul.pack(weight), torch.empty(40, 96)
    normed, ones = torch.empty(40, 64), torch.ones(64)
    rms_norm(rows, ones, 1e-5, torch.empty(40, 64))
    with openmp.Recording() as recorded:
        rms_norm(rows, ones, 1e-5, normed)
        matmul.matmul(normed, weights, made)
    assert len(recorded.calls) == 2
    rows.normal_()
    made.zero_()
    recorded.run()
    assert worst(made, rms_norm_reference(rows, ones, 1e-5) @ weight.t()) < 1e-4


def test_a_write_that_was_recorded_goes_to_other_slots() -> None:
    key, value = torch.randn(2, 2, 3, 8)
    cache, own = torch.zeros(2, 2, 9, 8), torch.zeros(2, 2, 3, 8)
    with openmp.Recording() as recorded:
        write_kv((key, value), torch.tensor([0, 1, 2]), (cache[0], cache[1]), (own[0], own[1]))
    slots = torch.tensor([7, 3, -1])
    reslot(recorded, slots)
    recorded.run()
    assert torch.equal(cache[0][:, [0, 1, 2, 7, 3]], key[:, [0, 1, 2, 0, 1]])
    assert torch.equal(own[1][:, 2], value[:, 2])
