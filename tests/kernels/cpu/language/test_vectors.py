"""Float32 rounded to bfloat16 by vectors and one by one, bit for bit as torch does it."""

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from kernels.cpu.language.openmp import bfloat16_bits
from kernels.cpu.language.vectors import WIDTH, to_bfloat16
from kernels.processor import NATIVE_BFLOAT16


@njit
def by_vector(values: Any, out: Any) -> None:
    to_bfloat16(values.ctypes.data, len(values) // WIDTH, out.ctypes.data)


@njit
def one_by_one(values: Any, out: Any) -> None:
    for i in range(len(values)):
        out[i] = np.uint16(bfloat16_bits(values[i]))


def drawn() -> Any:
    """Every sign, exponent and upper bit of a float32, each with lower halves on all sides of a tie."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(np.float32)


@pytest.mark.parametrize("run", [by_vector, one_by_one], ids=["vectors", "scalar"])
def test_narrowing_is_torchs(run: Any) -> None:
    values = drawn()
    assert len(values) % WIDTH == 0
    made = np.full(len(values), 0xABCD, np.uint16)
    run(values, made)
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    is_nan = np.isnan(values)
    wide = (made.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(np.isnan(wide), is_nan)
    compared = ~is_nan
    if run is by_vector and NATIVE_BFLOAT16:  # the instruction takes what is below the least normal number for zero
        compared &= (values == 0) | (np.abs(values) >= np.finfo(np.float32).tiny)
    wrong = np.flatnonzero((made != wanted) & compared)
    assert not len(wrong), [(values[i], hex(made[i]), hex(wanted[i])) for i in wrong[:5]]
