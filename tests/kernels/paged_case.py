"""Adapters in pages, for tests of the kernels that read them: as a cache would hold them, in any order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.paged_adapters import SITE_WORDS, AdapterRuns, in_pages, lines_of_a, lines_of_b


@dataclass(frozen=True, eq=False)
class PagedCase:
    """`runs` of adapters whose weights, (rank, inputs) and (outputs, rank) or None by site, are `weights`."""

    runs: AdapterRuns
    weights: list[list[tuple[Tensor, Tensor] | None]]
    of_row: list[int]
    kept: list[Tensor]

    def wanted(self, rows: Tensor, site: int, outputs: int) -> Tensor:
        """By its definition: (rows, outputs)."""
        out = torch.zeros(len(rows), outputs)
        for row, number in enumerate(self.of_row):
            found = self.weights[number][site] if number >= 0 else None
            if found is not None:
                out[row] = found[1].float() @ (found[0].float() @ rows[row].float())
        return out


def paged_case(
    of_row: list[int],
    sites: list[tuple[int, int]],
    ranks: list[list[int]],
    *,
    words: int,
    columns: int,
    firsts: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    most_rows: int = 2**31,
) -> PagedCase:
    """`sites` are (inputs, outputs); `ranks` by adapter and site, 0 where it adds nothing; `firsts` as in `lines_of_b`;
    no run has more than `most_rows`.

    Pages lie in a pool of NaN, each a page away from the next.
    """
    firsts = firsts or [0] * len(sites)
    weights: list[list[tuple[Tensor, Tensor] | None]] = []
    tables: list[Tensor] = []
    kept: list[Tensor] = []
    for adapter in ranks:
        header, addresses, own = [], [], []
        for (inputs, outputs), rank, first in zip(sites, adapter, firsts, strict=True):
            if not rank:
                header += [0] * SITE_WORDS
                own.append(None)
                continue
            a, b = torch.randn(rank, inputs).to(dtype), torch.randn(outputs, rank).to(dtype)
            padded, places = -(rank // -16) * 16, []
            for lines in (lines_of_a(a, padded), lines_of_b(b, padded, columns, first)):
                pages = in_pages(lines, words)
                pool = torch.full((2 * len(pages), words), torch.nan, dtype=dtype)
                pool[::2] = pages
                kept.append(pool)
                places.append(SITE_WORDS * len(sites) + len(addresses))
                addresses += [pool[2 * page].data_ptr() for page in range(len(pages))]
            header += [padded, *places, 0]
            own.append((a, b))
        tables.append(torch.tensor(header + addresses, dtype=torch.int64))
        weights.append(own)
    kept += tables
    runs: list[list[int]] = []
    for row, number in enumerate(of_row):
        if number < 0:
            continue
        if row == 0 or of_row[row - 1] != number or row - runs[-1][0] == most_rows:
            runs.append([row, row, tables[number].data_ptr()])
        runs[-1][1] = row + 1
    next_run = [sum(last <= row for _, last, _ in runs) for row in range(len(of_row))]
    rank = max(-(one // -16) * 16 for adapter in ranks for one in adapter)
    table = torch.tensor(runs, dtype=torch.int64).view(-1, 3)
    return PagedCase(AdapterRuns(table, torch.tensor(next_run), rank, words), weights, of_row, kept)
