"""The prefix nodes below which a submitted request is unfinished: made when the first comes, freed with the last."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import count

from engine.plan import PrefixNode, ShardWork
from engine.request import Request
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sequence import NodeState, Sequence


class LiveNodes:
    """Nodes of all layouts that run at once. Shards of one layout share a node, and so its KV."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._nodes: dict[tuple[int, int], NodeState] = {}
        self._layouts: dict[tuple[str, int], int] = {}
        self._shards: Counter[tuple[int, int]] = Counter()  # unfinished sequences by layout and shard

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[NodeState]:
        return iter(self._nodes.values())

    def layout_of(self, work: ShardWork) -> int:
        """The number of the shard's layout; of another copy of it, whose nodes are its own, while the shard runs.

        A node counts each of its requests once: what it holds for them would not do for one that came twice.
        """
        copies = (self._layouts.setdefault((work.layout_id, copy), len(self._layouts)) for copy in count())
        return next(layout for layout in copies if (layout, work.index) not in self._shards)

    def get(self, layout: int, planned: Mapping[int, PrefixNode], node_id: int, request: Request) -> NodeState:
        """The node at which `request` ends, made with its missing ancestors (top down) where there is none."""
        missing = []
        while node_id != -1 and (layout, node_id) not in self._nodes:
            missing.append(planned[node_id])
            node_id = planned[node_id].parent
        state = self._nodes[layout, node_id] if node_id != -1 else None
        for node in reversed(missing):
            token_ids = request.prompt_token_ids[node.start : node.end]
            state = NodeState((layout, node.node_id), state, node.start, token_ids, node.num_requests, node.adapter)
            self._nodes[state.key] = state
        assert state is not None
        assert state.adapter == request.adapter, (state.key, state.adapter, request.adapter)
        return state

    def join(self, sequence: Sequence) -> None:
        """The sequence is below its node and all above it until it leaves."""
        self._shards[sequence.order[:2]] += 1
        sequence.node.ends.append(sequence)
        sequence.node.decode_kv_tokens += sequence.decode_kv_tokens
        for node in sequence.node.chain:
            node.users += 1

    def leave(self, sequence: Sequence) -> None:
        """Frees the nodes below which there is no other sequence."""
        shard = sequence.order[:2]
        self._shards[shard] -= 1
        if not self._shards[shard]:
            del self._shards[shard]
        sequence.node.ends.remove(sequence)
        sequence.node.decode_kv_tokens -= sequence.decode_kv_tokens
        for node in sequence.node.chain:
            node.users -= 1
            if node.users == 0:
                del self._nodes[node.key]
                if node.table is not None:
                    self._pool.free(node.table)

    def free_own(self, sequence: Sequence) -> None:
        """Frees the KV of nodes that the sequence alone is below, to be computed again."""
        for node in sequence.node.chain:
            if node.users == 1 and node.table is not None:
                self._pool.free(node.table)
                node.forget()

    def evict(self, needed: Collection[NodeState]) -> int:
        """Frees the KV of all nodes but those needed, to be computed again; returns how many there were."""
        idle = [node for node in self._nodes.values() if node.table is not None and node not in needed]
        for node in idle:
            assert node.table is not None
            self._pool.free(node.table)
            node.forget()
        return len(idle)
