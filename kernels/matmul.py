"""Rows times weights on the CPU, in float32, bfloat16 or 8 bits: what a model's linear layers are.

Weights are packed once into panels of 48 outputs, so that a panel stays in a core's own cache while all rows pass it,
and what is done to the products (scales, biases, sums, gates) is done to a tile of them that has not left that cache.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from kernels.openmp import (
    FASTMATH,
    Loop,
    bits_of,
    exp,
    float32_at,
    int32_at,
    lines_of,
    narrow,
    next_of,
    uint16_at,
    words,
)
from kernels.product import ROWS, product
from kernels.vectors import NATIVE_BYTES, WIDTH

VECTORS = 3
LANES = VECTORS * WIDTH
# Rows of a tile, and of a unit of work: small enough that all cores have some, large enough to use a panel well.
TILE_ROWS, UNIT_ROWS = 32, 256
# Steps along the inputs after which a panel would outgrow the cache.
MAX_STEPS = 2048
STORE, ADD, GATE = 0, 1, 2
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Weights (outputs, inputs) of `dtype`, packed for `matmul`.

    words (panels, steps, 48) of 4 bytes: an input each in float32, two in bfloat16, four in int8. `gated`: the outputs
    are gates, then as many ups, and a panel of gates is followed by the panel of their ups. A row a panel, or empty:
    `bias`; in int8 `scales`, by which a column is multiplied, and `offsets` in int32, 128 times the sum of its
    weights.
    """

    words: Tensor
    dtype: torch.dtype
    outputs: int
    inputs: int
    gated: bool
    bias: Tensor
    scales: Tensor
    offsets: Tensor

    @property
    def num_bytes(self) -> int:
        return self.words.nbytes + self.bias.nbytes + self.scales.nbytes + self.offsets.nbytes


def pack(weight: Tensor, *, gated: bool = False, bias: Tensor | None = None, scales: Tensor | None = None) -> Panels:
    """weight (outputs, inputs) in float32, bfloat16, or int8 with `scales` (outputs,); `bias` (outputs,)."""
    outputs, inputs = weight.shape
    each = 4 // weight.dtype.itemsize
    padded = weight if inputs % each == 0 else functional.pad(weight, (0, -inputs % each))
    panels = _by_panel(padded, gated).view(-1, LANES, padded.shape[1])
    words_ = panels.contiguous().view(torch.int32).transpose(1, 2).contiguous()
    none = torch.empty(0)
    sums = none if scales is None else _by_panel(128 * weight.sum(1, dtype=torch.int32), gated)
    column_scales = none if scales is None else _by_panel(scales.float(), gated)
    column_bias = none if bias is None else _by_panel(bias.float(), gated)
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
    """Whether this processor multiplies `dtype` here; bytes need an instruction of their own."""
    return dtype in _KINDS and (dtype != torch.int8 or NATIVE_BYTES)


def matmul(
    rows: Tensor, weights: Panels, out: Tensor, *, add: bool = False, row_scales: Tensor | None = None
) -> Tensor:
    """out = rows @ weights^T + bias in float32 (`add`: out +=); with gated weights, out = silu(gates) * ups.

    rows (n, inputs) in the weights' dtype, contiguous; in int8 they are bytes of which 128 means zero, with
    `row_scales` (n,). `inputs` is even in bfloat16 and a multiple of 4 in bytes. out (n, outputs) in float32, or (n,
    outputs / 2) in float32 or bfloat16.
    """
    count, steps = len(rows), weights.words.shape[1]
    assert rows.shape[1] * rows.dtype.itemsize == 4 * steps, (rows.shape, rows.dtype, steps)
    assert rows.is_contiguous()
    assert out.stride(1) == 1
    assert out.dtype == torch.float32 or weights.gated
    rows = _with_room(rows, -(count // -_ROWS) * _ROWS)
    counter = np.zeros(1, dtype=np.int64)
    _loop(
        rows,
        weights.words,
        out,
        row_scales if row_scales is not None else 0,
        weights.scales,
        weights.offsets,
        weights.bias,
        counter.ctypes.data,
        count,
        len(weights.words),
        steps,
        out.shape[1],
        out.stride(0),
        _KINDS[weights.dtype],
        GATE if weights.gated else ADD if add else STORE,
        int(out.dtype == torch.bfloat16),
        len(weights.bias),
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
    out = rows.float() @ weight.float().t()
    if scales is not None and row_scales is not None:
        out = out * row_scales[:, None] * scales
    if bias is not None:
        out = out + bias
    if gated:
        gate, up = out.chunk(2, dim=1)
        out = functional.silu(gate) * up
    return out


def _with_room(rows: Tensor, count: int) -> Tensor:
    """The same rows where the memory of `count` rows may be read: a product takes several at once."""
    held = rows.untyped_storage().nbytes() // rows.dtype.itemsize - rows.storage_offset()
    if held >= count * rows.shape[1]:
        return rows
    roomy = rows.new_zeros(count, rows.shape[1])
    roomy[: len(rows)] = rows
    return roomy


_ROWS = ROWS[VECTORS]
_floats, _pairs = product(_ROWS, VECTORS, "float32"), product(_ROWS, VECTORS, "pairs")
_more_floats, _more_pairs = product(_ROWS, VECTORS, "float32", adds=True), product(_ROWS, VECTORS, "pairs", adds=True)
_bytes = product(_ROWS, VECTORS, "bytes" if NATIVE_BYTES else "float32")


@njit(error_model="numpy", fastmath=FASTMATH)
def _tile(
    kind: int,
    rows: int,
    count: int,
    panels: int,
    panel: int,
    steps: int,
    tile: Any,
    row_scales: Any,
    scales: Any,
    offsets: Any,
    bias: Any,
    has_bias: int,
    ones: Any,
) -> None:
    """tile (count rounded up, 48) = rows @ panel, scaled, with its bias."""
    into, start_word = tile.ctypes.data, panels + 4 * panel * steps * LANES
    for row in range(0, count, _ROWS):
        at, c = rows + 4 * row * steps, into + 4 * row * LANES
        if kind == 2:
            _bytes(at, steps, 1, start_word, LANES, steps, c, LANES, 0)
            continue
        for start in range(0, steps, MAX_STEPS):
            part = min(MAX_STEPS, steps - start)
            a, b = at + 4 * start, start_word + 4 * start * LANES
            if start == 0 and kind == 0:
                _floats(a, steps, 1, b, LANES, part, c, LANES, 0)
            elif start == 0:
                _pairs(a, steps, 1, b, LANES, part, c, LANES, 0)
            elif kind == 0:
                _more_floats(a, steps, 1, b, LANES, part, c, LANES, ones.ctypes.data)
            else:
                _more_pairs(a, steps, 1, b, LANES, part, c, LANES, ones.ctypes.data)
    if kind == 2:
        low, factors = offsets[panel * LANES :], scales[panel * LANES :]
        for row in range(count):
            scale = row_scales[row]
            for i in range(LANES):
                at = row * LANES + i
                tile[at] = np.float32(bits_of(tile[at]) - low[i]) * (scale * factors[i])
    if has_bias:
        more = bias[panel * LANES :]
        for row in range(count):
            for i in range(LANES):
                tile[row * LANES + i] += more[i]


def _multiply(arguments: Any) -> None:
    a = words(arguments, 17)
    rows, panels, out = a[0], a[1], a[2]
    count, num_panels, steps, columns, out_row, kind, mode, is_narrow = (
        a[8],
        a[9],
        a[10],
        a[11],
        a[12],
        a[13],
        a[14],
        a[15],
    )
    size = num_panels * LANES
    row_scales = float32_at(a[3], count if kind == 2 else 0)
    scales, offsets = float32_at(a[4], size if kind == 2 else 0), int32_at(a[5], size if kind == 2 else 0)
    has_bias = a[16]
    bias = float32_at(a[6], has_bias)
    tile, ups, ones = lines_of(TILE_ROWS * LANES), lines_of(TILE_ROWS * LANES), lines_of(LANES)
    ones[:] = np.float32(1)
    stride = 2 if mode == GATE else 1
    across = num_panels // stride
    while True:
        unit = next_of(a[7])
        if unit >= across * -(count // -UNIT_ROWS):
            break
        panel, first = unit % across, unit // across * UNIT_ROWS
        width = min(LANES, columns - panel * LANES)
        for row in range(first, min(count, first + UNIT_ROWS), TILE_ROWS):
            taken = min(TILE_ROWS, count - row)
            at, factors = rows + 4 * row * steps, row_scales[row:]
            _tile(kind, at, taken, panels, panel * stride, steps, tile, factors, scales, offsets, bias, has_bias, ones)
            if mode == GATE:
                panel_of_ups = panel * stride + 1
                _tile(kind, at, taken, panels, panel_of_ups, steps, ups, factors, scales, offsets, bias, has_bias, ones)
                for i in range(taken * LANES):
                    tile[i] = tile[i] / (np.float32(1) + exp(-tile[i])) * ups[i]
            for r in range(taken):
                start, done = (row + r) * out_row + panel * LANES, tile[r * LANES :]
                if is_narrow:
                    halves = uint16_at(out + 2 * start, width)
                    for i in range(width):
                        halves[i] = np.uint16(narrow(done[i]))
                elif mode == ADD:
                    target = float32_at(out + 4 * start, width)
                    for i in range(width):
                        target[i] += done[i]
                else:
                    target = float32_at(out + 4 * start, width)
                    for i in range(width):
                        target[i] = done[i]


_loop = Loop(_multiply)
