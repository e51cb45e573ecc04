"""The scheduler's view of live work: prefix nodes that hold KV, and sequences that end at them.

A sequence, from `Scheduler.add` to the `update` that returns it:

    waiting ---> admitted ----> asked -------> decoding ---> finished
      |          KV is held     a step has     a token       a token or the length ends the text
      |          for what it    the prompt's   a step
      |          likely needs   last row  ------------------> finished
      |                                                      with that step, where there is no text
      |--------> finished       at once, where it fits neither the context nor the cache
      |--------> asked          together with an equal prompt; its text decodes on when it is admitted

Where KV is short, a text that decodes may give way: it waits again, and when it is admitted again its own tokens are
computed anew, as rows beside each other. If its last token was in flight, it is finished from where it waits.

A node, from the first sequence that ends at it or below it to the last one:

    live ------> admitted ----> computing ---> complete ---> gone
      ^          its blocks     `computed`     |    ^        the last sequence ended: its blocks are free
      |          are held       grows chunk    |    |
      |                         by chunk       |    |--- rows again, over its KV, to read what was not read
      |--------- forgotten <-------------------|
                 evicted: its KV must be computed again

A leaf whose KV no later step reads is transient: admitted without blocks, and complete in one step.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.label_tree import LabelTree
from engine.pooling_params import Pooling
from engine.request import PromptLogprobs, Request, TokenIds
from engine.scheduling.admission import decode_kv_tokens
from engine.scheduling.block_pool import BlockTable
from engine.scheduling.hidden_reads import HiddenReads, pooled
from engine.scheduling.prompt_reads import PromptReads
from kernels.segments import Ints

NodeKey = tuple[int, int]
NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(slots=True, eq=False)
class NodeState:
    """A prefix node while any submitted request below it is unfinished.

    `computed` counts its tokens whose KV exists; `users` the sequences that end at it or below, `decode_kv_tokens` the
    KV that decoding can need of those that end at it. A `transient` node is a whole leaf that nothing attends to after
    its one step: it takes no block. `tail` is the one sequence that decodes straight behind the node's tokens.
    """

    key: NodeKey
    parent: "NodeState | None"
    start: int
    token_ids: TokenIds
    num_requests: int
    adapter: str | None = None
    users: int = 0
    decode_kv_tokens: int = 0
    computed: int = 0
    admitted: bool = False
    transient: bool = False
    table: BlockTable | None = None
    tail: "Sequence | None" = None
    ends: list["Sequence"] = field(default_factory=list)
    chain: tuple["NodeState", ...] = ()
    reads: PromptReads | None = None
    hidden: dict[Pooling, HiddenReads] = field(default_factory=dict)
    unread_below: dict["NodeState", None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chain = (*self.parent.chain, self) if self.parent is not None else (self,)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def complete(self) -> bool:
        return self.computed == self.num_tokens

    @property
    def read_keys(self) -> set[int]:
        """The keys of what is read of its tokens."""
        own = () if self.reads is None else (self.reads,)
        return {reads.key for reads in (*own, *self.hidden.values())}

    def want_reads(self, first: int, num_alternatives: int = 0) -> None:
        """The log-probabilities of tokens from `first` on are wanted, with so many of the best at their places."""
        assert self.reads is not None
        self.reads.first = min(first, self.reads.first)
        if num_alternatives > self.reads.num_alternatives:
            self.reads.want_alternatives(num_alternatives)
        if self.reads.first == 0 and not self.reads.scheduled[0]:
            assert self.parent is not None, "the first token of a prompt follows nothing"
            self.parent.unread_below[self] = None

    def unread_rows(self) -> Ints:
        """Rows, ascending, whose KV exists but off which something wanted has not been read."""
        found = [reads.pending(0, self.computed) for reads in self.hidden.values()]
        if self.reads is not None:
            found.append(self.reads.pending(1, self.computed + 1) - 1)
        if self.complete and any(node.users for node in self.unread_below):
            found.append(np.array([self.num_tokens - 1]))
        return np.unique(np.concatenate(found)) if found else NO_ROWS

    def read_rows(self, first: int, last: int) -> list[tuple["NodeState", Ints]]:
        """The tokens, by node, that a step reads off the rows `[first, last)` of this one: all that are wanted.

        A node's first token is read off the last row of the node above it.
        """
        targets = []
        if self.reads is not None and len(tokens := self.reads.pending(first + 1, last + 1)):
            targets.append((self, tokens))
        if last == self.num_tokens:
            targets += [(node, np.zeros(1, dtype=np.int64)) for node in self.unread_below if node.users]
            self.unread_below.clear()
        for node, tokens in targets:
            assert node.reads is not None
            node.reads.schedule(tokens)
        return targets

    def read_hidden(self, first: int, last: int) -> list[tuple[HiddenReads, Ints]]:
        """The tokens whose hidden states a step reads off their own rows `[first, last)`: all that are wanted."""
        found = [(reads, tokens) for reads in self.hidden.values() if len(tokens := reads.pending(first, last))]
        for reads, tokens in found:
            reads.scheduled[tokens] = True
        return found

    def forget(self) -> None:
        """Back to the state before admission; its KV is gone."""
        self.computed, self.admitted, self.transient, self.table, self.tail = 0, False, False, None, None


@dataclass(slots=True, eq=False)
class StepCount:
    """Steps that many texts take together: one number that grows, instead of one in each text."""

    value: int = 0


ALONE = StepCount()


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. `order` is its place in the plan; `max_tokens` is what the context leaves of its cap.

    `asked`: the row that gives its first token (or its scores) has been scheduled. `admitted`: it holds KV, with room
    to decode `kv_room` tokens into. `num_pending` tokens have been scheduled and are not known yet: `pending_alone`,
    and one more for each step that the text takes `together` with others. The last of them is what read `sample_index`
    of the step that makes it samples, which is kept up while the text goes alone. `num_uncomputed` last tokens have no
    row in any step yet: the last alone, more where a grammar forced some behind it, or all where the text gave way.
    """

    key: int
    order: tuple[int, int, int]
    request: Request
    node: NodeState
    max_tokens: int
    label_tree: LabelTree | None
    token_ids: list[int] = field(default_factory=list)
    pending_alone: int = 0
    together: StepCount = ALONE
    num_uncomputed: int = 1
    sample_index: int = 0
    table: BlockTable | None = None
    kv_room: int = 0
    num_cached_tokens: int = 0
    asked: bool = False
    admitted: bool = False
    finished: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens in flight."""
        return self.pending_alone + self.together.value

    def go_alone(self, sample_index: int) -> None:
        """It takes no further step together with others, the last of which sampled its token `sample_index`-th."""
        self.pending_alone += self.together.value
        self.together = ALONE
        self.sample_index = sample_index

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens, those in flight included."""
        return len(self.token_ids) + self.num_pending

    @property
    def can_decode(self) -> bool:
        """Whether its next rows may be scheduled: a structured text needs to know its last token for the next mask."""
        return not (self.num_pending and self.waits_for_tokens)

    @property
    def waits_for_tokens(self) -> bool:
        """Whether its next rows are of tokens that have to be known."""
        return self.num_uncomputed > 1 or self.request.params.structured_outputs is not None

    @property
    def last_token(self) -> int:
        """The token to decode from, as `SchedulerOutput.input_ids` says it."""
        return -1 - self.sample_index if self.num_pending else self.token_ids[-1]

    @property
    def prompt_reads(self) -> list[tuple[PromptReads, int]]:
        """Of each node with tokens whose log-probabilities the request asks: its reads, and from which token on."""
        first = self.request.prompt_logprobs_from
        if first is None:
            return []
        asked = [node for node in self.node.chain if first < node.start + node.num_tokens]
        return [(node.reads, max(first - node.start, 0)) for node in asked if node.reads is not None]

    @property
    def prompt_logprobs(self) -> PromptLogprobs | None:
        """What has been read of the prompt as the request asks it."""
        first = self.request.prompt_logprobs_from
        if first is None:
            return None
        parts, count = self.prompt_reads, self.request.num_prompt_alternatives
        return PromptLogprobs(
            first,
            self.request.prompt_token_ids[first:],
            np.concatenate([np.empty(0, np.float32), *(reads.logprobs[at:] for reads, at in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(reads.is_greedy[at:] for reads, at in parts)]),
            np.concatenate([np.empty((0, count), np.int32), *(reads.top_tokens[at:, :count] for reads, at in parts)]),
            np.concatenate(
                [np.empty((0, count), np.float32), *(reads.top_logprobs[at:, :count] for reads, at in parts)]
            ),
        )

    @property
    def reads_scheduled(self) -> bool:
        """Whether steps have been made that read all that the request asks of its prompt."""
        count = self.request.num_prompt_alternatives
        return all(reads.are_scheduled(first, count) for reads, first in self.prompt_reads) and all(
            bool(reads.scheduled[reads.first :].all()) for reads in self.hidden_reads
        )

    @property
    def pooled_nodes(self) -> tuple[NodeState, ...]:
        """The nodes whose hidden states the request's embedding is made of."""
        pooling = self.request.pooling
        if pooling is None:
            return ()
        return (self.node,) if pooling.pooling == "last" else self.node.chain

    @property
    def hidden_reads(self) -> list[HiddenReads]:
        """Of each of those nodes, from the root down."""
        pooling = self.request.pooling
        return [node.hidden[pooling.pooling] for node in self.pooled_nodes] if pooling is not None else []

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """What has been read of the prompt, pooled as the request asks it."""
        pooling = self.request.pooling
        if pooling is None:
            return None
        return pooling.embedding(pooled(self.hidden_reads, self.num_prompt_tokens))

    @property
    def decode_kv_tokens(self) -> int:
        """KV that decoding can need."""
        return decode_kv_tokens(self.max_tokens)

    @property
    def kv_left(self) -> int:
        """Steps of a token each for which there is room; below 0: its next row has none."""
        return self.kv_room - self.num_output_tokens

    @property
    def is_tail(self) -> bool:
        return self.node.tail is self
