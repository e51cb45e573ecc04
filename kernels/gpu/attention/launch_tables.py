"""A step's work items on the device: every table that attention's launches read, made once a step in one copy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.capacity import Capacity
from kernels.gpu.attention.kernel_arguments import ItemTables, MergeTables, Partials
from kernels.gpu.attention.room import Room, new_partials
from kernels.gpu.attention.work_items import ItemField, PieceField, TileShape, WorkItems, work_items
from kernels.gpu.tuning.attention_config import AttentionConfig
from kernels.gpu.tuning.device_limits import processors_of
from kernels.gpu.tuning.tuned import choose_config
from kernels.segments import Int32s, Ints, Segments


@dataclass(frozen=True, slots=True, eq=False)
class WindowTables:
    """The tables of layers with one window, views of one buffer; how large their launches are, and which tiles occur.

    `num_items` (1,) of the items are real.
    """

    num_items: Tensor
    items: ItemTables
    merges: MergeTables
    buffer: Tensor
    grid_items: int
    grid_merges: int
    has_small: bool
    has_large: bool


@dataclass(slots=True, eq=False)
class LaunchTables:
    """Made by `launch_tables`; `by_window` has one entry for each distinct window."""

    shape: AttentionShape
    config: AttentionConfig
    by_window: dict[int | None, WindowTables]
    partials: Partials
    num_rows: int
    capacity: Capacity | None

    def move_rows(self, positions: Tensor) -> None:
        """Sets where the first rows stand, on the device."""
        for tables in self.by_window.values():
            tables.items.positions_ptr[: len(positions)].copy_(positions)

    def refill(self, segments: Segments, row_positions: Ints, *, processors: int | None = None, ahead: int = 0) -> None:
        """Overwrites the tables with another step's, in place. Raises CapacityError where they have no room for it."""
        assert self.capacity is not None, "tables without room for others"
        device = self.partials.out_ptr.device
        processors = processors or processors_of(device)
        windows = tuple(self.by_window)
        made = _work_items(segments, row_positions, self.shape, self.config, windows, processors, ahead)
        for items in made.values():
            self.capacity.refuse(items)
        for window, tables in self.by_window.items():
            _upload(made[window], self.capacity, tables)
        self.num_rows = len(row_positions)


def launch_tables(
    segments: Segments,
    row_positions: Ints,
    shape: AttentionShape,
    device: torch.device | str,
    *,
    windows: Sequence[int | None] = (None,),
    config: AttentionConfig | None = None,
    processors: int | None = None,
    capacity: Capacity | None = None,
    room: Room | None = None,
    ahead: int = 0,
) -> LaunchTables:
    """All that layers with these windows share; None is no window.

    Tables with a `capacity`, or with `room` for twice what they hold, can be refilled; raises CapacityError for a step
    that does not fit. Launches of one `room` share memory for partial results, so that they run one by one. `config`
    and `processors` are the device's own if not given. The tables hold for `ahead` steps more, as in `work_items`.
    """
    device = torch.device(device)
    rows = len(row_positions)
    config = config or choose_config(device, shape.room, _widest(segments) * shape.slice_heads)
    made = _work_items(segments, row_positions, shape, config, windows, processors or processors_of(device), ahead)
    if capacity is None and room is not None:
        capacity = room.capacity(made.values(), tuple(windows), rows)
    if capacity is not None:
        for items in made.values():
            capacity.refuse(items)
    partial_rows = capacity.partials if capacity else max((items.num_partials for items in made.values()), default=0)
    partials = (room.partials if room is not None else new_partials)(partial_rows, shape, device)
    by_window = {window: _allocate(items, capacity, device) for window, items in made.items()}
    for window, items in made.items():
        _upload(items, capacity, by_window[window])
    return LaunchTables(shape, config, by_window, partials, rows, capacity)


def _work_items(
    segments: Segments,
    row_positions: Ints,
    shape: AttentionShape,
    config: AttentionConfig,
    windows: Sequence[int | None],
    processors: int,
    ahead: int,
) -> dict[int | None, WorkItems]:
    tile = TileShape(shape.small_rows(config), shape.large_rows(config), config.keys, shape.slice_heads)
    return {
        window: work_items(
            segments,
            row_positions,
            shape.page,
            tile,
            window=window,
            processors=processors * config.programs,
            head_slices=shape.kv_heads * shape.slices,
            ahead=ahead,
        )
        for window in windows
    }


def _widest(segments: Segments) -> int:
    return int((segments.row_end - segments.row_start).max(initial=1))


def _arrays(made: WorkItems) -> list[Int32s]:
    """In the order of `ItemTables` and `MergeTables`."""
    num_items, num_merges = (np.array([len(rows)], dtype=np.int32) for rows in (made.items, made.merge_rows))
    items = [num_items, made.items.reshape(-1), made.pieces.reshape(-1), made.table, made.positions]
    return [*items, num_merges, made.merge_rows, made.merge_starts, made.merge_partials]


def _rooms(made: WorkItems, capacity: Capacity | None) -> list[int]:
    """How long each of the arrays is, or may become."""
    if capacity is None:
        return [len(array) for array in _arrays(made)]
    items, pieces = capacity.items * len(ItemField), capacity.pieces * len(PieceField)
    return [1, items, pieces, capacity.entries, capacity.rows, 1, capacity.rows, capacity.rows + 1, capacity.partials]


def _aligned(room: int) -> int:
    """Each array begins at 16 bytes, always: Triton compiles anew for a pointer that is aligned in another way."""
    return -(-room // 4) * 4


def _allocate(made: WorkItems, capacity: Capacity | None, device: torch.device) -> WindowTables:
    rooms = [_aligned(room) for room in _rooms(made, capacity)]
    buffer = torch.zeros(sum(rooms), dtype=torch.int32, device=device)
    views = torch.split(buffer, rooms)
    return WindowTables(
        num_items=views[0],
        items=ItemTables(*views[1:5]),
        merges=MergeTables(*views[5:]),
        buffer=buffer,
        grid_items=capacity.items if capacity else len(made.items),
        grid_merges=capacity.rows if capacity else len(made.merge_rows),
        has_small=bool((made.items[:, ItemField.IS_LARGE] == 0).any()) or capacity is not None,
        has_large=bool((made.items[:, ItemField.IS_LARGE] == 1).any()) or capacity is not None,
    )


def _upload(made: WorkItems, capacity: Capacity | None, tables: WindowTables) -> None:
    """One copy, from pinned memory (which torch keeps until the copy has run), so that the host does not wait."""
    host = torch.empty(tables.buffer.shape, dtype=torch.int32, pin_memory=tables.buffer.is_cuda)
    target, start = host.numpy(), 0
    for array, room in zip(_arrays(made), _rooms(made, capacity), strict=True):
        target[start : start + len(array)] = array
        start += _aligned(room)
    tables.buffer.copy_(host, non_blocking=True)
