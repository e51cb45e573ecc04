"""Rows times weights on the CPU, in float32, bfloat16 or 8 bits: what a model's linear layers are.

Weights are packed once into panels of `LANES` outputs, so that a panel stays in a core's own cache while all rows pass
it, and what is done to the products (scales, biases, sums, gates) is done to a tile of them that has not left that
cache.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu.language.arguments import AT_ZERO, Counter, reader
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import (
    Loop,
    bfloat16_bits,
    float32_at,
    is_recording,
    lines_of,
    next_of,
    uint16_at,
)
from kernels.cpu.language.vectors import part_bytes, part_pairs, to_bfloat16
from kernels.cpu.matmul.adapter_expand import PanelAdapters, add_adapters, fetch_adapters
from kernels.cpu.matmul.gate import gate
from kernels.cpu.matmul.product import LANES, ROWS, VECTORS, byte_product, product
from kernels.processor import NATIVE_BFLOAT16, NATIVE_BYTES

# Rows of a tile, and of a unit of work: small enough that all cores have some, large enough to use a panel well.
TILE_ROWS, UNIT_ROWS = 32, 256
# Steps along the inputs after which a panel would outgrow the cache.
MAX_STEPS = 2048
STORE, ADD, GATE, ADD_WHOLE = 0, 1, 2, 3
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Weights (outputs, inputs) of `dtype`, packed for `matmul`.

    words (panels, steps, LANES) of 4 bytes: an input each in float32, two in bfloat16, four in int8. `gated`: the
    outputs are gates, then as many ups, and a panel of gates is followed by the panel of their ups. bias (panels,
    LANES) or empty. In int8: scales (panels, LANES), by which a column's sum is multiplied, and offsets (panels, LANES)
    in int32, -128 times the sum of its weights; else empty.
    """

    words: Tensor
    dtype: torch.dtype
    outputs: int
    inputs: int
    gated: bool
    bias: Tensor
    scales: Tensor
    offsets: Tensor


class MatmulArguments(NamedTuple):
    rows: Tensor
    panels: Tensor
    out: Tensor
    row_scales: Tensor | None
    scales: Tensor
    offsets: Tensor
    bias: Tensor
    num_rows: int
    num_panels: int
    steps: int
    columns: int
    out_row: int
    kind: int
    mode: int
    out_is_bfloat16: bool
    num_biases: int
    runs: Tensor | None
    next_run: Tensor | None
    num_runs: int
    shrunk: Tensor | None
    rank: int
    site: int
    ranges: Tensor | None
    num_sites: int
    page_words: int
    units_taken: Counter = AT_ZERO


_read = reader(MatmulArguments)


def pack(weight: Tensor, *, gated: bool = False, bias: Tensor | None = None, scales: Tensor | None = None) -> Panels:
    """weight (outputs, inputs) in float32, bfloat16, or int8 with `scales` (outputs,); `bias` (outputs,)."""
    outputs, inputs = weight.shape
    per_word = 4 // weight.dtype.itemsize
    padded = weight if inputs % per_word == 0 else functional.pad(weight, (0, -inputs % per_word))
    panels = _by_panel(padded, gated).view(-1, LANES, padded.shape[1])
    words_ = panels.contiguous().view(torch.int32).transpose(1, 2).contiguous()
    none = torch.empty(0)
    column_bias = none if bias is None else _by_panel(bias.float(), gated)
    column_scales = sums = none
    if scales is not None:
        sums = _by_panel(-128 * weight.sum(1, dtype=torch.int32), gated)
        column_scales = _by_panel(scales.float(), gated)
    return Panels(words_, weight.dtype, outputs, inputs, gated, column_bias, column_scales, sums)


def _by_panel(values: Tensor, gated: bool) -> Tensor:
    """(outputs, ...) in the order of the panels' columns, zeros between; gates and ups panel by panel."""
    parts = values.chunk(2) if gated else (values,)
    size = -(len(parts[0]) // -LANES) * LANES
    padded = values.new_zeros(len(parts), size, *values.shape[1:])
    for part, target in zip(parts, padded, strict=True):
        target[: len(part)] = part
    return padded.view(len(parts), -1, LANES, *values.shape[1:]).transpose(0, 1).flatten(0, 2).contiguous()


def available(dtype: torch.dtype) -> bool:
    """Whether it is compiled here for weights of `dtype`."""
    return dtype in _KINDS and LOOP.available


def rows_dtype(dtype: torch.dtype) -> torch.dtype:
    """What `matmul` takes rows in for weights of `dtype`.

    Where no instruction multiplies bfloat16 or bytes, a panel of them becomes float32 before all of a unit's rows pass
    it; rows have no reason then to be rounded.
    """
    if dtype == torch.int8:
        return torch.uint8 if NATIVE_BYTES else torch.float32
    return dtype if NATIVE_BFLOAT16 else torch.float32


def matmul(
    rows: Tensor,
    weights: Panels,
    out: Tensor,
    *,
    add: bool = False,
    in_order: bool = False,
    row_scales: Tensor | None = None,
    adapters: PanelAdapters | None = None,
) -> Tensor:
    """out = rows @ weights^T + bias in float32 (`add`: out +=); with gated weights, out = silu(gates) * ups.

    What `adapters` make of the rows is added to the sums, before a gate. Sums begin with what `out` has where whole
    tiles of rows are added; `in_order` they are made before they are added, however many rows there are.

    rows (n, inputs) in `rows_dtype`, contiguous; bytes are 128 where they mean zero, and have `row_scales` (n,).
    `inputs` is even for bfloat16 and a multiple of 4 for int8. out (n, outputs) in float32, or (n, outputs / 2) in
    float32 or bfloat16.
    """
    count, steps = len(rows), weights.words.shape[1]
    assert rows.dtype == rows_dtype(weights.dtype), (rows.dtype, weights.dtype)
    assert rows.shape[1] * weights.dtype.itemsize == 4 * steps, (rows.shape, weights.dtype, steps)
    assert rows.is_contiguous()
    assert out.stride(1) == 1
    assert out.dtype == torch.float32 or weights.gated
    roomy = -(count // -_ROWS) * _ROWS
    rows = _with_room(rows, roomy)
    row_scales = row_scales if row_scales is None else _with_room(row_scales, roomy)
    LOOP(
        rows=rows,
        panels=weights.words,
        out=out,
        row_scales=row_scales,
        scales=weights.scales,
        offsets=weights.offsets,
        bias=weights.bias,
        num_rows=count,
        num_panels=len(weights.words),
        steps=steps,
        columns=out.shape[1],
        out_row=out.stride(0),
        kind=_KINDS[weights.dtype],
        mode=GATE if weights.gated else STORE if not add else ADD_WHOLE if in_order else ADD,
        out_is_bfloat16=out.dtype == torch.bfloat16,
        num_biases=weights.bias.numel(),
        runs=None if adapters is None else adapters.runs.table,
        next_run=None if adapters is None else adapters.runs.next_run,
        num_runs=0 if adapters is None else adapters.runs.num_runs,
        shrunk=None if adapters is None else adapters.shrunk,
        rank=0 if adapters is None else adapters.runs.rank,
        site=0 if adapters is None else adapters.site,
        ranges=None if adapters is None else adapters.ranges,
        num_sites=0 if adapters is None else adapters.num_sites,
        page_words=0 if adapters is None else adapters.runs.page_words,
    )
    return out


def matmul_reference(
    rows: Tensor,
    weight: Tensor,
    *,
    gated: bool = False,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    row_scales: Tensor | None = None,
) -> Tensor:
    """`matmul` by its definition, in float32, from weights as they are packed; rows in 8 bits are signed."""
    if scales is not None and row_scales is not None:
        rows, weight = rows.float() * row_scales[:, None], weight.float() * scales[:, None]
    out = rows.float() @ weight.float().t()
    if bias is not None:
        out = out + bias
    if gated:
        gate, up = out.chunk(2, dim=1)
        out = functional.silu(gate) * up
    return out


def _with_room(rows: Tensor, count: int) -> Tensor:
    """The same rows where the memory of `count` rows may be read: a product takes several at once."""
    held = rows.untyped_storage().nbytes() // rows.dtype.itemsize - rows.storage_offset()
    if held >= count * rows.stride(0):
        return rows
    assert not is_recording(), "a copy would not be made again"
    roomy = rows.new_zeros(count, *rows.shape[1:])
    roomy[: len(rows)] = rows
    return roomy


_ROWS = ROWS[VECTORS]
_floats, _pairs = product(_ROWS, VECTORS, "float32"), product(_ROWS, VECTORS, "pairs")
_more_floats, _more_pairs = product(_ROWS, VECTORS, "float32", adds=True), product(_ROWS, VECTORS, "pairs", adds=True)
_bytes, _more_bytes = byte_product(_ROWS, VECTORS, adds=False), byte_product(_ROWS, VECTORS, adds=True)


@njit(error_model="numpy", fastmath=FASTMATH)
def tile_of(
    kind: int, rows: int, count: int, panel: int, steps: int, out: int, out_row: int, adds: int, ones: int, scaling: Any
) -> None:
    """out (count rounded up, LANES) = rows @ panel, or += where it `adds`; all are addresses but `scaling`.

    `out_row` is the stride of out's rows; `scaling` are the addresses of a panel's scales and offsets, of the rows'
    scales, and of a row of zeros, for bytes.
    """
    scales, offsets, row_scales, zeros = scaling
    for row in range(0, count, _ROWS):
        c = out + 4 * row * out_row
        for start in range(0, steps, MAX_STEPS):
            part = min(MAX_STEPS, steps - start)
            a, b = rows + 4 * (row * steps + start), panel + 4 * start * LANES
            first, low = start == 0 and not adds, zeros if start else offsets
            if kind == 2 and first:
                _bytes(a, steps, b, LANES, part, c, out_row, low, scales, row_scales + 4 * row)
            elif kind == 2:
                _more_bytes(a, steps, b, LANES, part, c, out_row, low, scales, row_scales + 4 * row)
            elif kind == 1 and first:
                _pairs(a, steps, 1, b, LANES, part, c, out_row, 0)
            elif kind == 1:
                _more_pairs(a, steps, 1, b, LANES, part, c, out_row, ones)
            elif first:
                _floats(a, steps, 1, b, LANES, part, c, out_row, 0)
            else:
                _more_floats(a, steps, 1, b, LANES, part, c, out_row, ones)


@njit(inline="always", error_model="numpy", fastmath=FASTMATH)
def _add_bias(tile: Any, rows: int, bias: Any) -> None:
    for row in range(rows):
        line = tile[row * LANES : (row + 1) * LANES]
        for i in range(LANES):
            line[i] += bias[i]


@njit(inline="always", error_model="numpy", fastmath=FASTMATH)
def _put_row(done: Any, out: int, start: int, width: int, mode: int, is_bfloat16: int) -> None:
    """`width` products of a row to element `start` of out, an address, as `mode` says."""
    if is_bfloat16 and width == LANES:
        to_bfloat16(done.ctypes.data, VECTORS, out + 2 * start)
    elif is_bfloat16:
        halves = uint16_at(out + 2 * start, width)
        for i in range(width):
            halves[i] = np.uint16(bfloat16_bits(done[i]))
    elif mode in (ADD, ADD_WHOLE):
        target = float32_at(out + 4 * start, width)
        for i in range(width):
            target[i] += done[i]
    else:
        target = float32_at(out + 4 * start, width)
        for i in range(width):
            target[i] = done[i]


def _multiply(arguments: Any) -> None:
    a = _read(arguments)
    rows, panels, out = a.rows, a.panels, a.out
    count, num_panels, steps, columns, out_row = a.num_rows, a.num_panels, a.steps, a.columns, a.out_row
    kind, mode, out_is_bfloat16, has_bias = a.kind, a.mode, a.out_is_bfloat16, a.num_biases
    row_scales, scales, offsets, bias = a.row_scales, a.scales, a.offsets, float32_at(a.bias, has_bias)
    both, ones, zeros = lines_of(2 * TILE_ROWS * LANES), lines_of(LANES), lines_of(LANES)
    ones[:], zeros[:] = np.float32(1), np.float32(0)
    num_runs = a.num_runs
    adapters = (a.runs, a.next_run, num_runs, a.shrunk, a.rank, a.site, a.ranges, a.num_sites, a.page_words)
    gates = 2 if mode == GATE else 1
    parts = (kind == 1 and not NATIVE_BFLOAT16) or (kind == 2 and not NATIVE_BYTES)
    # Of a panel and of a row, as they are multiplied.
    deep = 2 * kind * steps if parts else steps
    wide = lines_of(gates * deep * LANES if parts else 0)
    across = num_panels // gates
    while True:
        unit = next_of(a.units_taken)
        if unit >= across * -(count // -UNIT_ROWS):
            break
        panel, first = unit % across, unit // across * UNIT_ROWS
        width = min(LANES, columns - panel * LANES)
        unit_panels = panels + 4 * panel * gates * steps * LANES
        if parts:
            for part in range(gates):
                source, made = unit_panels + 4 * part * steps * LANES, wide.ctypes.data + 4 * part * deep * LANES
                if kind == 2:
                    part_bytes(source, steps, VECTORS, scales + 4 * (panel * gates + part) * LANES, made)
                else:
                    part_pairs(source, steps, VECTORS, 0, made)
            unit_panels = wide.ctypes.data
        for row in range(first, min(count, first + UNIT_ROWS), TILE_ROWS):
            taken, at = min(TILE_ROWS, count - row), rows + 4 * row * deep
            # Whole tiles of sums go where they belong; what is cut, biased or gated is made aside first.
            whole = mode < GATE and not has_bias and width == LANES and taken % _ROWS == 0
            into, into_row = both.ctypes.data, LANES
            if whole:
                into, into_row = out + 4 * (row * out_row + panel * LANES), out_row
            for part in range(gates):
                which = panel * gates + part
                made, source = into + 4 * part * TILE_ROWS * LANES, unit_panels + 4 * part * deep * LANES
                place = 4 * which * LANES
                scaling = scales + place, offsets + place, row_scales + 4 * row, zeros.ctypes.data
                adds = int(whole and mode == ADD)
                if num_runs:
                    fetch_adapters(row, taken, which, adapters)
                tile_of(0 if parts else kind, at, taken, source, deep, made, into_row, adds, ones.ctypes.data, scaling)
                if has_bias:
                    _add_bias(both[part * TILE_ROWS * LANES :], taken, bias[which * LANES : (which + 1) * LANES])
                if num_runs:
                    add_adapters(made, into_row, row, taken, which, adapters, ones.ctypes.data)
            if whole:
                continue
            if mode == GATE:
                gate(into, into + 4 * TILE_ROWS * LANES, taken * VECTORS)
            for r in range(taken):
                start = (row + r) * out_row + panel * LANES
                _put_row(both[r * LANES :], out, start, width, mode, out_is_bfloat16)


LOOP = Loop(_multiply, MatmulArguments)
