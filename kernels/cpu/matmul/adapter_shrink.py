"""The first half of adapters' products on the CPU: rows times each one's A, which is many inputs to few ranks.

Rows of many adapters pass in one call (Chen et al. 2023, Punica, arXiv 2310.18547, its SGMV); weights are read from
the pages they lie in (`kernels.paged_adapters`). The second half is `kernels.cpu.matmul.adapter_expand`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cpu.language.arguments import AT_ZERO, Counter, reader
from kernels.cpu.language.jit import FASTMATH, njit, types
from kernels.cpu.language.openmp import Loop, as_float32, float32_at, int64_at, lines_of, next_of, uint16_at
from kernels.cpu.language.vectors import LINE, WIDTH, prefetch
from kernels.cpu.matmul.product import ROWS, product
from kernels.paged_adapters import SITE_WORDS, AdapterRuns

TILE = min(ROWS[1], 8)


class ShrinkArguments(NamedTuple):
    rows: Tensor
    out: Tensor
    runs: Tensor
    next_run: Tensor
    num_runs: int
    num_rows: int
    inputs: int
    rank: int
    site: int
    num_sites: int
    page_words: int
    rows_are_bfloat16: bool
    units_taken: Counter = AT_ZERO


_read = reader(ShrinkArguments)


def adapter_shrink(rows: Tensor, runs: AdapterRuns, site: int, num_sites: int, out: Tensor) -> Tensor:
    """out (n, num_sites * rank) in float32 = rows times A of each of the sites from `site` on, side by side.

    rows (n, inputs), contiguous, in float32 or bfloat16; memory behind the last may be read. What no run covers, and
    what is beyond a run's own ranks, is left as it was.
    """
    assert rows.is_contiguous()
    assert out.is_contiguous()
    assert out.shape == (len(rows), num_sites * runs.rank), (out.shape, len(rows), num_sites, runs.rank)
    LOOP(
        rows=rows,
        out=out,
        runs=runs.table,
        next_run=runs.next_run,
        num_runs=runs.num_runs,
        num_rows=len(rows),
        inputs=rows.shape[1],
        rank=runs.rank,
        site=site,
        num_sites=num_sites,
        page_words=runs.page_words,
        rows_are_bfloat16=rows.dtype == torch.bfloat16,
    )
    return out


_HALF = TILE // 2
# Pages of A that are asked for before they are read: one is multiplied in less time than memory takes to answer.
AHEAD = 2
_product, _more = product(TILE, 1, "float32"), product(TILE, 1, "float32", adds=True)
_half_product, _half_more = product(_HALF, 1, "float32"), product(_HALF, 1, "float32", adds=True)


@njit(error_model="numpy", fastmath=FASTMATH)
def _shrink_rows(
    rows: int, inputs: int, is_half: bool, pages: Any, column: int, rank: int, per_page: int, out: int, ones: int
) -> None:
    """out (TILE, WIDTH), or the upper half of it, = rows times the ranks of A from `column` on.

    rows, out and ones are addresses.
    """
    for k in range(0, inputs, per_page):
        count, a, page = min(per_page, inputs - k), rows + 4 * k, pages[k // per_page] + 4 * column
        for ahead in range(1 if k == 0 else AHEAD, AHEAD + 1):
            start = k + ahead * per_page
            if column == 0 and start < inputs:
                prefetch(pages[start // per_page], -(4 * min(per_page, inputs - start) * rank // -LINE))
        if is_half and k == 0:
            _half_product(a, inputs, 1, page, rank, count, out, WIDTH, ones)
        elif is_half:
            _half_more(a, inputs, 1, page, rank, count, out, WIDTH, ones)
        elif k == 0:
            _product(a, inputs, 1, page, rank, count, out, WIDTH, ones)
        else:
            _more(a, inputs, 1, page, rank, count, out, WIDTH, ones)


def _shrink(arguments: Any) -> None:
    a = _read(arguments)
    num_rows, inputs, num_sites, num_runs = a.num_rows, a.inputs, a.num_sites, a.num_runs
    runs, next_run = int64_at(a.runs, 3 * num_runs), int64_at(a.next_run, num_rows)
    out_row = num_sites * a.rank
    out = float32_at(a.out, num_rows * out_row)
    made, ones = lines_of(TILE * WIDTH), lines_of(WIDTH)
    ones[:] = 1
    wide = lines_of(TILE * inputs if a.rows_are_bfloat16 else 0)
    while True:
        unit = next_of(a.units_taken)
        if unit >= num_sites * -(num_rows // -TILE):
            break
        part, first = unit % num_sites, unit // num_sites * TILE
        end = min(first + TILE, num_rows)
        rows = a.rows + 4 * first * inputs
        if a.rows_are_bfloat16:
            halves = uint16_at(a.rows + 2 * first * inputs, (end - first) * inputs)
            for i in range((end - first) * inputs):
                wide[i] = as_float32(types.int32(halves[i]) << types.int32(16))
            rows = wide.ctypes.data
        run = next_run[first]
        while run < num_runs and runs[3 * run] < end:
            start, stop = max(first, runs[3 * run]), min(end, runs[3 * run + 1])
            table = runs[3 * run + 2]
            header = int64_at(table + 8 * SITE_WORDS * (a.site + part), SITE_WORDS)
            rank = header[0]
            per_page = a.page_words // max(rank, 1)
            pages = int64_at(table + 8 * header[1], -(inputs // -per_page) if rank else 0)
            # Few rows of an adapter are in one half of the tile, as a rule: of the other half nothing is made.
            half = (start - first) // _HALF
            is_half = (stop - 1 - first) // _HALF == half
            skipped = half * _HALF if is_half else 0
            for column in range(0, rank, WIDTH):
                left = rows + 4 * skipped * inputs
                _shrink_rows(left, inputs, is_half, pages, column, rank, per_page, made.ctypes.data, ones.ctypes.data)
                for row in range(start, stop):
                    at = row * out_row + part * a.rank + column
                    for i in range(WIDTH):
                        out[at + i] = made[(row - first - skipped) * WIDTH + i]
            run += 1


LOOP = Loop(_shrink, ShrinkArguments)
