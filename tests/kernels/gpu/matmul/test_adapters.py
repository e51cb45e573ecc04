"""Adapters' products on a GPU, in Triton's interpreter, against their definition."""

import pytest
import torch

from kernels.gpu.matmul.adapters import COLUMNS, ROWS, add_adapters
from tests.kernels.paged_case import PagedCase, paged_case

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 4e-1}
OF_ROW = {
    "one row": [0],
    "rows without between": [-1, 0, 0, -1, 1, 1, -1, 2, 0, 0, 2, -1],
    "every row another": [row % 3 for row in range(7)],
    "a run of several programs": [1] * (2 * ROWS + 3) + [0] * ROWS,
}


def case_of(of_row: list[int], sizes: list[int], words: int, dtype: torch.dtype) -> PagedCase:
    torch.manual_seed(0)
    ranks = [[4, 0, 17], [0, 40, 16], [16, 16, 0]]
    return paged_case(
        of_row,
        [(100, size) for size in sizes],
        [adapter[: len(sizes)] for adapter in ranks],
        words=words,
        columns=COLUMNS,
        dtype=dtype,
        most_rows=ROWS,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("words", [97, 1024])
@pytest.mark.parametrize("name", OF_ROW)
def test_adds_to_outputs_side_by_side(name: str, words: int, dtype: torch.dtype) -> None:
    """Of three layers, in rows that lie apart; what is not theirs, and rows of no adapter, stay as they are."""
    sizes, of_row = [64, 20, 150], OF_ROW[name]
    case = case_of(of_row, sizes, words, dtype)
    x = torch.randn(len(of_row), 210).to(dtype)[:, 7:107]
    before = torch.randn(len(of_row), sum(sizes) + 5).to(dtype)
    wide = before.clone()
    add_adapters(x, wide[:, : sum(sizes)], case.runs, 0, sizes)
    wanted = before.float()
    wanted[:, : sum(sizes)] += torch.cat([case.wanted(x, site, size) for site, size in enumerate(sizes)], 1)
    assert float((wide.float() - wanted).abs().max()) < TOLERANCE[dtype] * (1 + float(wanted.abs().max()) / 16)
    assert torch.equal(wide[:, sum(sizes) :], before[:, sum(sizes) :])
    without = [row for row, number in enumerate(of_row) if number < 0]
    assert torch.equal(wide[without], before[without])
