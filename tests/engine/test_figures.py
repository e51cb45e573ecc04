"""Figures as a person reads them, and the ticks of an axis."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.figures import short, ticks


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (0, [0.0]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (512, [0, 200, 400]),
        (816, [0, 200, 400, 600, 800]),
        (30_000, [0, 10_000, 20_000, 30_000]),
    ],
)
def test_ticks_are_round(highest: float, expected: list[float]) -> None:
    assert ticks(highest) == expected


@given(st.floats(1e-3, 1e15))
def test_ticks_are_few_and_within(highest: float) -> None:
    found = ticks(highest)
    assert 2 <= len(found) <= 6
    assert found[0] == 0
    assert found[-1] <= highest * (1 + 1e-6)
    step = found[1]
    assert f"{step:e}"[0] in "125"
    assert all(math.isclose(at, number * step, rel_tol=1e-9) for number, at in enumerate(found))


def test_numbers_are_short() -> None:
    assert list(map(short, (0, 0.5, 1500, 2e6, 3e9))) == ["0", "0.5", "1.5k", "2M", "3G"]
