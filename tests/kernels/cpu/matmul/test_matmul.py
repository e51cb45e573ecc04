"""The packed product against its definition, over awkward sizes and memory poisoned with NaN."""

import pytest
import torch
from torch import Tensor

from kernels.cpu.language import openmp
from kernels.cpu.matmul import matmul as module
from kernels.cpu.matmul.int8_rows import byte_rows, hadamard_rows, quantize_rows
from kernels.cpu.matmul.matmul import matmul, matmul_reference, pack, rows_dtype
from kernels.cpu.matmul.product import LANES

pytestmark = pytest.mark.skipif(not openmp.available(), reason="this torch has no libgomp: nothing is compiled")
SIZES = [(0, 64, 48), (1, 4, 2), (7, 64, 50), (33, 100, 96), (300, 576, 192), (9, 1536, 576)]


def poisoned(rows: Tensor) -> Tensor:
    """The same rows, with NaN (or a byte that is not zero) behind them."""
    fill = 77 if rows.dtype == torch.uint8 else torch.nan
    whole = torch.full((len(rows) + 20, rows.shape[1]), fill, dtype=rows.dtype)
    whole[: len(rows)] = rows
    return whole[: len(rows)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", ["store", "add", "gate", "gate to bfloat16"])
def test_equals_its_definition(rows: int, inputs: int, outputs: int, dtype: torch.dtype, bias: bool, mode: str) -> None:
    torch.manual_seed(rows)
    gated = mode.startswith("gate")
    x, weight = torch.randn(rows, inputs) / inputs**0.5, torch.randn(outputs, inputs)
    more = torch.randn(outputs) if bias else None
    scales = row_scales = None
    if dtype == torch.int8:
        weight, scales = quantize_rows(weight)
        given, row_scales, taken = rows_for_int8(x)
    else:
        taken = given = x.to(rows_dtype(dtype))
    wanted = matmul_reference(taken, weight.to(dtype), gated=gated, bias=more, scales=scales, row_scales=row_scales)
    panels = pack(weight.to(dtype), gated=gated, bias=more, scales=scales)
    room = torch.full((rows, outputs // (2 if gated else 1) + 3), torch.nan)
    out = room.bfloat16() if mode.endswith("16") else room
    before = torch.randn(rows, out.shape[1] - 3)
    if mode == "add":
        out[:, :-3], wanted = before, wanted + before
    matmul(poisoned(given), panels, out[:, :-3], add=mode == "add", row_scales=row_scales)
    assert bool(out[:, -3:].isnan().all())
    tolerance = 1e-2 if mode.endswith("16") else 1e-5
    assert bool(((out[:, :-3].float() - wanted).abs() <= tolerance * (1 + wanted.abs())).all())


def rows_for_int8(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as `matmul` takes them here, their scales, and what they stand for over those."""
    if rows_dtype(torch.int8) == torch.uint8:
        given, scales = byte_rows(x, torch.ones(x.shape[1]))
        return given, scales, given[:, : x.shape[1]].int() - 128
    made = torch.zeros(len(x), -(x.shape[1] // -4) * 4)
    return hadamard_rows(x, torch.ones(x.shape[1]), None, made), torch.ones(len(x)), made[:, : x.shape[1]]


def test_more_bytes_than_a_panel_takes_at_once() -> None:
    inputs = 4 * module.MAX_STEPS + 24
    x, weight = torch.randn(5, inputs), torch.randn(50, inputs) / inputs**0.5
    (quantized, scales), (rows, row_scales, taken) = quantize_rows(weight), rows_for_int8(x)
    got = matmul(rows, pack(quantized, scales=scales), torch.full((5, 50), torch.nan), row_scales=row_scales)
    wanted = matmul_reference(taken, quantized, scales=scales, row_scales=row_scales)
    assert float((got - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_inputs_than_a_panel_takes_at_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = 2 * module.MAX_STEPS + 6
    x, weight = torch.randn(5, inputs).to(rows_dtype(dtype)), (torch.randn(50, inputs) / inputs**0.5).to(dtype)
    got = matmul(x, pack(weight), torch.full((5, 50), torch.nan))
    assert float((got - matmul_reference(x, weight)).abs().max()) < 1e-4


def test_rows_do_not_touch_each_other() -> None:
    x, weight = torch.randn(9, 64), torch.randn(48, 64)
    x[3] = torch.nan
    got = matmul(x, pack(weight), torch.empty(9, 48))
    assert torch.isfinite(got).all(1).tolist() == [row != 3 for row in range(9)]


def test_rows_without_room_behind_them_are_not_read_beyond() -> None:
    x = torch.randn(3, 64)
    assert x.untyped_storage().nbytes() == x.nbytes
    assert module._with_room(x, 8).untyped_storage().nbytes() >= 8 * 64 * 4
    assert torch.equal(module._with_room(x, 8)[:3], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [2 * LANES, 100])
def test_in_order_a_row_is_added_as_it_would_be_alone(dtype: torch.dtype, outputs: int) -> None:
    torch.manual_seed(0)
    panels, before = pack(torch.randn(outputs, 130).to(dtype)), torch.randn(19, outputs)
    rows = torch.randn(19, 130).to(rows_dtype(dtype))
    together = matmul(rows, panels, before.clone(), add=True, in_order=True)
    for row, (one, into) in enumerate(zip(rows.split(1), before.split(1), strict=True)):
        assert torch.equal(matmul(one.clone(), panels, into.clone(), add=True, in_order=True)[0], together[row]), row
