"""What the functions of a compiled attention hand to each other: tuples with names, made once a call, tile or block.

The kind of a cache is how a 4-byte word of its rows is read: as a float32, as a pair of bfloat16, or as four bytes.
"""

from typing import Any, NamedTuple

from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import int64_at
from kernels.segments import Segment

# By kind, the elements in a word.
PER_WORD = {"float32": 1, "pairs": 2, "bytes": 4}
# Scores and weights are over powers of two.
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453


class Work(NamedTuple):
    """What all tiles of a call have in common. `factor` makes a score a power of two."""

    dim: int
    group: int  # query heads of a KV head
    lanes: int  # of the largest tile, in whole vectors: the stride of what is by lane
    window: int
    factor: float
    softcap: float


class Tile(NamedTuple):
    """Consecutive rows and the query heads of one KV head: query i of row r is lane `r * group + i`."""

    row: int
    rows: int
    head: int


class Keys(NamedTuple):
    """Keys and values of one head that follow each other: addresses, and how many."""

    keys: int
    values: int
    length: int


class Block(NamedTuple):
    """Keys of a segment, of which the first is key `first_key`, and the lanes from `lane` on; addresses.

    `packed` are the values as sums take them: where they lie, or words of neighbouring keys in the scratch.
    """

    keys: int
    values: int
    packed: int
    length: int
    first_key: int
    lane: int
    is_masked: bool
    prefetches: bool


@njit(error_model="numpy", inline="always")
def place_of(tile: Any, group: int, lane: int, row_stride: int, head_stride: int) -> Any:
    """Where a lane's query, or what it attended, begins in a tensor with these strides."""
    return (tile.row + lane // group) * row_stride + (tile.head * group + lane % group) * head_stride


@njit(error_model="numpy", inline="always")
def whole_vectors(count: int, width: int) -> int:
    """`count` rounded up to vectors of `width` lanes."""
    return -(count // -width) * width


@njit(error_model="numpy")
def segment_at(segments: int, index: int) -> Any:
    """A row of `Segments.table`, which begins at the address."""
    row = int64_at(segments + 48 * index, 6)
    return Segment(row[0], row[1], row[2], row[3], row[4], row[5])
