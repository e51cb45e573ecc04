"""Steps for attention, drawn: a prefix tree's rows, their segments, a paged cache with NaN where none was written."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kernels.attention_inputs import AttentionInputs
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.reference.prefix_attention import prefix_shared_attention_reference
from kernels.segments import Segment, Segments


@dataclass
class Case:
    """A step under construction: rows are laid depth-first, and each node's segment closes behind its last row."""

    page: int = 16
    seed: int = 0
    rows: list[Segment] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def cached(self, tokens: int, position: int, runs: int = 1) -> list[tuple[int, int, int]]:
        """`tokens` slots as (start, end, position), in `runs` runs with a page that is never written before each."""
        spans = []
        cuts = np.linspace(0, tokens, runs + 1).astype(int) // self.page * self.page
        cuts[-1] = tokens
        for start, end in pairwise(cuts):
            if start < end:
                self.slots = (-(-self.slots // self.page) + 1) * self.page
                spans.append((self.slots, self.slots + end - start, position + start))
                self.slots += end - start
        return spans

    def reads(self, row_start: int, spans: list[tuple[int, int, int]], in_step: bool = False) -> None:
        """All rows from `row_start` to the last one so far."""
        for start, end, position in spans:
            self.rows.append(Segment(row_start, len(self.positions), start, end, position, in_step))

    def chunk(self, rows: int, position: int) -> int:
        """Rows that read each other causally; returns the first."""
        first = len(self.positions)
        self.positions += range(position, position + rows)
        self.reads(first, [(first, first + rows, position)], in_step=True)
        return first

    def decode(self, own: int, position: int, runs: int = 1) -> int:
        """One row at the end of `own` cached tokens."""
        first = len(self.positions)
        self.positions.append(position + own - 1)
        self.reads(first, self.cached(own, position, runs))
        return first

    @property
    def segments(self) -> Segments:
        return Segments.of(self.rows)

    @property
    def row_positions(self) -> np.ndarray:
        return np.array(self.positions, dtype=np.int64)


def drawn_inputs(
    case: Case, shape: AttentionShape, dtype: torch.dtype, *, fp8: bool = False, seed: int = 0
) -> AttentionInputs:
    """Slots that no segment reads are NaN, and so are the step's keys that none reads."""
    torch.manual_seed(seed)
    rows, blocks = len(case.positions), -(-max(case.slots, 1) // shape.page)
    query = torch.randn(shape.heads, rows, shape.dim).to(dtype).transpose(0, 1)
    kv = [torch.randn(shape.kv_heads, rows, shape.dim).transpose(0, 1) for _ in range(2)]
    caches = [torch.randn(shape.kv_heads, blocks * shape.page, shape.dim) for _ in range(2)]
    segments = case.segments
    for in_step, stores, axis in ((True, kv, 0), (False, caches, 1)):
        unread = torch.ones(stores[0].shape[axis], dtype=torch.bool)
        for index in np.flatnonzero(segments.in_step == in_step):
            unread[segments.kv_start[index] : segments.kv_end[index]] = False
        for store in stores:
            store[unread if axis == 0 else (slice(None), unread)] = torch.nan
    scales = [0.25 + torch.rand(shape.kv_heads) for _ in range(2)] if fp8 else [None, None]
    if fp8:
        kv = [(t / s[:, None]).to(torch.float8_e4m3fn) for t, s in zip(kv, scales, strict=True)]
        caches = [(t / s[:, None, None]).to(torch.float8_e4m3fn) for t, s in zip(caches, scales, strict=True)]
    else:
        kv, caches = [t.to(dtype) for t in kv], [t.to(dtype) for t in caches]
    paged = [t.view(shape.kv_heads, blocks, shape.page, shape.dim).permute(1, 2, 0, 3) for t in caches]
    return AttentionInputs(query, *kv, *paged, *scales)


def wanted(case: Case, inputs: AttentionInputs, scale: float, **options: object) -> tuple[Tensor, Tensor]:
    """The twin's answer, in float32 whatever the inputs' dtype."""
    wide = replace(inputs, query=inputs.query.float())
    return prefix_shared_attention_reference(wide, case.segments, case.row_positions, scale, **options)
