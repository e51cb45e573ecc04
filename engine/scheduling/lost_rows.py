"""What is lost with rows of a step that a device had no memory for: whatever was to be read of them, or of their KV."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.scheduling.reads import ReadKind
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import NodeState, Sequence
from kernels.segments import Ints


@dataclass(frozen=True, slots=True, eq=False)
class LostRows:
    """`nodes` of which a row is lost, and so all that is below them; the `keys` of sequences that lost a row alone."""

    nodes: frozenset[NodeState]
    keys: frozenset[int]

    def among(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those that cannot go on: one that came below such a node meanwhile is among them."""
        return [one for one in sequences if one.key in self.keys or not self.nodes.isdisjoint(one.node.chain)]


NOTHING_LOST = LostRows(frozenset(), frozenset())


def lost_rows(step: SchedulerOutput, rows: Ints, nodes: Iterable[NodeState], sequences: Iterable[Sequence]) -> LostRows:
    """Whose the `rows` of `step` are, among live nodes and sequences. Blocks have changed hands once the step is taken
    in, so that it is asked before.
    """
    if not len(rows):
        return NOTHING_LOST
    reads = step.reads.table[np.isin(step.reads.row, rows)]
    is_sequences = reads[:, 2] <= ReadKind.LABEL
    keys, of_nodes = set(reads[is_sequences, 1].tolist()), set(reads[~is_sequences, 1].tolist())
    slots = step.slot_mapping[rows]
    slots = slots[slots >= 0]
    # Of a leaf that keeps no KV, the reads alone say whose the rows are.
    lost = [node for node in nodes if not of_nodes.isdisjoint(node.read_keys) or _holds(node, slots)]
    keys |= {sequence.key for sequence in sequences if _holds(sequence, slots)}
    return LostRows(frozenset(lost), frozenset(keys))


def _holds(owner: NodeState | Sequence, slots: Ints) -> bool:
    return owner.table is not None and bool(owner.table.holds(slots).any())
