"""Writes what a tile's queries attended: the sums of blocks and of rows' own keys, over both sums of weights."""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_work import LN2, place_of, whole_vectors
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import bfloat16_bits, exp, float32_at, uint16_at
from kernels.cpu.language.transpose import transpose
from kernels.cpu.language.vectors import WIDTH, to_bfloat16


@njit(error_model="numpy", fastmath=FASTMATH)
def write_attended(a: Any, tile: Any, work: Any, has_blocks: bool, scratch: Any) -> None:
    """Divides the sums by their weights: of blocks' keys, by element, if there were any, and of rows' own, by lane.

    Queries are spent: `by_lane` is overwritten.
    """
    dim, by_lane, best, tops = work.dim, scratch.by_lane, scratch.best, scratch.tops
    if has_blocks:
        lanes = whole_vectors(tile.rows * work.group, WIDTH)
        transpose(scratch.totals.ctypes.data, work.lanes, dim, lanes, by_lane.ctypes.data, dim)
    for lane in range(tile.rows * work.group):
        made, means = by_lane[lane * dim : (lane + 1) * dim], scratch.means[lane * dim : (lane + 1) * dim]
        pivot = max(best[lane], tops[lane])
        kept, added = exp((best[lane] - pivot) * np.float32(LN2)), exp((tops[lane] - pivot) * np.float32(LN2))
        share = np.float32(1) / (scratch.total[lane] * kept + scratch.parts[lane] * added)
        if has_blocks:
            for d in range(dim):
                made[d] = (made[d] * kept + means[d] * added) * share
        else:
            for d in range(dim):
                made[d] = means[d] * added * share
        put(made, dim, a.out, place_of(tile, work.group, lane, a.out_row, a.out_head), a.out_is_bfloat16)


@njit(error_model="numpy")
def put(made: Any, dim: int, out: int, start: int, is_bfloat16: int) -> None:
    """Float32 to element `start` of `out`, an address, in float32 or bfloat16."""
    if is_bfloat16 and dim % WIDTH == 0:
        to_bfloat16(made.ctypes.data, dim // WIDTH, out + 2 * start)
    elif is_bfloat16:
        halves = uint16_at(out + 2 * start, dim)
        for d in range(dim):
            halves[d] = np.uint16(bfloat16_bits(made[d]))
    else:
        floats = float32_at(out + 4 * start, dim)
        for d in range(dim):
            floats[d] = made[d]
