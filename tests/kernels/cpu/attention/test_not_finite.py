"""What is not finite in one row of a step is that row's alone."""

import pytest
import torch

from kernels.cpu.attention.cpu_attention import cpu_attention
from tests.kernels.cpu.attention.test_cpu_attention import BYTES, COMPILED, both, draw, in_bytes, out_of

# What keys and values are kept in, and what they are drawn in for that.
KEPT = {torch.float32: torch.float32, torch.bfloat16: torch.bfloat16, torch.uint8: torch.float32}
KINDS = [torch.float32, torch.bfloat16, pytest.param(torch.uint8, marks=BYTES)]


@COMPILED
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_no_row_of_a_tile_reads_is_nothing_to_it(kind: torch.dtype) -> None:
    """Values of later rows of the step are not finite here."""
    segments = [(0, 120, 0, 300, 0, 0), (0, 120, 0, 120, 300, 1)]
    drawn = draw([*range(300, 420)], segments, (3, 1, 64), (torch.float32, KEPT[kind], 0))
    drawn.own[1][:, 60:] = torch.nan
    drawn = in_bytes(drawn) if kind == torch.uint8 else drawn
    first = sorted(rows for rows in drawn.plan.tiles.tolist() if rows[1] <= 60)
    out = torch.empty(drawn.query.shape)
    cpu_attention(drawn.plan, drawn.query, drawn.cache, drawn.own, 0.2, out)
    assert first
    assert bool(torch.isfinite(out[: first[-1][1]]).all())


@COMPILED
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_stays_alone(kind: torch.dtype) -> None:
    """Its own row turns to NaN, in all of its heads of that KV head; rows beside it in a vector do not."""
    drawn = draw([230] * 20, [(0, 20, 0, 230, 0, 0)], (3, 1, 64), (torch.float32, KEPT[kind], 0))
    drawn.query[7] = torch.nan
    for got in (out_of(in_bytes(drawn)),) if kind == torch.uint8 else both(drawn, 0.2):
        assert torch.isfinite(got).flatten(1).all(1).tolist() == [row != 7 for row in range(20)]


@BYTES
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize("what", [torch.nan, torch.inf])
@pytest.mark.parametrize("readers", [1, 20], ids=["own", "shared"])
def test_what_is_not_finite_in_bytes_is_no_answer(which: int, what: float, readers: int) -> None:
    """Its readers' results are NaN, as they would be in all bits; those of rows that do not read it are not."""
    segments = [(0, readers, 0, 230, 0, 0), (readers, readers + 3, 240, 470, 0, 0)]
    drawn = draw([230] * (readers + 3), segments, (3, 1, 64), (torch.float32, torch.float32, 0))
    drawn.cache[which][:, 100, 9] = what
    finite = torch.isfinite(out_of(in_bytes(drawn))).flatten(1)
    assert not bool(finite[:readers].any())
    assert bool(finite[readers:].all())


@COMPILED
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_what_others_read_is_nothing_to_a_row(kind: torch.dtype, which: int, what: float) -> None:
    """Rows beside theirs in a tile, and in a vector, answer bit by bit as if it were finite."""
    segments = [(0, 14, 0, 40, 0, 0), (0, 5, 50, 90, 40, 0), (5, 10, 100, 250, 40, 0), (10, 14, 300, 340, 40, 0)]
    drawn = draw([400] * 14, segments, (3, 1, 64), (torch.float32, KEPT[kind], 0))
    wanted = out_of(in_bytes(drawn) if kind == torch.uint8 else drawn)
    drawn.cache[which][:, 120, 9] = what
    got = out_of(in_bytes(drawn) if kind == torch.uint8 else drawn)
    assert drawn.plan.tiles.tolist() == [[0, 14]]
    others = [*range(5), *range(10, 14)]
    assert torch.equal(got[others], wanted[others])
    assert bool(torch.isfinite(wanted).all())
    assert not bool(torch.isfinite(got[5:10]).all())
