"""The prefix nodes below which a submitted request is unfinished: made when the first comes, freed with the last."""

from collections.abc import Collection, Iterator, Mapping

from engine.plan import PrefixNode
from engine.request import Request
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sequence import NodeState, Sequence


class LiveNodes:
    """Nodes of all layouts that run at once. Shards of one layout share a node, and so its KV."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._nodes: dict[tuple[int, int], NodeState] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[NodeState]:
        return iter(self._nodes.values())

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
        sequence.node.ends.append(sequence)
        sequence.node.decode_kv_tokens += sequence.decode_kv_tokens
        for node in sequence.node.chain:
            node.users += 1

    def leave(self, sequence: Sequence) -> None:
        """Frees the nodes below which there is no other sequence."""
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
