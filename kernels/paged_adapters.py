"""How kernels find the weights of the adapters that a step's rows run with.

An adapter is a table of int64: first four numbers for each site, a place in the model where an adapter may add
something, then addresses of pages. A site has a rank, 0 where this adapter adds nothing there, and the places in the
table where the pages of its A and of its B begin. A page holds whole lines of a matrix:

    A    a line an input, of `rank` numbers
    B    a line an output panel and rank, of `columns` numbers; panels are runs of so many outputs

Ranks are filled up with zeros to a multiple of 16, and B has the adapter's scale in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

SITE_WORDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class AdapterRuns:
    """Which rows run with which adapter.

    `table` (runs, 3): rows `[first, last)`, ascending and apart, and the address of their adapter's table. `next_run`
    (rows,): the first run that ends behind the row. `rank` is the greatest of the step's adapters, `page_words` the
    numbers of a page. All int64, on the rows' device.
    """

    table: Tensor
    next_run: Tensor
    rank: int
    page_words: int

    @property
    def num_runs(self) -> int:
        return len(self.table)


def lines_of_a(weight: Tensor, rank: int) -> Tensor:
    """A's lines (inputs, rank) of weight (its own rank, inputs), with zeros up to `rank`."""
    return _padded(weight.t(), (0, rank - len(weight)))


def lines_of_b(weight: Tensor, rank: int, columns: int, first: int = 0) -> Tensor:
    """B's lines (panels * rank, columns) of weight (outputs, its own rank), the first output at column `first` of a
    panel.
    """
    outputs, own_rank = weight.shape
    behind = -(first + outputs) % columns
    padded = _padded(weight.t(), (first, behind, 0, rank - own_rank))
    return padded.reshape(rank, -1, columns).transpose(0, 1).reshape(-1, columns)


def in_pages(lines: Tensor, words: int) -> Tensor:
    """(pages, words): whole lines, one behind the other in as few pages as they fill, with zeros behind the last."""
    count, width = lines.shape
    per_page = words // width
    assert per_page > 0, (width, words)
    pages = lines.new_zeros(-(count // -per_page), words)
    held = pages[:, : per_page * width].view(-1, per_page, width)
    whole, rest = divmod(count, per_page)
    held[:whole] = lines[: count - rest].reshape(whole, per_page, width)
    if rest:
        held[whole, :rest] = lines[count - rest :]
    return pages


def _padded(lines: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """No copy where nothing is added."""
    return functional.pad(lines, sizes) if any(sizes) else lines


def from_pages(pages: Tensor, width: int, count: int) -> Tensor:
    """What `in_pages` made of `count` lines of `width` numbers."""
    per_page = pages.shape[1] // width
    return pages[:, : per_page * width].reshape(-1, width)[:count]


def runs_of(of_row: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs `(first, last, number)` of rows that lie together and have a number of 0 or more in common."""
    runs: list[tuple[int, int, int]] = []
    first = 0
    for row in range(1, len(of_row) + 1):
        if row == len(of_row) or of_row[row] != of_row[first]:
            if of_row[first] >= 0:
                runs.append((first, row, of_row[first]))
            first = row
    return runs
