"""A step's plan on the device: every index tensor that attention needs, made once a step in one copy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.split_plan import ITEM_FIELDS, PIECE_FIELDS, SplitPlan, TileShape, split_plan
from kernels.gpu.tuning import AttentionConfig, attention_config, processors_of
from kernels.segments import Int32s, Ints, Segments

# Of each of a capacity's numbers but the rows.
MIN_ROOM = 256


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What all steps of a model have in common; `page` is the cache's block size in tokens."""

    heads: int
    kv_heads: int
    dim: int
    page: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def slices(self) -> int:
        """Programs a KV head: more than one where its query heads are too many for one tile."""
        return -(-self.group // 64)

    @property
    def slice_heads(self) -> int:
        return -(-self.group // self.slices)

    @property
    def tiles(self) -> tuple[int, int]:
        """Dimensions of a tile, and of a second one where both make up the head (80, 96, 192): else 0, and masked."""
        return dim_tiles(self.dim)

    @property
    def block_dim(self) -> int:
        return max(_power_of_two(self.dim), 16)

    def narrow(self, config: AttentionConfig) -> int:
        """A tile holds all heads of its slice, so some are higher than the table says."""
        return max(config.narrow, _power_of_two(self.slice_heads))

    def wide(self, config: AttentionConfig) -> int:
        return max(config.wide, self.narrow(config))


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for plans that a captured graph may see later: launches are this large, and programs past a plan's end stop.

    `partials` are rows of partial results; `entries` of the block table.
    """

    items: int
    pieces: int
    entries: int
    rows: int
    partials: int

    @classmethod
    def twice(cls, parts: Iterable[SplitPlan], rows: int) -> "Capacity":
        """Room for plans of `rows` rows that need at most twice what these do, and some more where they are small."""
        needs = np.array([_needs(part) for part in parts]).max(0)
        items, pieces, entries, _, partials = (2 * needs + MIN_ROOM).tolist()
        return cls(items, pieces, entries, rows, partials)

    def refuse(self, part: SplitPlan) -> None:
        """Raises CapacityError for a plan that has no room here."""
        rooms = (self.items, self.pieces, self.entries, self.rows, self.partials)
        if any(need > room for need, room in zip(_needs(part), rooms, strict=True)):
            raise CapacityError(f"the plan needs {_needs(part)} where its capacity gives {rooms}")


class CapacityError(ValueError):
    """A plan is larger than what a captured graph has room for."""


def _needs(part: SplitPlan) -> tuple[int, int, int, int, int]:
    """In the order of `Capacity`."""
    rows = max(part.num_rows, len(part.merge_rows))
    return len(part.items), len(part.pieces), len(part.table), rows, max(part.num_partials, len(part.merge_partials))


@dataclass(frozen=True, slots=True, eq=False)
class Indices:
    """A plan's arrays as views of one buffer of 32-bit integers."""

    num_items: Tensor
    num_merges: Tensor
    items: Tensor
    pieces: Tensor
    table: Tensor
    positions: Tensor
    merge_rows: Tensor
    merge_starts: Tensor
    merge_partials: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One window's plan on the device, the size of its launches, and which tiles there are."""

    indices: Indices
    buffer: Tensor
    grid_items: int
    grid_merges: int
    narrow: bool
    wide: bool


@dataclass(slots=True, eq=False)
class PrefixPlan:
    """Made by `plan`; `launches` has one entry for each distinct window."""

    shape: AttentionShape
    config: AttentionConfig
    launches: dict[int | None, Launch]
    partial_out: Tensor
    partial_lse: Tensor
    num_rows: int
    capacity: Capacity | None


def plan(
    segments: Segments,
    row_positions: Ints,
    shape: AttentionShape,
    device: torch.device | str,
    *,
    windows: Sequence[int | None] = (None,),
    config: AttentionConfig | None = None,
    processors: int | None = None,
    capacity: Capacity | None = None,
    room: bool = False,
    into: PrefixPlan | None = None,
    ahead: int = 0,
) -> PrefixPlan:
    """Everything that layers share. With `into`, a plan of the same windows is overwritten in place.

    A plan with a `capacity`, or with `room` for twice what it holds, takes others; raises CapacityError for one that
    does not fit. `config` and `processors` are the device's own if not given. The plan holds for `ahead` steps more, as
    in `split_plan`.
    """
    device = torch.device(device)
    widest = _widest(segments) * shape.slice_heads
    config = config or (into.config if into else attention_config(device, shape.dim, widest))
    tile = TileShape(shape.narrow(config), shape.wide(config), config.keys, shape.slice_heads)
    split = {
        window: split_plan(
            segments,
            row_positions,
            shape.page,
            tile,
            window=window,
            processors=(processors or processors_of(device)) * config.programs,
            head_slices=shape.kv_heads * shape.slices,
            ahead=ahead,
        )
        for window in windows
    }
    if into is not None:
        assert into.capacity is not None, "a plan without room for others"
        assert (into.shape, into.config, set(into.launches)) == (shape, config, set(split)), "not the captured plan"
        for part in split.values():
            into.capacity.refuse(part)
        for window, launch in into.launches.items():
            _upload(split[window], into.capacity, launch)
        into.num_rows = len(row_positions)
        return into
    if capacity is None and room:
        capacity = Capacity.twice(split.values(), len(row_positions))
    if capacity is not None:
        for part in split.values():
            capacity.refuse(part)
    partials = capacity.partials if capacity else max((part.num_partials for part in split.values()), default=0)
    made = PrefixPlan(
        shape=shape,
        config=config,
        launches={},
        partial_out=torch.empty((max(partials, 1), shape.heads, shape.dim), dtype=torch.float32, device=device),
        partial_lse=torch.empty((max(partials, 1), shape.heads), dtype=torch.float32, device=device),
        num_rows=len(row_positions),
        capacity=capacity,
    )
    for window, part in split.items():
        made.launches[window] = _allocate(part, capacity, device)
        _upload(part, capacity, made.launches[window])
    return made


def _widest(segments: Segments) -> int:
    return int((segments.row_end - segments.row_start).max(initial=1))


def dim_tiles(dim: int) -> tuple[int, int]:
    """Matrix units take 16 dimensions at least, and tiles are powers of two."""
    first = _power_of_two(dim + 1) // 2
    rest = dim - first
    return (first, rest) if rest >= 16 and rest == _power_of_two(rest) else (max(_power_of_two(dim), 16), 0)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _arrays(part: SplitPlan) -> list[Int32s]:
    """In the order of `Indices`."""
    counts = [np.array([len(rows)], dtype=np.int32) for rows in (part.items, part.merge_rows)]
    arrays = [part.items.reshape(-1), part.pieces.reshape(-1), part.table, part.positions]
    return [*counts, *arrays, part.merge_rows, part.merge_starts, part.merge_partials]


def _rooms(part: SplitPlan, capacity: Capacity | None) -> list[int]:
    """How long each of the arrays is, or may become."""
    if capacity is None:
        return [len(array) for array in _arrays(part)]
    items, pieces = capacity.items * ITEM_FIELDS, capacity.pieces * PIECE_FIELDS
    return [1, 1, items, pieces, capacity.entries, capacity.rows, capacity.rows, capacity.rows + 1, capacity.partials]


def _aligned(room: int) -> int:
    """Each array begins at 16 bytes, always: Triton compiles anew for a pointer that is aligned in another way."""
    return -(-room // 4) * 4


def _allocate(part: SplitPlan, capacity: Capacity | None, device: torch.device) -> Launch:
    rooms = _rooms(part, capacity)
    buffer = torch.zeros(sum(map(_aligned, rooms)), dtype=torch.int32, device=device)
    narrow = bool((part.items[:, 5] == 0).any()) or capacity is not None
    wide = bool((part.items[:, 5] == 1).any()) or capacity is not None
    grid_items = capacity.items if capacity else len(part.items)
    grid_merges = capacity.rows if capacity else len(part.merge_rows)
    return Launch(Indices(*torch.split(buffer, [*map(_aligned, rooms)])), buffer, grid_items, grid_merges, narrow, wide)


def _upload(part: SplitPlan, capacity: Capacity | None, launch: Launch) -> None:
    """One copy, from pinned memory (which torch keeps until the copy has run), so that the host does not wait."""
    host = torch.empty(launch.buffer.shape, dtype=torch.int32, pin_memory=launch.buffer.is_cuda)
    target, start = host.numpy(), 0
    for array, room in zip(_arrays(part), _rooms(part, capacity), strict=True):
        target[start : start + len(array)] = array
        start += _aligned(room)
    launch.buffer.copy_(host, non_blocking=True)
