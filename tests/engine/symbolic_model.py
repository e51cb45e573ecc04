"""A model whose KV is the identity of what was computed: proves that every row sees its whole context, once.

An entry of KV is a number that stands for a token behind a chain of tokens. A row is right if the entries that its
segments show are exactly those of the chain up to it.
"""

from collections.abc import Iterable

from engine.scheduler import Sampled, Scheduler
from engine.scheduler_output import SchedulerOutput
from engine.sequence import Sequence

ROOT = -1


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

    def run(self, step: SchedulerOutput) -> list[int]:
        """Each row's entry. Raises AssertionError where a row sees too little, too much, or stale KV."""
        rows: list[int] = []
        tokens, positions = step.input_ids.tolist(), step.position_ids.tolist()
        pending = {row: write for write in step.writes for row in range(write.row_start, write.row_end)}
        causal = {row: start for start, end in step.causal for row in range(start, end)}
        trees = {labels.row_start + i: (labels, i) for labels in step.labels for i in range(len(labels.parents))}
        own = {segment.row_start: segment for segment in step.own}
        assert len(causal) + len(trees) + len(own) == step.num_scheduled_tokens
        for row, token in enumerate(tokens):
            seen: list[int | None] = []
            for segment in (s for s in step.context if s.row_start <= row < s.row_end):
                source = rows if segment.in_step else self.slots
                assert self._position(source[segment.kv_start]) == segment.position
                seen += source[segment.kv_start : segment.kv_end]
            if row in causal:
                seen += rows[causal[row] : row]
            elif row in trees:
                labels, index = trees[row]
                while (index := labels.parents[index]) >= 0:
                    seen.append(rows[labels.row_start + index])
            else:
                segment = own[row]
                before = segment.kv_end - segment.kv_start - 1
                assert segment.position == positions[row] - before
                slot = pending[row].slot_start if row in pending else segment.kv_end - 1
                assert slot == segment.kv_end - 1 or row in pending
                seen += [self.slots[s] for s in range(segment.kv_start, segment.kv_end) if s != slot]
            chain = self._chain(seen)
            rows.append(self.extend(chain, token))
            assert self.depths[rows[-1]] == positions[row], (row, positions[row], self.depths[rows[-1]])
            if row in pending:
                self.slots[pending[row].slot_start + row - pending[row].row_start] = rows[-1]
        return rows

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


def drain(scheduler: Scheduler, model: SymbolicModel, sequences: Iterable[Sequence]) -> dict[str, list[int] | dict]:
    """Runs everything; returns each request's tokens, or where each target of its labels was looked up."""
    live = {sequence.key: sequence for sequence in sequences if not sequence.finished}
    results: dict[str, list[int] | dict] = {}
    while scheduler.has_work():
        step = scheduler.schedule()
        rows = model.run(step)
        sampled = {}
        for sample in step.samples:
            sequence = live[sample.key]
            tokens = [*sequence.request.prompt_token_ids.tolist(), *sequence.token_ids]
            assert rows[sample.row] == model.chain_of(tokens)
            count = len(sequence.token_ids) + 1
            token = model.next_token(tokens)
            stops = token == 0 and not sequence.request.params.ignore_eos
            sampled[sample.key] = Sampled(token, finished=stops or count >= sequence.max_tokens)
        for score in step.scores:
            places = results.setdefault(live[score.key].request.request_id, {})
            for label, target in zip(score.labels, score.targets, strict=True):
                places.setdefault(label, []).append((rows[score.row], target))
        for sequence in scheduler.update(step, sampled):
            if sequence.label_tree is None:
                results[sequence.request.request_id] = sequence.token_ids
    return results
