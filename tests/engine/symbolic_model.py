"""A model whose KV is the identity of what was computed: proves that every row sees its whole context, once.

An entry of KV is a number that stands for a token behind a chain of tokens. A row is right if the entries that its
segments show are exactly those of the chain up to it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from engine.scheduling.hidden_reads import HiddenReads
from engine.scheduling.prompt_reads import PromptReads
from engine.scheduling.reads import Read, ReadKind
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence

ROOT = -1
Floats = NDArray[np.float32]


class SymbolicModel:
    """`next_token` is a function of the chain alone, so that outputs can be known without any scheduling."""

    def __init__(self, num_slots: int, vocab_size: int = 7) -> None:
        self.slots: list[int | None] = [None] * num_slots
        self.vocab_size = vocab_size
        self.chains: dict[tuple[int, int], int] = {}
        self.parents: list[int] = []
        self.depths: list[int] = []

    def extend(self, chain: int, token: int) -> int:
        entry = self.chains.setdefault((chain, token), len(self.parents))
        if entry == len(self.parents):
            self.parents.append(chain)
            self.depths.append(self.depths[chain] + 1 if chain != ROOT else 0)
        return entry

    def chain_of(self, tokens: Iterable[int]) -> int:
        chain = ROOT
        for token in tokens:
            chain = self.extend(chain, int(token))
        return chain

    def next_token(self, tokens: Iterable[int]) -> int:
        return sum(map(int, tokens)) * 31 % self.vocab_size

    def forced_behind(self, tokens: list[int]) -> tuple[int, ...]:
        """What a grammar forces in a structured text behind all of these tokens: none to four."""
        return tuple(1 + (sum(tokens) + place) % 3 for place in range(self.next_token([*tokens, 1]) % 5))

    def run(self, step: SchedulerOutput) -> list[int]:
        """Each row's entry. Raises AssertionError where a row sees too little, too much, or stale KV."""
        tokens, positions = step.input_ids.tolist(), step.position_ids.tolist()
        rows: list[int] = []
        for row, token in enumerate(tokens):
            seen: list[int | None] = []
            itself = 0
            for segment in (s for s in step.segments if s.row_start <= row < s.row_end):
                source = rows if segment.in_step else self.slots
                # What is not behind the row; the row itself is not known yet.
                count = min(segment.kv_end - segment.kv_start, positions[row] - segment.position + 1)
                if count <= 0:
                    continue
                last = segment.kv_start + count
                if segment.position + count - 1 == positions[row]:
                    itself += 1
                    last -= 1
                    assert last == (row if segment.in_step else self._slot(step, row, last)), (row, segment)
                if last > segment.kv_start:
                    assert self._position(source[segment.kv_start]) == segment.position
                seen += source[segment.kv_start : last]
            assert itself == 1, (row, itself)
            chain = self._chain(seen)
            rows.append(self.extend(chain, token))
            assert self.depths[rows[-1]] == positions[row], (row, positions[row], self.depths[rows[-1]])
            if step.slot_mapping[row] >= 0:
                self.slots[step.slot_mapping[row]] = rows[-1]
        return rows

    def _slot(self, step: SchedulerOutput, row: int, read: int) -> int:
        """Where the row's own KV is: written now, or by the step that computed it first."""
        kept = int(step.slot_mapping[row])
        if kept >= 0:
            return kept
        assert self._position(self.slots[read]) == step.position_ids[row]
        return read

    def _position(self, entry: int | None) -> int:
        assert entry is not None, "read a slot that was never written"
        return self.depths[entry]

    def _chain(self, seen: list[int | None]) -> int:
        entries = sorted((self.depths[entry], entry) for entry in seen if entry is not None)
        assert len(entries) == len(seen), "read a slot that was never written"
        chain = ROOT
        for place, (depth, entry) in enumerate(entries):
            assert (depth, self.parents[entry]) == (place, chain), (place, entries)
            chain = entry
        return chain


def drain(
    scheduler: Scheduler,
    model: SymbolicModel,
    sequences: Iterable[Sequence],
    in_flight: int = 0,
    parts_of: Callable[[SchedulerOutput], list[SchedulerOutput]] = lambda step: [step],
    arrive: Callable[[], list[Sequence]] = list,
) -> dict[str, list[int] | dict]:
    """Runs everything; returns each request's tokens, or the targets that were looked up for each of its labels.

    Steps run in order, as on a device, each in its `parts_of`; one is taken in when `in_flight` more are scheduled.
    `arrive` is called before each step is scheduled, and gives the sequences that have been added since.
    """
    draining = _Draining(scheduler, model)
    arrived = [*sequences]
    while scheduler.has_work() or draining.launched:
        draining.enter([*arrived, *arrive()])
        arrived = []
        step = scheduler.schedule() if scheduler.has_work() else None
        if step is not None:
            draining.launch(step, parts_of)
        while draining.launched and (step is None or len(draining.launched) > in_flight):
            draining.take(draining.launched.popleft())
    return draining.results


@dataclass(slots=True)
class _Launched:
    """What a step's rows gave, which the scheduler has not heard of yet."""

    step: SchedulerOutput
    sampled: dict[int, Sampled] = field(default_factory=dict)
    prompts: list[tuple[PromptReads, int, float]] = field(default_factory=list)
    hidden: list[tuple[HiddenReads, Floats]] = field(default_factory=list)


class _Draining:
    """Steps in flight, the tokens that were `made` of each sequence, and the `last` that a step sampled."""

    def __init__(self, scheduler: Scheduler, model: SymbolicModel) -> None:
        self.scheduler = scheduler
        self.model = model
        self.launched: deque[_Launched] = deque()
        self.results: dict[str, list[int] | dict] = {}
        self.live: dict[int, Sequence] = {}
        self.made: dict[int, list[int]] = {}
        self.read_with: dict[tuple[int, int], int] = {}
        self.last: list[int] = []

    def enter(self, arrived: Iterable[Sequence]) -> None:
        for sequence in arrived:
            self.made[sequence.key] = sequence.request.prompt_token_ids.tolist()
            if not sequence.finished:
                self.live[sequence.key] = sequence

    def launch(self, step: SchedulerOutput, parts_of: Callable[[SchedulerOutput], list[SchedulerOutput]]) -> None:
        tokens = [token if token >= 0 else self.last[-1 - token] for token in step.input_ids.tolist()]
        launched = _Launched(replace(step, input_ids=np.array(tokens)))
        self.launched.append(launched)
        self.last = []
        computed = [(part, self.model.run(part)) for part in parts_of(launched.step)]
        for part, rows in computed:
            for read in part.reads:
                match read.kind:
                    case ReadKind.PROMPT:
                        self._read_prompt(launched, read, rows)
                    case ReadKind.HIDDEN:
                        launched.hidden.append(hidden_read(self.scheduler, self.model, read, rows))
                    case ReadKind.LABEL:
                        self._read_label(read, rows)
                    case _:
                        self._sample(launched, part, read, rows)

    def _read_prompt(self, launched: _Launched, read: Read, rows: list[int]) -> None:
        launched.prompts.append(prompt_read(self.scheduler, self.model, read, rows))
        count = int(launched.prompts[-1][0].read_with[read.place])
        assert count > self.read_with.get((read.key, read.place), -1), "read twice"
        self.read_with[read.key, read.place] = count

    def _read_label(self, read: Read, rows: list[int]) -> None:
        places = self.results.setdefault(self.live[read.key].request.request_id, {})
        found = places.setdefault(read.place, [])
        assert rows[read.row] == self.model.chain_of([*self.made[read.key], *found]), "not where the label goes on"
        found.append(read.target)

    def _sample(self, launched: _Launched, part: SchedulerOutput, read: Read, rows: list[int]) -> None:
        sequence, tokens = self.live[read.key], self.made[read.key]
        before = launched.sampled.get(read.key)
        is_right = part.input_ids[read.row] == tokens[-1] and part.position_ids[read.row] == len(tokens) - 1
        if before is not None and (before.finished or not is_right):
            return  # behind the text's end, or behind a draft that is wrong
        assert rows[read.row] == self.model.chain_of(tokens)
        token = self.model.next_token(tokens)
        tokens.append(token)
        self.last.append(token)
        stops = token == 0 and not sequence.request.params.ignore_eos
        forced: tuple[int, ...] = ()
        if sequence.request.params.structured_outputs is not None and not stops:
            room = sequence.max_tokens - (len(tokens) - sequence.num_prompt_tokens)
            forced = self.model.forced_behind(tokens)[:room]
            tokens += forced
        count = len(tokens) - sequence.num_prompt_tokens
        now = Sampled(token, stops or count >= sequence.max_tokens, forced=forced)
        launched.sampled[read.key] = now if before is None else before.then(now)

    def take(self, launched: _Launched) -> None:
        for sums, part in launched.hidden:
            sums.take(part)
        for reads, place, value in launched.prompts:
            reads.take(np.array([place]), np.float32([value]), np.array([value % 2 == 0]), np.array([True]))
        for sequence in self.scheduler.update(launched.step, launched.sampled):
            if sequence.label_tree is None:
                self.results[sequence.request.request_id] = sequence.token_ids
            asked = sequence.prompt_logprobs
            assert asked is None or not np.isnan(asked.logprobs).any(), "ended before it was read"
            assert all(reads.sum is not None for reads in sequence.hidden_reads), "ended before it was read"


def prompt_read(
    scheduler: Scheduler, model: SymbolicModel, read: Read, rows: list[int]
) -> tuple[PromptReads, int, float]:
    """The node's reads, the token and its value: the entry that it would be, behind what is before it."""
    nodes = {node: sequence for sequence in scheduler.sequences.values() for node in sequence.node.chain}
    node = next(node for node in nodes if node.reads is not None and node.reads.key == read.key)
    assert node.reads is scheduler.wanted.logprobs[read.key]
    prompt, at = nodes[node].request.prompt_token_ids.tolist(), node.start + read.place
    assert (read.target, rows[read.row]) == (prompt[at], model.chain_of(prompt[:at])), "not the row before the token"
    return node.reads, read.place, float(model.chain_of(prompt[: at + 1]))


def hidden_read(scheduler: Scheduler, model: SymbolicModel, read: Read, rows: list[int]) -> tuple[HiddenReads, Floats]:
    """The node's reads, and what a row adds to their sum: its hidden state is (1, its entry, its position)."""
    nodes = {node: sequence for sequence in scheduler.sequences.values() for node in sequence.node.chain}
    node = next(node for node in nodes if read.key in [reads.key for reads in node.hidden.values()])
    entry = rows[read.row]
    at = model.depths[entry]
    prompt = nodes[node].request.prompt_token_ids.tolist()
    assert node.start <= at < node.start + node.num_tokens, "a token of another node"
    assert entry == model.chain_of(prompt[: at + 1]), "not the token's own row"
    return scheduler.wanted.hidden[read.key], read.place * np.float32([1, entry, at])
