"""The greatest output against its definition."""

import pytest
import torch
from torch import Tensor

from kernels.cpu.matmul import matmul
from kernels.cpu.matmul.best_output import (
    DEVIATIONS,
    OF_A_STEP,
    BestOutputs,
    Screen,
    best_outputs,
    best_outputs_reference,
    make_screen,
)
from kernels.cpu.matmul.int8_rows import byte_rows, hadamard_transform, quantize_rows
from kernels.processor import NATIVE_BYTES

pytestmark = pytest.mark.skipif(not NATIVE_BYTES, reason="this processor multiplies no bytes")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def drawn(seed: int, rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, inputs, generator=draw).mul_(3).to(dtype),
        torch.randn(outputs, inputs, generator=draw).to(dtype),
    )


def screened(weight: Tensor) -> Screen:
    screen = make_screen(weight, matmul.pack(weight))
    assert screen is not None
    return screen


def best(rows: Tensor, weight: Tensor) -> list[int]:
    return held(rows, weight, screened(weight), best_outputs_reference(rows, weight))


def held(rows: Tensor, weight: Tensor, screen: Screen, expected: BestOutputs, told: float = torch.inf) -> list[int]:
    """The greatest outputs' numbers; their leads are held to the definition, where they are told."""
    made = best_outputs(rows, screen, torch.full((len(rows),), told))
    finite = expected.places >= 0
    exact = finite & (expected.leads < told)
    # Products are sums of float32 in another order.
    off = 4e-7 * rows.float().norm(dim=1) * weight.float().norm(dim=1).max()
    assert bool(((made.leads - expected.leads).abs() <= off)[exact].all())
    assert bool((made.leads >= told - off)[finite & ~exact].all())
    return made.places.tolist()


@DTYPES
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 1, 4), (1, 48, 16), (3, 47, 24), (33, 49, 64), (64, 5000, 96), (256, 1537, 64), (2, 3000, 8300)],
)
def test_every_row_has_the_greatest_of_its_products(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    for seed in range(3):
        given, weight = drawn(seed, rows, outputs, inputs, dtype)
        screen, expected = screened(weight), best_outputs_reference(given, weight)
        for told in (torch.inf, 0.0, 5.0):
            assert held(given, weight, screen, expected, told) == expected.places.tolist()


@DTYPES
def test_outputs_that_are_all_below_nothing(dtype: torch.dtype) -> None:
    """What fills the last panel up is 0, and would be the greatest."""
    given, weight = drawn(0, 5, 50, 32, dtype)
    given, weight = given.abs(), -weight.abs()
    assert best(given, weight) == best_outputs_reference(given, weight).places.tolist()


@DTYPES
def test_outputs_that_8_bits_cannot_tell_apart(dtype: torch.dtype) -> None:
    """Hundreds of outputs within a hundredth of a step of the best."""
    given, weight = drawn(1, 20, 900, 64, dtype)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    near = (weight[:1].float() * (1 + 1e-4 * order)[:, None]).to(dtype)
    exact = given.double() @ near.double().t()
    found = exact.gather(1, torch.tensor(best(given, near))[:, None])[:, 0]
    torch.testing.assert_close(found, exact.amax(1), rtol=1e-6, atol=1e-6)


def test_of_equal_outputs_the_first() -> None:
    weight = drawn(0, 1, 40, 32, torch.float32)[1].repeat(100, 1)
    given = drawn(2, 9, 1, 32, torch.float32)[0]
    assert best(given, weight) == best_outputs_reference(given, weight[:40]).places.tolist()


@DTYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_has_none(bad: float, dtype: torch.dtype) -> None:
    given, weight = drawn(0, 6, 200, 32, dtype)
    expected = best_outputs_reference(given, weight).places.tolist()
    given[2, 5] = bad
    expected[2] = -1
    assert best(given, weight) == expected
    assert best_outputs_reference(given, weight).places.tolist() == expected


def test_a_row_of_nothing_has_the_first() -> None:
    assert best(torch.zeros(2, 32), drawn(0, 1, 200, 32, torch.float32)[1]) == [0, 0]


def test_where_8_bits_cannot_help() -> None:
    weight = drawn(0, 1, 60, 32, torch.float32)[1]
    assert make_screen(weight, matmul.pack(weight, bias=torch.zeros(60))) is None
    weight[7, 3] = torch.inf
    assert make_screen(weight, matmul.pack(weight)) is None


@pytest.mark.parametrize("shape", ["spread", "few channels", "one channel", "alike"])
def test_what_rounding_moves_lies_within_the_margins(shape: str) -> None:
    """Ten deviations of each; of 192,000 products none was off by four, whatever their rows look like."""
    given, weight = drawn(3, 64, 3000, 576, torch.float32)
    if shape == "few channels":
        given[:, ::97] *= 100
    elif shape == "one channel":
        given[:, 1:] *= 1e-3
    elif shape == "alike":
        weight = weight[:1] + 0.1 * weight
    codes, steps = quantize_rows(weight)
    row_codes, row_steps = byte_rows(given, torch.ones(576))
    coarse = (row_codes.double() - 128) @ codes.double().t() * row_steps.double()[:, None] * steps.double()
    exact = hadamard_transform(given).double() @ hadamard_transform(weight).double().t()
    margin = given.norm(dim=1)[:, None] * steps + row_steps[:, None] * weight.norm(dim=1)
    worst = float(((coarse - exact).abs() / (OF_A_STEP * margin)).max())
    assert 1 < worst < DEVIATIONS / 2, worst
