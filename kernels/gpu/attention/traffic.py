"""How many bytes of keys and values a step's attention reads: as planned, without sharing, and at the least."""

from dataclasses import dataclass

import numpy as np

from kernels.gpu.attention.work_items import PieceField, WorkItems
from kernels.segments import Ints, Segments, reach


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one layer.

    `requested` is what all programs load, exactly; `memory` what is left of it if tiles of other rows over the same
    keys, running at the same time, find them in the L2 cache; `unshared` what each row loads that attends alone, its
    heads stacked; `least` every key and value that some row reads, once. `partial` are results that wait for the merge,
    written and read.
    """

    requested: int
    memory: int
    unshared: int
    least: int
    partial: int


def traffic(
    items: WorkItems,
    segments: Segments,
    row_positions: Ints,
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    kv_bytes: int,
    window: int | None = None,
    slices: int = 1,
) -> Traffic:
    """`kv_bytes` of one number; `slices` are the programs among which a KV head's query heads are divided."""
    token = 2 * kv_heads * dim * kv_bytes
    unshared, least = _rows_read(segments, row_positions, reach(window))
    lengths = (items.pieces[:, PieceField.END] - items.pieces[:, PieceField.START]).astype(np.int64)
    # A piece is known by its keys: where its table begins, its range, and which store it is in.
    pieces = items.pieces[:, [PieceField.ENTRY, PieceField.START, PieceField.END, PieceField.IN_STEP]]
    _, first = np.unique(pieces, axis=0, return_index=True)
    return Traffic(
        requested=int(lengths.sum()) * token * slices,
        memory=int(lengths[first].sum()) * token,
        unshared=unshared * token,
        least=least * token,
        partial=items.num_partials * heads * (dim + 1) * 4 * 2,
    )


def _rows_read(segments: Segments, row_positions: Ints, window: int) -> tuple[int, int]:
    """Keys that rows read, each row's counted apart, and all of them once."""
    read: dict[bool, list[Ints]] = {False: [], True: []}
    row_reads = 0
    for index in range(len(segments)):
        positions = row_positions[segments.row_start[index] : segments.row_end[index]]
        keys = segments.position[index] + np.arange(segments.kv_end[index] - segments.kv_start[index])
        far = positions[:, None] - keys
        near = (far >= 0) & (far < window)
        row_reads += int(near.sum())
        read[bool(segments.in_step[index])].append(segments.kv_start[index] + np.flatnonzero(near.any(0)))
    return row_reads, sum(len(np.unique(np.concatenate(slots))) for slots in read.values() if slots)
