"""The second half of adapters' products on the CPU: few ranks to many outputs, added to a tile of the layer's own.

A tile has not left a core's cache when this is added, and a gate comes behind it: the layer's product goes on along
the ranks as if they were more inputs, `[x t] [W B]`, with another B for each adapter's rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import float32_at, int64_at
from kernels.cpu.matmul.product import LANES, ROWS, VECTORS, product
from kernels.paged_adapters import SITE_WORDS, AdapterRuns

TILE = ROWS[VECTORS]
RANGE_WORDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class PanelAdapters:
    """What a product adds of adapters: `shrunk` (rows, sites * rank) of `adapter_shrink`, times each one's B.

    `ranges` (sites, 3), int64, of the sites from `site` on: its first panel among the product's, how many panels from
    one of its to the next, and how many it has.
    """

    runs: AdapterRuns
    shrunk: Tensor
    site: int
    ranges: Tensor

    @property
    def num_sites(self) -> int:
        return len(self.ranges)


def panel_ranges(outputs: list[int], *, gated: bool) -> Tensor:
    """Of sites whose outputs lie side by side, or of a gate and an up, whose panels take turns."""
    table, column = [], 0
    for place, size in enumerate(outputs):
        if gated:
            table.append((place, len(outputs), -(size // -LANES)))
        else:
            first = column // LANES
            table.append((first, 1, -((column + size) // -LANES) - first))
            column += size
    return torch.tensor(table, dtype=torch.int64)


_more = product(TILE, VECTORS, "float32", adds=True)


@njit(error_model="numpy", fastmath=FASTMATH)
def add_adapters(tile: int, tile_row: int, row: int, count: int, panel: int, given: Any, room: int, ones: int) -> None:
    """tile (count rounded up, LANES) += what adapters make of rows `[row, row + count)` in a panel of outputs.

    tile, room (TILE, greatest rank) and ones are addresses, `tile_row` is the stride of the tile's rows. `given` are
    the fields of `MatmulArguments` that `PanelAdapters` are in.
    """
    runs_at, next_run_at, num_runs, shrunk, rank_room, site, ranges_at, num_sites, page_words = given
    runs, ranges = int64_at(runs_at, 3 * num_runs), int64_at(ranges_at, RANGE_WORDS * num_sites)
    next_run = int64_at(next_run_at, row + count)
    shrunk_row = num_sites * rank_room
    lines = page_words // LANES
    for first in range(row, row + count, TILE):
        end = min(first + TILE, row + count)
        run = next_run[first]
        while run < num_runs and runs[3 * run] < end:
            start, stop = max(first, runs[3 * run]), min(end, runs[3 * run + 1])
            table = runs[3 * run + 2]
            for part in range(num_sites):
                header = int64_at(table + 8 * SITE_WORDS * (site + part), SITE_WORDS)
                rank, behind = header[0], panel - ranges[RANGE_WORDS * part]
                step = ranges[RANGE_WORDS * part + 1]
                if rank == 0 or behind < 0 or behind % step or behind // step >= ranges[RANGE_WORDS * part + 2]:
                    continue
                left, left_row = shrunk + 4 * (first * shrunk_row + part * rank_room), shrunk_row
                if start > first or stop < end:  # rows of others get nothing
                    _copy_rows(left, shrunk_row, start - first, stop - first, rank, room)
                    left, left_row = room, rank
                line, done = behind // step * rank, 0
                pages = int64_at(table + 8 * header[2], (line + rank - 1) // lines + 1)
                while done < rank:
                    within = (line + done) % lines
                    taken = min(rank - done, lines - within)
                    right = pages[(line + done) // lines] + 4 * within * LANES
                    at = tile + 4 * (first - row) * tile_row
                    _more(left + 4 * done, left_row, 1, right, LANES, taken, at, tile_row, ones)
                    done += taken
            run += 1


@njit(error_model="numpy", fastmath=FASTMATH)
def _copy_rows(source: int, source_row: int, start: int, stop: int, rank: int, room: int) -> None:
    """Rows `[start, stop)` of a tile, and zeros in the place of the others; source and room are addresses."""
    target = float32_at(room, TILE * rank)
    for row in range(TILE):
        values = float32_at(source + 4 * row * source_row, rank)
        for i in range(rank):
            target[row * rank + i] = values[i] if start <= row < stop else 0
