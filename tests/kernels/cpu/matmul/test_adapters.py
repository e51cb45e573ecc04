"""Adapters' products in compiled loops against their definition: many adapters, awkward sizes, memory full of NaN."""

import pytest
import torch

from kernels.cpu.language import openmp
from kernels.cpu.matmul import matmul
from kernels.cpu.matmul.adapter_expand import PanelAdapters, panel_ranges
from kernels.cpu.matmul.adapter_shrink import adapter_shrink
from kernels.cpu.matmul.product import LANES
from tests.kernels.paged_case import PagedCase, paged_case

# Rows of one adapter, of none, of many, and runs that begin and end within tiles and units.
ROWS = {
    "one row": [0],
    "none": [-1] * 5,
    "one adapter": [0] * 45,
    "rows without between": [-1, 0, 0, -1, 1, 1, 1, 1, -1, -1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, -1, -1],
    "every row another": [row % 3 for row in range(40)],
    "long runs": [0] * 133 + [1] * 3 + [-1] * 9 + [2] * 200,
}


@pytest.fixture(autouse=True)
def _compiled_and_drawn() -> None:
    assert openmp.available(), "this torch has no libgomp: the loops would not be reached"
    torch.manual_seed(0)


def roomy(rows: torch.Tensor) -> torch.Tensor:
    """With NaN behind, which may be read and must not be used."""
    room = torch.full((len(rows) + 16, rows.shape[1]), torch.nan, dtype=rows.dtype)
    room[: len(rows)] = rows
    return room[: len(rows)]


def shrunk(case: PagedCase, rows: torch.Tensor, num_sites: int) -> torch.Tensor:
    room = roomy(torch.full((len(rows), num_sites * case.runs.rank), torch.nan))
    return adapter_shrink(roomy(rows), case.runs, 0, num_sites, room)


@pytest.mark.parametrize("words", [97, 256, 1024])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_side_by_side(dtype: torch.dtype, name: str, words: int) -> None:
    """Of three layers in one product, whose panels they share; each adapter has ranks of its own, or nothing."""
    of_row, sizes = ROWS[name], [64, 20, 150]
    firsts = [sum(sizes[:place]) % LANES for place in range(3)]
    ranks = [[4, 0, 17], [0, 40, 16], [16, 16, 0]]
    case = paged_case(of_row, [(60, size) for size in sizes], ranks, words=words, columns=LANES, firsts=firsts)
    rows, weight = torch.randn(len(of_row), 60).to(dtype), torch.randn(sum(sizes), 60)
    made = shrunk(case, rows, 3)
    wanted = rows.float() @ weight.t() + torch.cat(
        [case.wanted(rows, site, size) for site, size in enumerate(sizes)], 1
    )
    adapters = PanelAdapters(case.runs, made, 0, panel_ranges(sizes, gated=False))
    for add in (False, True):
        out = torch.full((len(rows), sum(sizes)), 2.0 if add else torch.nan)
        matmul.matmul(rows.float(), matmul.pack(weight), out, add=add, adapters=adapters)
        assert float((out - wanted - (2.0 if add else 0)).abs().max()) < 2e-3


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("size", [48, 100])
def test_before_a_gate(name: str, size: int) -> None:
    of_row, ranks = ROWS[name], [[16, 16], [0, 8], [33, 0]]
    case = paged_case(of_row, [(60, size)] * 2, ranks, words=320, columns=LANES)
    rows, weight = torch.randn(len(of_row), 60), torch.randn(2 * size, 60) / 8
    wanted = rows @ weight.t() + torch.cat([case.wanted(rows, site, size) for site in range(2)], 1)
    gate, up = wanted.chunk(2, 1)
    adapters = PanelAdapters(case.runs, shrunk(case, rows, 2), 0, panel_ranges([size, size], gated=True))
    out = torch.full((len(rows), size), torch.nan)
    matmul.matmul(rows, matmul.pack(weight, gated=True, bias=torch.zeros(2 * size)), out, adapters=adapters)
    assert float((out - torch.nn.functional.silu(gate) * up).abs().max()) < 2e-2
