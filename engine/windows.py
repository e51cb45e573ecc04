"""What the rows of a step read in a layer: everything before them, or no more than a sliding window.

Within a window of `w`, the token at position p reads the keys at positions j with p - j < w, itself included
(transformers' `masking_utils.sliding_window_overlay`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.scheduler_output import KVSegment, SchedulerOutput
from kernels.attention import masked_score

Ints = NDArray[np.int64]
# Rows that read nothing of a segment split the rows that do, if there are as many in a row; fewer are masked.
MIN_GAP = 64


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Parts of attention as in `SchedulerOutput`, each with a mask (rows, keys) where not all rows read all keys.

    `own` (2, rows) are the first slot and the one behind the last of each row with an own part in the cache.
    """

    causal: tuple[tuple[int, int], ...]
    labels: tuple[tuple[int, int, Tensor], ...]
    own: Tensor
    context: tuple[tuple[KVSegment, Tensor | None], ...]


class StepReads:
    """A step's `Reads` for every window that a layer asks for, each made once."""

    def __init__(self, step: SchedulerOutput, dtype: torch.dtype, device: str) -> None:
        self.step = step
        self.dtype = dtype
        self.device = device
        self.everything = Reads(
            causal=step.causal,
            labels=tuple(
                (labels.row_start, labels.row_start + len(labels.parents), _tree_mask(labels.parents, dtype, device))
                for labels in step.labels
            ),
            own=_spans(step.own, device),
            context=tuple((segment, None) for segment in step.context),
        )
        self._windows: dict[int, Reads] = {}

    def within(self, window: int | None) -> Reads:
        if not window:
            return self.everything
        reads = self._windows.get(window)
        if reads is None:
            reads = self._windows[window] = self._clipped(window)
        return reads

    def _clipped(self, window: int) -> Reads:
        positions = self.step.position_ids
        start, end = self.everything.own
        if int(positions.max(initial=0)) < window:
            return self.everything
        causal = [part for chunk in self.step.causal for part in _cut(chunk, window)]
        context = [piece for start, end in self.step.causal for piece in _chunk_pieces(start, end, window, positions)]
        context += [piece for segment in self.step.context for piece in _pieces(segment, window, positions)]
        return Reads(
            causal=tuple(causal),
            labels=tuple((start, end, self._label_mask(start, end, mask, window)) for start, end, mask in self.labels),
            own=torch.stack((torch.maximum(start, end - window), end)),
            context=tuple((piece, self._mask(piece, window)) for piece in context),
        )

    @property
    def labels(self) -> tuple[tuple[int, int, Tensor], ...]:
        return self.everything.labels

    def _label_mask(self, start: int, end: int, tree: Tensor, window: int) -> Tensor:
        positions = self.step.position_ids[start:end]
        far = positions[:, None] - positions >= window
        return tree.masked_fill(torch.from_numpy(far).to(tree.device), -torch.inf) if far.any() else tree

    def _mask(self, piece: KVSegment, window: int) -> Tensor | None:
        """None where every row reads every key."""
        positions = self.step.position_ids[piece.row_start : piece.row_end]
        if int(positions.max()) - piece.position < window:
            return None
        keys = np.arange(piece.position, piece.position + piece.kv_end - piece.kv_start)
        far = torch.from_numpy(positions[:, None] - keys >= window).to(self.device)
        # torch's flash attention gives a row that reads nothing at all an lse of 0 if its mask is -inf, so that it
        # would count in a merge.
        mask = torch.zeros(far.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(far, masked_score(self.dtype))


def _spans(segments: Sequence[KVSegment], device: str) -> Tensor:
    spans = [[segment.kv_start for segment in segments], [segment.kv_end for segment in segments]]
    return torch.tensor(spans, dtype=torch.int64, device=device)


def _cut(chunk: tuple[int, int], window: int) -> Iterator[tuple[int, int]]:
    """Parts of at most `window` rows: within one, no key is too far."""
    start, end = chunk
    for first in range(start, end, window):
        yield first, min(first + window, end)


def _chunk_pieces(start: int, end: int, window: int, positions: Ints) -> Iterator[KVSegment]:
    """What each part of a cut chunk reads of the part before it; all before that is too far."""
    for first, last in _cut((start, end), window):
        if first > start:
            before = KVSegment(first, last, first - window, first, int(positions[first - window]), in_step=True)
            yield from _pieces(before, window, positions)


def _pieces(segment: KVSegment, window: int, positions: Ints) -> Iterator[KVSegment]:
    """The rows of a segment that read any of it, in runs, each with the keys that any row of the run reads."""
    last_key = segment.position + segment.kv_end - segment.kv_start - 1
    (reading,) = np.nonzero(positions[segment.row_start : segment.row_end] - last_key < window)
    if not len(reading):
        return
    for rows in np.split(reading, np.flatnonzero(np.diff(reading) > MIN_GAP) + 1):
        row_start, row_end = segment.row_start + int(rows[0]), segment.row_start + int(rows[-1]) + 1
        # Rows between those that read may lie beyond the window; they bound nothing.
        nearest = int(positions[segment.row_start + rows].min())
        skipped = max(nearest - window + 1 - segment.position, 0)
        yield KVSegment(
            row_start, row_end, segment.kv_start + skipped, segment.kv_end, segment.position + skipped, segment.in_step
        )


def _tree_mask(parents: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """(n, n): 0 where the row may read the column, itself or an ancestor; -inf elsewhere."""
    mask = torch.full((len(parents), len(parents)), -torch.inf, dtype=dtype)
    for index, parent in enumerate(parents):
        if parent >= 0:
            mask[index] = mask[parent]
        mask[index, index] = 0
    return mask.to(device)
