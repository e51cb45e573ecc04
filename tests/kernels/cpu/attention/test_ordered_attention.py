"""Attention in the order of the keys' positions: its definition, and the same bits however keys and rows are cut."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.cpu.attention import byte_kv
from kernels.cpu.attention.attention_plan import plan_attention
from kernels.cpu.attention.ordered_attention import ordered_attention
from kernels.cpu.language import openmp
from kernels.processor import takes_bytes
from kernels.segments import Segments
from tests.kernels.cpu.attention.test_cpu_attention import DTYPES, POSITIONS, SEGMENTS, SHAPES, by_definition, draw

pytestmark = pytest.mark.skipif(not openmp.available(), reason="this torch has no libgomp: nothing is compiled")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 30, 165])
@pytest.mark.parametrize(("softcap", "sunk"), [(0.0, False), (2.0, True)], ids=["plain", "capped, sinks"])
def test_equals_its_definition(
    shape: tuple[int, int, int], dtypes: tuple[Any, ...], window: int | None, softcap: float, sunk: bool
) -> None:
    drawn = draw(POSITIONS, SEGMENTS, shape, dtypes)
    plan = plan_attention(drawn.plan.positions, drawn.plan.segments, shape[1], 2, in_order=True)
    limits: dict[str, Any] = {"window": window, "softcap": softcap, "sinks": torch.randn(shape[0]) if sunk else None}
    out = torch.full(drawn.query.shape, torch.nan, dtype=drawn.query.dtype)
    got = ordered_attention(plan, drawn.query, drawn.cache, drawn.own, 0.2, out, **limits)
    assert float((got.double() - by_definition(drawn, 0.2, **limits)).abs().max()) < dtypes[2]


KINDS = ["float32", "bfloat16"] + (["bytes"] if takes_bytes(64) else [])
HEADS, KV_HEADS, DIM = 6, 2, 64


def kept(made: tuple[Tensor, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    if kind == "bytes":
        return byte_kv.key_rows(made[0]), byte_kv.value_rows(made[1])
    return made[0].to(getattr(torch, kind)), made[1].to(getattr(torch, kind))


class Prompts:
    """Prompts with a common beginning: queries, keys and values of all of their positions."""

    def __init__(self, shared: int, lengths: list[int], kind: str) -> None:
        generator = torch.Generator().manual_seed(shared + sum(lengths))
        self.shared, self.lengths, self.kind = shared, lengths, kind
        size = shared + max(lengths)
        self.query = torch.randn(len(lengths), size, HEADS, DIM, generator=generator)
        keys, values = torch.randn(2, len(lengths), KV_HEADS, size, DIM, generator=generator)
        for made in (keys, values):
            made[:, :, :shared] = made[0, :, :shared]
            made[:, :, : shared // 2] *= 1e-3  # sums that are all but nothing, where one more bit would be seen
        self.made = kept((keys, values), kind)

    def attended(self, asked: list[tuple[int, int]], cuts: list[int], threads: int, **limits: Any) -> list[Tensor]:
        """Of rows (prompt, position), in this order, where prompts lie in pieces that end at `cuts`."""
        asked = sorted(asked, key=lambda row: row[0])
        table, width = [], self.made[0].shape[-1]
        cache = tuple(made.new_empty(KV_HEADS, 4000, width) for made in self.made)
        for made in cache:
            made.copy_(self.made[0][0, :, :1].expand_as(made))
        slot = 5
        for prompt in (-1, *range(len(self.lengths))):
            rows = [i for i, (of, _) in enumerate(asked) if prompt in (-1, of)]
            first, last = (0, self.shared) if prompt < 0 else (self.shared, self.shared + self.lengths[prompt])
            ends = [cut for cut in cuts if first < cut < last]
            for start, end in zip([first, *ends], [*ends, last], strict=True):
                if rows and end > start:
                    for made, source in zip(cache, self.made, strict=True):
                        made[:, slot : slot + end - start] = source[max(prompt, 0), :, start:end]
                    table.append((rows[0], rows[-1] + 1, slot, slot + end - start, start, 0))
                    slot += end - start + 3
        table.sort(key=lambda row: -row[4])
        positions = np.array([position for _, position in asked], dtype=np.int64)
        segments = Segments(np.array(table, dtype=np.int64).reshape(-1, 6))
        plan = plan_attention(positions, segments, KV_HEADS, threads, in_order=True)
        query = torch.stack([self.query[prompt, position] for prompt, position in asked])
        out = torch.full(query.shape, torch.nan)
        own = tuple(made[:, :0] for made in cache)
        ordered_attention(plan, query, cache, own, 0.3, out, **limits)
        return list(out)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_row_has_the_same_bits_in_any_step(kind: str, data: st.DataObject) -> None:
    shared, lengths = data.draw(st.integers(0, 300)), data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=5))
    prompts = Prompts(shared, lengths, kind)
    rows = [(p, shared + at) for p, length in enumerate(lengths) for at in range(length)]
    asked = sorted(data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=90, unique=True)))
    cuts = sorted(data.draw(st.sets(st.integers(1, shared + max(lengths)), max_size=6)))
    window = data.draw(st.sampled_from([None, 1, 40]))
    softcap = 0.0 if kind == "bytes" else data.draw(st.sampled_from([0.0, 5.0]))
    limits: dict[str, Any] = {"window": window, "softcap": softcap}
    together = prompts.attended(asked, cuts, data.draw(st.sampled_from([1, 2, 8])), **limits)
    for row, made in list(zip(asked, together, strict=True))[:: max(len(asked) // 6, 1)]:
        [alone] = prompts.attended([row], [], 1, **limits)
        assert alone.numpy().tobytes() == made.numpy().tobytes(), row


def test_a_row_that_is_not_finite_is_so_alone() -> None:
    prompts = Prompts(40, [8, 8, 8], "float32")
    good = prompts.attended([(0, 44), (2, 44)], [], 1)
    prompts.made[1][1, :, 43] = torch.nan
    first, lost, last = prompts.attended([(0, 44), (1, 44), (2, 44)], [], 1)
    assert lost.isnan().all()
    assert torch.equal(torch.stack([first, last]), torch.stack(good))
