"""The greatest output of a wide linear layer, row by row: found among products of 8 bits, settled by exact ones.

A text that goes on greedily reads nothing of its logits but where the greatest is. So products of 8 bits, at a half to
a quarter of the time, leave out all outputs that cannot be it, and the few that are left are multiplied as they are
(two stages as in arXiv 1810.12406, whose first one is learned). An output is left out where two others are greater by
the margins of both, or one by more than it is asked to tell; a margin is `DEVIATIONS` standard deviations of what
rounding moves a product by.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.language.arguments import AT_ZERO, Counter, reader
from kernels.cpu.language.jit import intrinsic, ir, njit, types
from kernels.cpu.language.openmp import Loop, float32_at, int64_at, lines_of, next_of
from kernels.cpu.language.vectors import FLOAT, FLOATS, LONG, WIDTH, Vectors
from kernels.cpu.matmul import matmul
from kernels.cpu.matmul.int8_rows import byte_rows, quantize_rows
from kernels.cpu.matmul.matmul import TILE_ROWS, Panels, tile_of
from kernels.cpu.matmul.product import LANES, VECTORS, product
from kernels.processor import NATIVE_BYTES

DEVIATIONS = 10
# The standard deviation of what rounding to a whole step leaves, in steps.
OF_A_STEP = 1 / math.sqrt(12)
# Outputs that are rounded at a time: their transformed weights are in float32 for a moment.
PART = 4096
# Panels of a unit of work, at the end of which its outputs are settled.
UNIT_PANELS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """A layer twice: `exact`, and `coarse` in 8 bits, transformed; `norms` are the lengths of its outputs' weights.

    norms (panels * LANES,), 0 behind the last output; ones (inputs,).
    """

    exact: Panels
    coarse: Panels
    norms: Tensor
    ones: Tensor


class BestOutputs(NamedTuple):
    """Of rows (n,): the greatest output's number, -1 where the row is not finite, and by how much it is ahead of the
    next: exactly where that is less than was asked, else by that at least.
    """

    places: Tensor
    leads: Tensor


class BestOutputArguments(NamedTuple):
    codes: Tensor  # the rows in 8 bits, their scales and lengths
    scales: Tensor
    lengths: Tensor
    coarse: Tensor  # the coarse weights, by column their steps and offsets, and the lengths of the exact ones
    steps: Tensor
    offsets: Tensor
    norms: Tensor
    rows: Tensor  # the rows and the weights as they are
    exact: Tensor
    told: Tensor  # (num_rows,): by how much the greatest may be ahead and be asked by how much
    floors: Tensor  # (num_rows,): what an output must reach to be asked for; what the two greatest are at least
    firsts: Tensor
    seconds: Tensor
    values: Tensor  # (units, num_rows): the best of a unit's outputs, which it is, and the best of its others
    places: Tensor
    nexts: Tensor
    units: int
    num_rows: int
    outputs: int
    panels: int
    coarse_words: int
    exact_words: int
    is_bfloat16: bool
    units_taken: Counter = AT_ZERO


_read = reader(BestOutputArguments)


def make_screen(weight: Tensor, exact: Panels) -> Screen | None:
    """weight (outputs, inputs) as `exact` has it; None where 8 bits cannot help, or weights are not finite."""
    outputs, inputs = weight.shape
    fits = not exact.bias.numel() and not exact.gated and exact.dtype in (torch.float32, torch.bfloat16)
    if not fits or not NATIVE_BYTES or not matmul.available(torch.int8) or not LOOP.available:
        return None
    codes, steps = torch.empty(weight.shape, dtype=torch.int8), torch.empty(outputs)
    norms = torch.zeros(len(exact.words) * LANES)
    for first in range(0, outputs, PART):
        part = slice(first, min(first + PART, outputs))
        codes[part], steps[part] = quantize_rows(weight[part])
        norms[part] = weight[part].float().norm(dim=1)
    if not norms.isfinite().all():
        return None
    return Screen(exact, matmul.pack(codes, scales=steps), norms, torch.ones(inputs))


def best_outputs(rows: Tensor, screen: Screen, told: Tensor) -> BestOutputs:
    """rows (n, inputs) in the exact weights' dtype; of equals the first. A lead is told exactly where it is below
    `told` (n,): the less, the fewer outputs have to be multiplied exactly.
    """
    exact, coarse = screen.exact, screen.coarse
    assert rows.dtype == exact.dtype
    assert rows.is_contiguous()
    wide = rows.float()
    codes, scales = byte_rows(wide, screen.ones)  # with the room behind them that a tile reads
    lengths = wide.norm(dim=1)
    # All threads raise these. Whichever write is lost, they stay what two outputs at least are; it costs a little work.
    floors = torch.where((lengths * scales).isfinite(), -torch.inf, torch.inf)
    firsts, seconds = torch.full((2, len(rows)), -torch.inf)
    units = -(len(exact.words) // -UNIT_PANELS)
    values, nexts = torch.full((2, units, len(rows)), -torch.inf)
    places = torch.empty(units, len(rows), dtype=torch.int64)
    LOOP(
        codes=codes,
        coarse=coarse.words,
        steps=coarse.scales,
        offsets=coarse.offsets,
        scales=scales,
        norms=screen.norms,
        lengths=lengths,
        told=told,
        floors=floors,
        firsts=firsts,
        seconds=seconds,
        rows=rows,
        exact=exact.words,
        values=values,
        places=places,
        nexts=nexts,
        units=units,
        num_rows=len(rows),
        outputs=exact.outputs,
        panels=len(exact.words),
        coarse_words=coarse.words.shape[1],
        exact_words=exact.words.shape[1],
        is_bfloat16=rows.dtype == torch.bfloat16,
    )
    best = values.max(0)
    unit = best.indices[None]
    behind = torch.maximum(nexts.gather(0, unit)[0], values.scatter_(0, unit, -torch.inf).amax(0))
    chosen = torch.where(best.values.isfinite(), places.gather(0, unit)[0], -1)
    return BestOutputs(chosen, best.values - behind)


def best_outputs_reference(rows: Tensor, weight: Tensor) -> BestOutputs:
    """`best_outputs` by its definition, every lead told."""
    made = rows.float() @ weight.float().t()
    best = made.max(-1)
    behind = made.scatter(-1, best.indices[:, None], -torch.inf).amax(-1)
    return BestOutputs(torch.where(best.values.isfinite(), best.indices, -1), best.values - behind)


@intrinsic
def _near(
    _: Any, tile: Any, rows: Any, steps: Any, norms: Any, of_steps: Any, of_norms: Any, floors: Any, found: Any
) -> Any:
    """For numba: the rows of a tile that have an output at their floor or above, its margin added: how many.

    All are addresses but `rows`. `of_steps` and `of_norms` are the rows' parts of a margin, `steps` and `norms` those
    of a panel's outputs; numbers of rows go to `found`.
    """

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        tile, rows, steps, norms, of_steps, of_norms, floors, found = arguments
        emit = Vectors(builder)
        columns = [
            tuple(emit.load(FLOATS, emit.address(base, LONG(v * WIDTH))) for base in (steps, norms))
            for v in range(VECTORS)
        ]

        def row(index: Any, state: list[Any]) -> list[Any]:
            of_step, of_norm, floor = (
                emit.splat(emit.load(FLOAT, emit.address(base, index))) for base in (of_steps, of_norms, floors)
            )
            masks = []
            for v, (step, norm) in enumerate(columns):
                at = builder.add(builder.mul(index, LONG(LANES)), LONG(v * WIDTH))
                most = emit.multiply_add(step, of_step, emit.load(FLOATS, emit.address(tile, at)))
                masks.append(builder.fcmp_ordered(">=", emit.multiply_add(norm, of_norm, most), floor))
            any_ = builder.or_(builder.or_(masks[0], masks[1]), masks[2])
            hit = builder.icmp_unsigned("!=", builder.bitcast(any_, _MASK), _MASK(0))
            builder.store(index, builder.inttoptr(builder.add(found, builder.shl(state[0], LONG(3))), _LONGS))
            return [builder.add(state[0], builder.zext(hit, LONG))]

        return emit.loop(rows, [LONG(0)], row)[0]

    return types.int64(*[types.int64] * 8), generate


_MASK, _LONGS = ir.IntType(WIDTH), LONG.as_pointer()
_floats, _pairs = product(1, 1, "float32"), product(1, 1, "pairs")


@njit(error_model="numpy")
def _note(made: Any, panel: int, width: int, steps: Any, norms: Any, row: int, ofs: Any, notes: Any, count: int) -> int:
    """Raises a row's floor by `width` outputs of a panel and notes those vectors that reach it; how many are noted.

    `ofs` are all rows' parts of a margin, what leads are told, floors, and what the two greatest outputs are at least;
    `notes` are rows, vectors (panel * VECTORS + which), and what their greatest output is at most.
    """
    of_steps, of_norms, told, floors, firsts, seconds = ofs
    rows, vectors, tops = notes
    first, most, behind = panel * LANES, firsts[row], seconds[row]
    for lane in range(width):
        margin = of_steps[row] * steps[first + lane] + of_norms[row] * norms[first + lane]
        least = made[lane] - margin
        if least > most:
            most, behind = least, most
        elif least > behind:
            behind = least
    firsts[row], seconds[row] = most, behind
    floors[row] = max(floors[row], max(behind, most - told[row]))
    for vector in range(-(width // -WIDTH)):
        top = np.float32(-np.inf)
        for lane in range(vector * WIDTH, min(width, (vector + 1) * WIDTH)):
            margin = of_steps[row] * steps[first + lane] + of_norms[row] * norms[first + lane]
            top = max(top, made[lane] + margin)
        if top >= floors[row]:
            rows[count], vectors[count], tops[count] = row, panel * VECTORS + vector, top
            count += 1
    return count


@njit(error_model="numpy")
def _settle(
    rows: int, panels: int, words_: int, is_bfloat16: int, outputs: int, row: int, vector: int, room: Any
) -> tuple[int, Any, Any]:
    """The best of a vector of outputs for a row, exactly: which, what it is, and the best of the others."""
    at, panel = rows + 4 * row * words_, panels + 4 * (vector // VECTORS * words_ * LANES + vector % VECTORS * WIDTH)
    if is_bfloat16:
        _pairs(at, words_, 1, panel, LANES, words_, room.ctypes.data, WIDTH, 0)
    else:
        _floats(at, words_, 1, panel, LANES, words_, room.ctypes.data, WIDTH, 0)
    best, most, behind = vector * WIDTH, room[0], np.float32(-np.inf)
    for lane in range(1, min(WIDTH, outputs - vector * WIDTH)):
        if room[lane] > most:
            best, most, behind = vector * WIDTH + lane, room[lane], most
        elif room[lane] > behind:
            behind = room[lane]
    return best, most, behind


def _best(arguments: Any) -> None:
    a = _read(arguments)
    codes, coarse, exact_rows, exact = a.codes, a.coarse, a.rows, a.exact
    units, count, outputs, panels = a.units, a.num_rows, a.outputs, a.panels
    coarse_words, exact_words, is_bfloat16 = a.coarse_words, a.exact_words, a.is_bfloat16
    steps, norms = float32_at(a.steps, panels * LANES), float32_at(a.norms, panels * LANES)
    scales, lengths, floors = float32_at(a.scales, count), float32_at(a.lengths, count), float32_at(a.floors, count)
    told, firsts, seconds = float32_at(a.told, count), float32_at(a.firsts, count), float32_at(a.seconds, count)
    values, places = float32_at(a.values, units * count), int64_at(a.places, units * count)
    nexts = float32_at(a.nexts, units * count)
    made, zeros, room = lines_of(TILE_ROWS * LANES), lines_of(LANES), lines_of(WIDTH)
    zeros[:] = np.float32(0)
    # A row's parts of a margin: by a weight's step, and by the length of an output's weights.
    of_steps, of_norms = lines_of(count), lines_of(count)
    for row in range(count):
        of_steps[row] = np.float32(DEVIATIONS * OF_A_STEP) * lengths[row]
        of_norms[row] = np.float32(DEVIATIONS * OF_A_STEP) * scales[row]
    ofs = (of_steps, of_norms, told, floors, firsts, seconds)
    near, most = np.empty(TILE_ROWS, np.int64), UNIT_PANELS * VECTORS * count
    notes = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)
    while True:
        unit = next_of(a.units_taken)
        if unit >= units:
            break
        noted = np.int64(0)
        for panel in range(unit * UNIT_PANELS, min(panels, (unit + 1) * UNIT_PANELS)):
            place, source, width = 4 * panel * LANES, coarse + 4 * panel * coarse_words * LANES, outputs - panel * LANES
            for first in range(0, count, TILE_ROWS):
                taken, at = min(TILE_ROWS, count - first), codes + 4 * first * coarse_words
                scaling = a.steps + place, a.offsets + place, a.scales + 4 * first, zeros.ctypes.data
                tile_of(2, at, taken, source, coarse_words, made.ctypes.data, LANES, 0, 0, scaling)
                margins = of_steps.ctypes.data + 4 * first, of_norms.ctypes.data + 4 * first
                columns, over = (a.steps + place, a.norms + place), a.floors + 4 * first
                found = _near(made.ctypes.data, taken, *columns, *margins, over, near.ctypes.data)
                for i in range(found):
                    line = made[near[i] * LANES : (near[i] + 1) * LANES]
                    noted = _note(line, panel, min(LANES, width), steps, norms, first + near[i], ofs, notes, noted)
        for i in range(noted):
            row, vector, at = notes[0][i], notes[1][i], unit * count + notes[0][i]
            if notes[2][i] < floors[row]:
                continue
            best, value, behind = _settle(exact_rows, exact, exact_words, is_bfloat16, outputs, row, vector, room)
            if value > values[at]:
                nexts[at] = max(values[at], behind)
                values[at], places[at] = value, best
            else:
                nexts[at] = max(nexts[at], value)


LOOP = Loop(_best, BestOutputArguments)
