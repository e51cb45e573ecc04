"""Packed rows, their segments and their reads, number by number."""

from dataclasses import dataclass, field

import numpy as np

from engine.label_tree import build_label_tree
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockTable
from engine.scheduling.prompt_reads import PromptReads
from engine.scheduling.reads import Read, ReadKind
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import NodeState, Sequence
from engine.scheduling.step import Chunk, Step, build_output
from kernels.segments import Segment

BLOCK = 4
NOWHERE = -1


def table(*runs: tuple[int, int]) -> BlockTable:
    return BlockTable(runs, BLOCK)


@dataclass
class Trie:
    """Nodes numbered as they are made, sequences too; a node without runs of blocks is transient."""

    nodes: list[NodeState] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)

    def node(self, tokens: list[int], *runs: tuple[int, int], below: NodeState | None = None) -> NodeState:
        """Computed whole, unless the test says otherwise."""
        node = NodeState(
            key=(0, len(self.nodes)),
            parent=below,
            start=below.start + below.num_tokens if below is not None else 0,
            token_ids=np.array(tokens, dtype=np.int32),
            num_requests=1,
            computed=len(tokens),
            admitted=True,
            transient=not runs,
            table=table(*runs) if runs else None,
        )
        self.nodes.append(node)
        return node

    def sequence(self, node: NodeState, labels: list[list[int]] | None = None, max_tokens: int = 8) -> Sequence:
        prompt = np.concatenate([above.token_ids for above in node.chain])
        choices = None if labels is None else tuple(np.array(label, dtype=np.int32) for label in labels)
        sequence = Sequence(
            key=len(self.sequences),
            order=(0, 0, len(self.sequences)),
            request=Request("r", prompt, SamplingParams(max_tokens=max_tokens), choices),
            node=node,
            max_tokens=max_tokens if labels is None else 0,
            label_tree=None if choices is None else build_label_tree(choices),
            asked=True,
            admitted=True,
        )
        node.ends.append(sequence)
        self.sequences.append(sequence)
        return sequence


def whole(node: NodeState, *asked: Sequence) -> Chunk:
    return Chunk(node, 0, node.num_tokens, list(asked))


def rows(output: SchedulerOutput) -> tuple[list[int], list[int], list[int]]:
    """Token, position and slot of each row."""
    return output.input_ids.tolist(), output.position_ids.tolist(), output.slot_mapping.tolist()


def counts(output: SchedulerOutput) -> tuple[int, int, int]:
    return output.num_prefill_tokens, output.num_label_tokens, output.num_decode_tokens


def test_a_node_is_read_by_its_own_rows_and_by_all_below() -> None:
    """The picture in `engine/scheduling/step.py`; two of the leaves have keys in the step alone."""
    trie = Trie()
    stem = trie.node([1, 2, 3], (5, 1))
    de, f, gh = trie.node([4, 5], below=stem), trie.node([6], (2, 1), below=stem), trie.node([7, 8], below=stem)
    asked = [trie.sequence(node) for node in (de, f, gh)]
    # Chosen in any order, laid down in that of the trie.
    chunks = [whole(gh, asked[2]), whole(stem), whole(f, asked[1]), whole(de, asked[0])]
    output = build_output(Step([], chunks))
    assert rows(output) == (
        [1, 2, 3, 4, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 3, 3, 4],
        [20, 21, 22, NOWHERE, NOWHERE, 8, NOWHERE, NOWHERE],
    )
    assert [*output.segments] == [
        Segment(3, 5, 3, 5, 3, in_step=True),
        Segment(5, 6, 8, 9, 3),
        Segment(6, 8, 6, 8, 3, in_step=True),
        Segment(0, 8, 20, 23, 0),
    ]
    assert [*output.reads] == [Read(4, 0), Read(5, 1), Read(7, 2)]
    assert output.asked_rows.tolist() == [4, 5, 7]
    assert counts(output) == (8, 0, 0)


def test_a_chunk_in_the_middle_of_a_node_reads_what_is_computed_and_asks_nothing() -> None:
    trie = Trie()
    stem = trie.node([1, 2], (9, 1))
    node = trie.node([3, 4, 5, 6, 7, 8], (0, 2), below=stem)
    trie.sequence(node)
    node.computed = 5
    output = build_output(Step([], [Chunk(node, 2, 5)]))
    assert rows(output) == ([5, 6, 7], [4, 5, 6], [2, 3, 4])
    assert [*output.segments] == [Segment(0, 3, 0, 5, 2), Segment(0, 3, 36, 38, 0)]
    assert len(output.reads) == 0
    assert output.asked_rows.tolist() == []
    assert counts(output) == (3, 0, 0)


def test_runs_of_blocks_that_are_apart_are_segments_of_their_own() -> None:
    trie = Trie()
    node = trie.node([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], (7, 1), (3, 1), (5, 1))
    sequence = trie.sequence(node)
    output = build_output(Step([], [Chunk(node, 3, 10, [sequence])]))
    assert output.slot_mapping.tolist() == [31, 12, 13, 14, 15, 20, 21]
    assert [*output.segments] == [Segment(0, 7, 28, 32, 0), Segment(0, 7, 12, 16, 4), Segment(0, 7, 20, 22, 8)]
    assert [*output.reads] == [Read(6, 0)]


def test_label_rows_read_the_prompt_and_their_ancestors_in_as_few_runs_as_can_be() -> None:
    trie = Trie()
    stem = trie.node([1, 2], (6, 1))
    leaf = trie.node([3], below=stem)
    # Their trie without last tokens: 4, 4 5, 9, and 4 5 6 behind those, whose ancestors are two runs of rows.
    sequence = trie.sequence(leaf, labels=[[4, 5, 7], [9, 8], [4, 5, 6, 2], [3]])
    assert sequence.label_tree is not None
    assert sequence.label_tree.token_ids == (4, 5, 9, 6)
    output = build_output(Step([], [whole(leaf, sequence)]))
    assert rows(output) == ([3, 4, 5, 9, 6], [2, 3, 4, 3, 5], [NOWHERE] * 5)
    assert [*output.segments] == [
        Segment(1, 2, 1, 2, 3, in_step=True),
        Segment(2, 3, 1, 3, 3, in_step=True),
        Segment(3, 4, 3, 4, 3, in_step=True),
        Segment(4, 5, 4, 5, 5, in_step=True),
        Segment(4, 5, 1, 3, 3, in_step=True),
        Segment(0, 5, 0, 1, 2, in_step=True),
        Segment(0, 5, 24, 26, 0),
    ]
    label = ReadKind.LABEL
    assert [*output.reads] == [
        Read(0, 0, label, target=4, place=0),
        Read(1, 0, label, target=5, place=0),
        Read(2, 0, label, target=7, place=0),
        Read(0, 0, label, target=9, place=1),
        Read(3, 0, label, target=8, place=1),
        Read(0, 0, label, target=4, place=2),
        Read(1, 0, label, target=5, place=2),
        Read(2, 0, label, target=6, place=2),
        Read(4, 0, label, target=2, place=2),
        Read(0, 0, label, target=3, place=3),
    ]
    assert counts(output) == (1, 4, 0)


def test_samples_come_before_labels_and_equal_prompts_share_a_row() -> None:
    trie = Trie()
    node = trie.node([1, 2], (0, 1))
    scored, text = trie.sequence(node, labels=[[5], [6]]), trie.sequence(node)
    output = build_output(Step([], [whole(node, scored, text)]))
    assert [*output.reads] == [Read(1, 1), Read(1, 0, ReadKind.LABEL, 5, 0), Read(1, 0, ReadKind.LABEL, 6, 1)]
    assert output.asked_rows.tolist() == [1]
    assert [*output.reads.of_kind(ReadKind.LABEL)] == [*output.reads][1:]


def test_asked_again_the_last_token_is_computed_over_the_kv_that_holds_it() -> None:
    trie = Trie()
    stem = trie.node([1, 2, 3, 4, 5], (4, 2))
    leaf = trie.node([6, 7], below=stem)
    again, asked = trie.sequence(stem), trie.sequence(leaf)
    output = build_output(Step([], [whole(leaf, asked), Chunk(stem, 4, 5, [again], again=True)]))
    assert rows(output) == ([5, 6, 7], [4, 5, 6], [NOWHERE] * 3)
    assert [*output.segments] == [Segment(1, 3, 1, 3, 5, in_step=True), Segment(0, 3, 16, 21, 0)]
    assert [*output.reads] == [Read(0, 0), Read(2, 1)]
    assert counts(output) == (3, 0, 0)


def test_a_tail_decodes_behind_its_nodes_own_tokens() -> None:
    trie = Trie()
    stem = trie.node([1, 2, 3], (8, 1))
    node = trie.node([4, 5, 6], (1, 1), (5, 1), below=stem)
    node.tail = sequence = trie.sequence(node)
    sequence.token_ids = [11, 12]
    output = build_output(Step([sequence]))
    # The second token's KV is the node's fifth slot; one read covers prompt and text, as far as blocks go on.
    assert rows(output) == ([12], [7], [20])
    assert [*output.segments] == [Segment(0, 1, 4, 8, 3), Segment(0, 1, 20, 21, 7), Segment(0, 1, 32, 35, 0)]
    assert [*output.reads] == [Read(0, 0)]
    assert counts(output) == (0, 0, 1)


def test_decodes_behind_a_shared_node_read_it_once_and_their_own_apart() -> None:
    trie = Trie()
    node = trie.node([1, 2, 3, 4], (2, 1))
    first, second = trie.sequence(node), trie.sequence(node)
    first.table, second.table = table((6, 1)), table((3, 1))
    first.token_ids, second.token_ids = [7, 8, 9], [5]
    second.pending_alone, second.sample_index = 1, 4
    output = build_output(Step([first, second]))
    # The second's last token is still in flight: the fifth that the step before samples.
    assert rows(output) == ([9, -5], [6, 5], [26, 13])
    assert [*output.segments] == [Segment(0, 1, 24, 27, 4), Segment(1, 2, 12, 14, 4), Segment(0, 2, 8, 12, 0)]
    assert [*output.reads] == [Read(0, 0), Read(1, 1)]
    assert output.asked_rows.tolist() == [0, 1]


def test_a_decode_lies_between_its_node_and_the_nodes_behind_it() -> None:
    """Depth first: the node's chunk, its decodes, then what is below."""
    trie = Trie()
    stem = trie.node([1, 2], (0, 1))
    leaf = trie.node([3], below=stem)
    decoding, asked = trie.sequence(stem), trie.sequence(leaf)
    decoding.table, decoding.token_ids = table((1, 1)), [9]
    output = build_output(Step([decoding], [whole(leaf, asked)]))
    assert rows(output) == ([9, 3], [2, 2], [4, NOWHERE])
    assert [*output.segments] == [
        Segment(0, 1, 4, 5, 2),
        Segment(1, 2, 1, 2, 2, in_step=True),
        Segment(0, 2, 0, 2, 0),
    ]
    assert [*output.reads] == [Read(0, 0), Read(1, 1)]
    assert counts(output) == (1, 0, 1)


def reads_of(node: NodeState, key: int, first: int) -> None:
    node.reads = PromptReads.of(key, node.num_tokens)
    node.want_reads(first)


def test_a_prompt_token_is_read_at_the_row_before_it_which_may_be_of_the_node_above() -> None:
    trie = Trie()
    stem = trie.node([1, 2, 3, 4], (3, 1))
    leaf, other = trie.node([5, 6], below=stem), trie.node([7], below=stem)
    asked = trie.sequence(leaf, labels=[]), trie.sequence(other, labels=[])
    for node, key, first in ((stem, 20, 2), (leaf, 21, 0), (other, 22, 0)):
        reads_of(node, key, first)
        node.users = 1
    first_chunk, second_chunk = Chunk(stem, 0, 2), Chunk(stem, 2, 4)
    chunks = [first_chunk, second_chunk, whole(leaf, asked[0]), whole(other, asked[1])]
    for chunk in chunks:
        chunk.targets = chunk.node.read_rows(chunk.first, chunk.last)
    prompt = ReadKind.PROMPT
    stem.computed = 2
    assert [*build_output(Step([], [first_chunk])).reads] == [Read(1, 20, prompt, target=3, place=2)]
    stem.computed = 4
    output = build_output(Step([], chunks[1:]))
    assert output.input_ids.tolist() == [3, 4, 5, 6, 7]
    assert [*output.reads] == [
        Read(0, 20, prompt, target=4, place=3),
        Read(1, 21, prompt, target=5, place=0),
        Read(1, 22, prompt, target=7, place=0),
        Read(2, 21, prompt, target=6, place=1),
    ]
    assert output.asked_rows.tolist() == [0, 1, 2]
    assert [len(chunk.node.read_rows(chunk.first, chunk.last)) for chunk in chunks] == [0, 0, 0, 0], "read twice"


def test_rows_again_lie_before_the_nodes_new_rows_and_keep_nothing() -> None:
    trie = Trie()
    node = trie.node([1, 2, 3, 4, 5, 6], (0, 2))
    node.computed = 4
    reads_of(node, 9, 1)
    assert node.unread_rows().tolist() == [0, 1, 2, 3]
    again = Chunk(node, 0, 4, again=True, targets=node.read_rows(0, 4))
    node.computed = 6
    new = Chunk(node, 4, 6, targets=node.read_rows(4, 6))
    output = build_output(Step([], [new, again]))
    assert rows(output) == ([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5], [NOWHERE] * 4 + [4, 5])
    assert [*output.segments] == [Segment(0, 6, 0, 6, 0)]
    assert [*output.reads] == [Read(row, 9, ReadKind.PROMPT, target=row + 2, place=row + 1) for row in range(5)]
    assert node.unread_rows().tolist() == []
