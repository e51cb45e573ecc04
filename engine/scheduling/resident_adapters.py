"""Which adapters are in the KV cache's memory, and which make room: the rule, on counts.

Their weights lie in blocks of the same pool as keys and values (S-LoRA, Sheng et al. 2023, arXiv 2311.03285, section
5), so that one budget serves both. The scheduler and the simulator of `engine.planning` each have one of these.
"""

from collections.abc import Mapping


class ResidentAdapters:
    """An adapter is in use while a request that runs with it is admitted and unfinished.

    One that is in no use stays, and is the first to go the longer it has been in none.
    """

    def __init__(self, blocks: Mapping[str, int]) -> None:
        """`blocks` that each one takes; it may grow."""
        self._blocks = blocks
        self._users: dict[str, int] = {}
        self._idle: dict[str, None] = {}  # in the order in which they came to be so
        self._num_idle_blocks = 0

    def missing_blocks(self, adapter: str | None) -> int:
        """Blocks that it would take to bring the adapter in; 0 where it is there, or is none."""
        if adapter is None or adapter in self._users or adapter in self._idle:
            return 0
        return self._blocks[adapter]

    def idle_blocks(self, but: str | None = None) -> int:
        """Blocks that can be had of adapters that are in no use, one of which is to stay."""
        kept = self._blocks[but] if but is not None and but in self._idle else 0
        return self._num_idle_blocks - kept

    def make_room(self, blocks: int, but: str | None) -> list[str]:
        """The adapters that go, so that so many `blocks` are free of them; `but` is not one."""
        gone: list[str] = []
        for adapter in self._idle:
            if blocks <= 0:
                break
            if adapter != but:
                gone.append(adapter)
                blocks -= self._blocks[adapter]
        assert blocks <= 0, blocks
        for adapter in gone:
            self._leave_idle(adapter)
        return gone

    def enter(self, adapter: str | None) -> bool:
        """A request that runs with it was admitted; returns whether its weights have to be brought in."""
        if adapter is None:
            return False
        is_new = self.missing_blocks(adapter) > 0
        if adapter in self._idle:
            self._leave_idle(adapter)
        self._users[adapter] = self._users.get(adapter, 0) + 1
        return is_new

    def leave(self, adapter: str | None) -> None:
        """A request that ran with it ended."""
        if adapter is None:
            return
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]
            self._idle[adapter] = None
            self._num_idle_blocks += self._blocks[adapter]

    def _leave_idle(self, adapter: str) -> None:
        del self._idle[adapter]
        self._num_idle_blocks -= self._blocks[adapter]
