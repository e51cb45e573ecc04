"""The compiled transpose against numpy's."""

from typing import Any

import numpy as np
import pytest
from numba import njit

from kernels.cpu.language.transpose import transpose


@njit
def run(source: Any, rows: int, columns: int, target: Any) -> None:
    transpose(source.ctypes.data, source.shape[1], rows, columns, target.ctypes.data, target.shape[1])


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 48, 50])
@pytest.mark.parametrize("columns", [1, 16, 30, 64])
def test_transpose(rows: int, columns: int) -> None:
    source = np.arange(60 * 70, dtype=np.float32).reshape(60, 70)
    target = np.full((columns, 80), -1, dtype=np.float32)
    run(source, rows, columns, target)
    assert np.array_equal(target[:, :rows], source[:rows, :columns].T)
    assert bool((target[:, rows:] == -1).all()), "nothing is written behind the rows"
