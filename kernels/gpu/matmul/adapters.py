"""Adapters' products on a GPU: rows of many adapters in two launches, weights read from the pages that they lie in.

Punica's SGMV (Chen et al. 2023, arXiv 2310.18547, section 4): a shrink to the ranks, then an expansion that adds to a
layer's own outputs. A program takes a run of rows of one adapter, and each line of a page by its own address, as
S-LoRA's kernels do (arXiv 2311.03285, section 5.2). What a table, a site and a page are says `kernels.paged_adapters`.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning.launch import launch
from kernels.paged_adapters import SITE_WORDS, AdapterRuns

# Rows of a run, at most.
ROWS = 16
# Inputs that a shrink takes at once, and outputs of a panel.
INPUTS, COLUMNS = 64, 64


@triton.jit
def _run(runs_ptr, run):
    """First row, rows and table of a run."""
    first = tl.load(runs_ptr + 3 * run)
    return first, tl.load(runs_ptr + 3 * run + 1) - first, tl.load(runs_ptr + 3 * run + 2).to(tl.pointer_type(tl.int64))


@triton.jit
def _line_ptrs(table_ptr, pages, line, mask, width, per_page, dtype: tl.constexpr):
    """Pointers to lines `line`, a block of numbers, of a matrix whose pages begin at `pages` of the table."""
    page = tl.load(table_ptr + pages + line // per_page, mask=mask, other=0)
    return page.to(tl.pointer_type(dtype)) + (line % per_page) * width


@triton.jit(do_not_specialize=["site"])
def shrink_kernel(
    x_ptr,
    shrunk_ptr,
    runs_ptr,
    site,
    num_inputs,
    x_row_stride,
    page_words,
    SITE_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Program (i, j): run i times A of the j-th site from `site` on; shrunk (rows, sites, RANK) in float32."""
    first, count, table_ptr = _run(runs_ptr, tl.program_id(0))
    part = tl.program_id(1)
    header_ptr = table_ptr + SITE_WORDS * (site + part)
    own_rank, pages = tl.load(header_ptr), tl.load(header_ptr + 1)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # [ROWS]
    row = tl.arange(0, ROWS)
    # [RANK]
    rank = tl.arange(0, RANK)
    per_page = page_words // tl.maximum(own_rank, 1)
    # [ROWS, RANK]
    acc = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, tl.where(own_rank > 0, num_inputs, 0), INPUTS):
        # [INPUTS]
        cell = start + tl.arange(0, INPUTS)
        mask = cell < num_inputs
        a_ptrs = _line_ptrs(table_ptr, pages, cell, mask, own_rank, per_page, dtype)
        # [INPUTS, RANK]
        a = tl.load(a_ptrs[:, None] + rank[None, :], mask=mask[:, None] & (rank[None, :] < own_rank), other=0)
        # [ROWS, INPUTS]
        x_ptrs = x_ptr + (first + row)[:, None] * x_row_stride + cell[None, :]
        x = tl.load(x_ptrs, mask=(row[:, None] < count) & mask[None, :], other=0)
        acc = tl.dot(x, a, acc, input_precision="ieee")
    out_ptrs = shrunk_ptr + ((first + row)[:, None] * tl.num_programs(1) + part) * RANK + rank[None, :]
    tl.store(out_ptrs, acc, mask=row[:, None] < count)


@triton.jit(do_not_specialize=["site", "part", "first_column"])
def expand_kernel(
    shrunk_ptr,
    out_ptr,
    runs_ptr,
    site,
    part,
    first_column,
    num_sites,
    num_outputs,
    out_row_stride,
    page_words,
    SITE_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program (i, j): adds to run i's outputs of panel j, those of the `part`-th site from `site` on."""
    first, count, table_ptr = _run(runs_ptr, tl.program_id(0))
    panel = tl.program_id(1)
    header_ptr = table_ptr + SITE_WORDS * (site + part)
    own_rank, pages = tl.load(header_ptr), tl.load(header_ptr + 2)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    # [ROWS]
    row = tl.arange(0, ROWS)
    # [RANK]
    rank = tl.arange(0, RANK)
    # [COLUMNS]
    column = tl.arange(0, COLUMNS)
    is_mine = rank < own_rank
    b_ptrs = _line_ptrs(table_ptr, pages, panel * own_rank + rank, is_mine, COLUMNS, page_words // COLUMNS, dtype)
    # [RANK, COLUMNS]
    b = tl.load(b_ptrs[:, None] + column[None, :], mask=is_mine[:, None], other=0)
    # [ROWS, RANK]
    t_ptrs = shrunk_ptr + ((first + row)[:, None] * num_sites + part) * RANK + rank[None, :]
    t = tl.load(t_ptrs, mask=(row[:, None] < count) & is_mine[None, :], other=0)
    # [ROWS, COLUMNS]
    added = tl.dot(t.to(dtype), b, input_precision="ieee")
    cell = panel * COLUMNS + column
    mask = (row[:, None] < count) & (cell[None, :] < num_outputs) & (own_rank > 0)
    out_ptrs = out_ptr + (first + row)[:, None] * out_row_stride + first_column + cell[None, :]
    before = tl.load(out_ptrs, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptrs, (before + added).to(dtype), mask=mask)


def add_adapters(x: Tensor, out: Tensor, runs: AdapterRuns, site: int, outputs: Sequence[int]) -> None:
    """out (rows, sum of `outputs`) += what adapters make of x (rows, inputs) at each of the sites from `site` on.

    The sites' outputs lie side by side. x and out have rows in any stride and one dtype, which is the weights' too; no
    run has more than `ROWS` rows.
    """
    assert x.stride(1) == out.stride(1) == 1, (x.stride(), out.stride())
    assert x.dtype == out.dtype, (x.dtype, out.dtype)
    assert out.shape == (len(x), sum(outputs)), (out.shape, len(x), outputs)
    rank = max(triton.next_power_of_2(runs.rank), 16)
    shrunk = torch.empty((len(x), len(outputs), rank), dtype=torch.float32, device=x.device)
    launch(
        shrink_kernel,
        (runs.num_runs, len(outputs)),
        x,
        shrunk,
        runs.table,
        site,
        x.shape[1],
        x.stride(0),
        runs.page_words,
        SITE_WORDS=SITE_WORDS,
        ROWS=ROWS,
        INPUTS=INPUTS,
        RANK=rank,
        num_warps=4,
    )
    column = 0
    for part, size in enumerate(outputs):
        launch(
            expand_kernel,
            (runs.num_runs, triton.cdiv(size, COLUMNS)),
            shrunk,
            out,
            runs.table,
            site,
            part,
            column,
            len(outputs),
            size,
            out.stride(0),
            runs.page_words,
            SITE_WORDS=SITE_WORDS,
            ROWS=ROWS,
            RANK=rank,
            COLUMNS=COLUMNS,
            num_warps=4,
        )
        column += size
