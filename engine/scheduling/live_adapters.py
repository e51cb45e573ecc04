"""The adapters of live requests: their blocks, and what the next step has to bring in."""

from collections.abc import Mapping

from engine.scheduling.block_pool import BlockPool, BlockTable
from engine.scheduling.resident_adapters import ResidentAdapters
from engine.scheduling.scheduler_output import AdapterLoad


class LiveAdapters:
    """Takes blocks of the pool for adapters, as `ResidentAdapters` decides. An adapter keeps its number for ever."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks: dict[str, int] = {}
        self._resident = ResidentAdapters(self._blocks)
        self._tables: dict[str, BlockTable] = {}
        self._loads: list[AdapterLoad] = []
        self._gone: list[int] = []
        self.numbers: dict[str, int] = {}

    @property
    def num_idle_blocks(self) -> int:
        """Blocks of adapters that no request runs with now."""
        return self._resident.idle_blocks()

    @property
    def changed(self) -> bool:
        """Whether a step has yet to hear of what came or went."""
        return bool(self._loads or self._gone)

    def know(self, blocks: Mapping[str, int]) -> None:
        """Says how many blocks some adapters take."""
        self._blocks.update(blocks)
        for adapter in blocks:
            self.numbers.setdefault(adapter, len(self.numbers))

    def blocks_of(self, adapter: str | None) -> int:
        return 0 if adapter is None else self._blocks[adapter]

    def missing_blocks(self, adapter: str | None) -> int:
        return self._resident.missing_blocks(adapter)

    def idle_blocks(self, but: str | None) -> int:
        return self._resident.idle_blocks(but)

    def enter(self, adapter: str | None, others: int) -> None:
        """A request that runs with it is admitted, and needs `others` blocks besides; idle adapters make room."""
        wanted = others + self._resident.missing_blocks(adapter)
        for gone in self._resident.make_room(wanted - self._pool.num_free, adapter):
            self._pool.free(self._tables.pop(gone))
            self._gone.append(self.numbers[gone])
        if self._resident.enter(adapter):
            assert adapter is not None
            table = self._tables[adapter] = self._pool.allocate(self._blocks[adapter] * self._pool.block_size)
            self._loads.append(AdapterLoad(self.numbers[adapter], adapter, table.blocks))

    def leave(self, adapter: str | None) -> None:
        self._resident.leave(adapter)

    def take_changes(self) -> tuple[tuple[AdapterLoad, ...], tuple[int, ...]]:
        """What came and which went since this was last asked, for the step that is being made."""
        changes = tuple(self._loads), tuple(self._gone)
        self._loads, self._gone = [], []
        return changes
