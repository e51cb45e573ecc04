"""A segment of keys that few queries read: row by row, a block of keys after the other."""

from typing import Any, NamedTuple

from kernels.cpu.attention.attention_scratch import KEYS, MAX_QUERIES
from kernels.cpu.attention.attention_work import PER_WORD, Keys
from kernels.cpu.attention.byte_kv import row_size
from kernels.cpu.attention.row_block import make_row_block
from kernels.cpu.language.jit import FASTMATH, njit


class RowQueries(NamedTuple):
    """Some queries of one row, and what they have attended so far: addresses, and how many."""

    number: int
    query: int
    scales: int
    offsets: int
    means: int
    best: int
    total: int


class Ahead(NamedTuple):
    """What is to be brought nearer meanwhile: keys, values and how many, and the same of what comes behind these."""

    keys: int
    values: int
    length: int
    later_keys: int
    later_values: int
    later_length: int


def make_own_segment(kind: str) -> Any:
    """For numba: `f(segment, place, after, tile, work, positions, scratch)`: a segment's keys, for few queries.

    `place` is the address of the first of its keys, and of its values; `after` are the `Keys` that are read next;
    `scratch` has addresses.
    """
    row_block, per_word = make_row_block(kind), PER_WORD[kind]

    @njit(error_model="numpy", fastmath=FASTMATH)
    def own_segment(segment: Any, place: Any, after: Any, tile: Any, work: Any, positions: Any, scratch: Any) -> None:
        dim, group = work.dim, work.group
        size, query_size = row_size(dim, 4 // per_word), 4 * (dim // per_word)
        by_lane, means = scratch.by_lane, scratch.means
        tops, parts = scratch.tops, scratch.parts
        scales, offsets = scratch.query_scales, scratch.query_offsets
        for r in range(max(segment.row_start - tile.row, 0), min(segment.row_end - tile.row, tile.rows)):
            position = positions[tile.row + r] - segment.position
            stop = min(position + 1, segment.kv_end - segment.kv_start)
            start = max(position - work.window + 1, 0)
            for first in range(0, group, MAX_QUERIES):
                lane = r * group + first
                number, query, mean = min(MAX_QUERIES, group - first), by_lane + lane * query_size, 4 * lane * dim
                at = 4 * lane
                of = RowQueries(number, query, scales + at, offsets + at, means + mean, tops + at, parts + at)
                for key in range(start, stop, KEYS):
                    here, keys, values = min(KEYS, stop - key), place[0] + key * size, place[1] + key * size
                    # What lies a block's length ahead, as many keys as are here: of this row, then of what follows it.
                    near = max(min(here, stop - key - KEYS), 0)
                    skipped = max(key + KEYS - stop, 0)
                    others = max(min(here - near, after.length - skipped), 0)
                    far, later = KEYS * size, size * skipped
                    next_keys, next_values = after.keys + later, after.values + later
                    ahead = Ahead(keys + far, values + far, near, next_keys, next_values, others)
                    row_block(of, Keys(keys, values, here), work, scratch, ahead)

    return own_segment
