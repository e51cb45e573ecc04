"""The second half of adapters' products on the CPU: few ranks to many outputs, added to a tile of the layer's own.

A tile has not left a core's cache when this is added, and a gate comes behind it: the layer's product goes on along
the ranks as if they were more inputs, `[x t] [W B]`, with another B for each adapter's rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import int64_at
from kernels.cpu.language.vectors import LINE, prefetch
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


# Rows of one run that are taken at once; what is left is taken row by row, as the rows beside it are of others.
_SIZES = TILE, TILE // 2
_more, _half, _one = (product(size, VECTORS, "float32", adds=True) for size in (*_SIZES, 1))


@njit(inline="always", error_model="numpy", fastmath=FASTMATH)
def _panel_of(panel: int, ranges: Any, part: int) -> int:
    """Which of a site's own panels a product's panel is; -1 where it is none."""
    behind, step = panel - ranges[RANGE_WORDS * part], ranges[RANGE_WORDS * part + 1]
    if behind < 0 or behind % step or behind // step >= ranges[RANGE_WORDS * part + 2]:
        return -1
    return behind // step  # type: ignore[no-any-return]


@njit(inline="always", error_model="numpy", fastmath=FASTMATH)
def _lines_from(table: int, header: Any, line: int, end: int, per_page: int) -> tuple[int, int]:
    """The address of a line of B, and how many of the lines before `end` lie behind each other from there on."""
    page, within = line // per_page, line % per_page
    pages = int64_at(table + 8 * header[2], page + 1)
    return pages[page] + 4 * within * LANES, min(end - line, per_page - within)


@njit(error_model="numpy", fastmath=FASTMATH)
def fetch_adapters(row: int, count: int, panel: int, given: Any) -> None:
    """Asks for what `add_adapters` will read, which a product that is made meanwhile hides the wait for."""
    runs_at, next_run_at, num_runs, _, _, site, ranges_at, num_sites, page_words = given
    runs, ranges = int64_at(runs_at, 3 * num_runs), int64_at(ranges_at, RANGE_WORDS * num_sites)
    for part in range(num_sites):
        own = _panel_of(panel, ranges, part)
        run = num_runs if own < 0 else int64_at(next_run_at, row + 1)[row]
        while run < num_runs and runs[3 * run] < row + count:
            table = runs[3 * run + 2]
            header = int64_at(table + 8 * SITE_WORDS * (site + part), SITE_WORDS)
            line, end = own * header[0], (own + 1) * header[0]
            while line < end:
                at, taken = _lines_from(table, header, line, end, page_words // LANES)
                prefetch(at, -(4 * LANES * taken // -LINE))
                line += taken
            run += 1


@njit(error_model="numpy", fastmath=FASTMATH)
def add_adapters(tile: int, tile_row: int, row: int, count: int, panel: int, given: Any, ones: int) -> None:
    """tile (count, LANES) += what adapters make of rows `[row, row + count)` in a panel of outputs.

    tile and ones are addresses, `tile_row` is the stride of the tile's rows. `given` are the fields of
    `MatmulArguments` that `PanelAdapters` are in.
    """
    runs_at, next_run_at, num_runs, shrunk, rank_room, site, ranges_at, num_sites, page_words = given
    runs, ranges = int64_at(runs_at, 3 * num_runs), int64_at(ranges_at, RANGE_WORDS * num_sites)
    left_row = num_sites * rank_room
    for part in range(num_sites):
        own = _panel_of(panel, ranges, part)
        run = num_runs if own < 0 else int64_at(next_run_at, row + 1)[row]
        while run < num_runs and runs[3 * run] < row + count:
            start, stop = max(row, runs[3 * run]), min(row + count, runs[3 * run + 1])
            table = runs[3 * run + 2]
            header = int64_at(table + 8 * SITE_WORDS * (site + part), SITE_WORDS)
            line, end = own * header[0], (own + 1) * header[0]
            left, made = shrunk + 4 * (start * left_row + part * rank_room), tile + 4 * (start - row) * tile_row
            while line < end:
                at, taken = _lines_from(table, header, line, end, page_words // LANES)
                _add_lines(left, left_row, stop - start, at, taken, made, tile_row, ones)
                left += 4 * taken
                line += taken
            run += 1


@njit(error_model="numpy", fastmath=FASTMATH)
def _add_lines(
    left: int, left_row: int, count: int, right: int, lines: int, tile: int, tile_row: int, ones: int
) -> None:
    """tile (count, LANES) += left (count, lines) times right (lines, LANES); all are addresses and strides."""
    row = 0
    while row < count:
        a, c = left + 4 * row * left_row, tile + 4 * row * tile_row
        if count - row >= _SIZES[0]:
            _more(a, left_row, 1, right, LANES, lines, c, tile_row, ones)
            row += _SIZES[0]
        elif count - row >= _SIZES[1]:
            _half(a, left_row, 1, right, LANES, lines, c, tile_row, ones)
            row += _SIZES[1]
        else:
            _one(a, left_row, 1, right, LANES, lines, c, tile_row, ones)
            row += 1
