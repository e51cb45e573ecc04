"""The scheduler's view of live work: prefix nodes that hold KV, and sequences that end at them."""

from dataclasses import dataclass, field

from engine.label_tree import LabelTree
from engine.request import Request, TokenIds
from engine.scheduling.admission import decode_kv_tokens
from engine.scheduling.block_pool import BlockTable

NodeKey = tuple[int, int]


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

    def __post_init__(self) -> None:
        self.chain = (*self.parent.chain, self) if self.parent is not None else (self,)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def complete(self) -> bool:
        return self.computed == self.num_tokens

    def forget(self) -> None:
        """Back to the state before admission; its KV is gone."""
        self.computed, self.admitted, self.transient, self.table, self.tail = 0, False, False, None, None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. `order` is its place in the plan; `max_tokens` is what the context leaves of its cap.

    `asked`: the row that gives its first token (or its scores) has been scheduled. `admitted`: all the KV that it
    can ever need is reserved. `num_pending` tokens have been scheduled and are not known yet; the last of them is what
    read `sample_index` of the step that makes it samples.
    """

    key: int
    order: tuple[int, int, int]
    request: Request
    node: NodeState
    max_tokens: int
    label_tree: LabelTree | None
    token_ids: list[int] = field(default_factory=list)
    num_pending: int = 0
    sample_index: int = 0
    table: BlockTable | None = None
    num_cached_tokens: int = 0
    asked: bool = False
    admitted: bool = False
    finished: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens, those in flight included."""
        return len(self.token_ids) + self.num_pending

    @property
    def last_token(self) -> int:
        """The token to decode from, as `SchedulerOutput.input_ids` says it."""
        return -1 - self.sample_index if self.num_pending else self.token_ids[-1]

    @property
    def decode_kv_tokens(self) -> int:
        """KV that decoding can need."""
        return decode_kv_tokens(self.max_tokens)

    @property
    def is_tail(self) -> bool:
        return self.node.tail is self
