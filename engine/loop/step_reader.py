"""What a step's reads come to, made on the device from its hidden states: launched now, taken when they are there.

One pass through the head serves reads of all kinds that need logits, whole batches of rows at a time: `HEAD_ROWS`, and
no row alone. HIDDEN reads are summed as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.forward import sampler
from engine.forward.forward_output import Chosen, Forward, are_all
from engine.forward.logit_rules import apply_rules
from engine.forward.model_runner import ModelRunner
from engine.forward.philox import words
from engine.forward.pooler import PooledRows, launch_sums
from engine.forward.sampler import RowLogprobs
from engine.forward.step_inputs import resolved, to_host
from engine.grammar.grammars import Grammars
from engine.grammar.masks import NO_MASKS, PendingMasks
from engine.loop.output_processor import OutputState
from engine.scheduling.reads import ReadKind, Reads
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.wanted_reads import WantedReads
from kernels.segments import Ints

# Rows that are drawn at a time: a draw takes some 20 times its logits for float64 scores, noise and a sort, which of so
# many of `HEAD_ROWS` are about one of the copies that `LOGITS_COPIES` counts.
DRAWN_ROWS = 16


@dataclass(frozen=True, slots=True, eq=False)
class StepValues:
    """What a step's reads came to, on its way to the host.

    `tokens` (samples,) stay on the device for the next step. `host` has them with their margins. It, the tensors of
    `logprobs` (of SAMPLE reads by index: a row of those made together), `target_values` (4, each) of the reads
    `target_reads`, if any prompt asks for them the best tokens at the places of these with their log-probabilities, and
    what HIDDEN reads are `pooled` to are read once `done` has passed.
    """

    step: SchedulerOutput
    tokens: Tensor
    host: Chosen
    logprobs: dict[int, tuple[int, RowLogprobs]]
    target_reads: Reads
    target_values: tuple[Tensor, ...]
    alternatives: tuple[tuple[Tensor, Tensor], ...]
    pooled: tuple[PooledRows, ...]
    done: torch.cuda.Event | None

    def wait(self) -> None:
        if self.done is not None:
            self.done.synchronize()


class StepReader:
    """Reads for the sequences of `states` and what is `wanted` of nodes, by key, which their owners keep up."""

    def __init__(
        self, runner: ModelRunner, states: Mapping[int, OutputState], wanted: WantedReads, grammars: Grammars
    ) -> None:
        self._runner = runner
        self._states = states
        self._wanted = wanted
        self._grammars = grammars

    def begin_masks(self, step: SchedulerOutput) -> PendingMasks:
        """What the structured texts that the step samples for may go on with, found while the model computes."""
        keys = step.reads.of_kind(ReadKind.SAMPLE).key.tolist()
        matchers = [(key, matcher) for key in keys if (matcher := self._states[key].matcher) is not None]
        return self._grammars.begin_masks(matchers)

    @torch.inference_mode()
    def launch(self, step: SchedulerOutput, forward: Forward, masks: PendingMasks = NO_MASKS) -> StepValues:
        """Behind the step's forward pass; the host does not wait for either, but for `masks`."""
        samples, hidden = step.reads.of_kind(ReadKind.SAMPLE), step.reads.of_kind(ReadKind.HIDDEN)
        places = np.searchsorted(step.asked_rows, step.reads.row)
        places, pooled_places = np.split(places, [len(places) - len(hidden)])
        pooled = launch_sums(self._runner, forward.hidden, pooled_places, hidden, exact=self._runner.model.strict)
        takes_best = np.array([self._states[key].takes_best for key in samples.key.tolist()], dtype=np.bool_)
        may_take = self._may_take_best(samples.key, masks)
        tokens, margins = self._best_tokens(forward, places[: len(samples)], samples.key, takes_best | may_take)
        for read in np.flatnonzero(may_take).tolist():
            takes_best[read] = masks.allows(int(samples.key[read]), int(tokens[read]))
        head = _HeadRows.of(places, np.flatnonzero(~takes_best), len(samples))
        logprobs: dict[int, tuple[int, RowLogprobs]] = {}
        target_values: list[Tensor] = []
        alternatives: list[tuple[Tensor, Tensor]] = []
        count, in_order = self._num_alternatives(step.reads), self._runner.model.strict
        for part, logits in self._runner.logits(forward.hidden, head.places):
            reads, rows = head.reads_in(part)
            drawn, targets = reads[reads < len(samples)], reads[reads >= len(samples)]
            if len(drawn):
                chosen, theirs = self._draw(step, drawn, logits[: len(drawn)], masks)
                at = self._runner.index(drawn)
                tokens[at], margins[at] = chosen
                if theirs is not None:
                    logprobs |= {read: (row, theirs) for row, read in enumerate(drawn.tolist())}
            if len(targets):
                at, target = self._runner.index(rows[len(drawn) :]), self._runner.index(step.reads.target[targets])
                leads = self._asks_for_leads(step.reads, targets)
                found = sampler.target_logprobs(logits, at, target, in_order=in_order, with_leads=leads)
                target_values.append(to_host(found))
                if count:
                    best, best_logprobs = sampler.best_logprobs(logits, count, in_order=in_order)
                    alternatives.append((to_host(best[at]), to_host(best_logprobs[at])))
        host = Chosen(to_host(tokens), to_host(margins))
        done = None
        if tokens.is_cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        target_reads = Reads(step.reads.table[head.target_reads])
        values = tuple(target_values), tuple(alternatives), tuple(pooled)
        return StepValues(step, tokens, host, logprobs, target_reads, *values, done)

    def _may_take_best(self, keys: Ints, masks: PendingMasks) -> NDArray[np.bool_]:
        """(samples,): texts whose best token is theirs if the grammar allows it.

        On a CPU, where the host has the token at once, and where the best is found faster than the logits.
        """
        if masks is NO_MASKS or self._runner.num_steps_ahead:
            return np.zeros(len(keys), dtype=np.bool_)
        return np.array([self._states[key].takes_best_if(masks.of(key)) for key in keys.tolist()], dtype=np.bool_)

    def _asks_for_leads(self, reads: Reads, targets: Ints) -> bool:
        """Whether one of these reads is of a text that is asked how surely it is the greedy one."""
        keys = reads.key[targets[reads.kind[targets] == ReadKind.LABEL]].tolist()
        return any(self._states[key].asks_for_leads for key in keys)

    def _num_alternatives(self, reads: Reads) -> int:
        """The most that any of the step's prompts asks at the place of a token."""
        keys = np.unique(reads.of_kind(ReadKind.PROMPT).key).tolist()
        nodes = [self._wanted.logprobs.get(key) for key in keys]
        return max((node.num_alternatives for node in nodes if node is not None), default=0)

    def _best_tokens(self, forward: Forward, places: Ints, keys: Ints, takes_best: NDArray[np.bool_]) -> Chosen:
        """Of samples: the token of the greatest logit where that is all that is asked, which needs no logits."""
        if takes_best.all() and len(places):
            return self._best(forward, places, keys)
        empty = torch.zeros(len(places), device=forward.hidden.device)
        made = Chosen(empty.long(), empty)
        plain = np.flatnonzero(takes_best)
        if len(plain):
            at = self._runner.index(plain)
            made.tokens[at], made.margins[at] = self._best(forward, places[plain], keys[plain])
        return made

    def _best(self, forward: Forward, places: Ints, keys: Ints) -> Chosen:
        """A margin that is no less than its text's least so far need not be known."""
        if forward.best is not None:
            whole = are_all(places, len(forward.best.tokens))
            return forward.best if whole else Chosen(*(part[self._runner.index(places)] for part in forward.best))
        told = None
        if not self._runner.num_steps_ahead:
            told = torch.tensor([self._states[key].min_margin for key in keys.tolist()], dtype=torch.float32)
        return self._runner.best_tokens(forward.hidden, places, told)

    def _draw(
        self, step: SchedulerOutput, samples: Ints, logits: Tensor, masks: PendingMasks
    ) -> tuple[Chosen, RowLogprobs | None]:
        """The tokens of samples, and on their way to the host the log-probabilities that any sequence asks for.

        `logits` (samples, vocab_size) are changed in place, as the sequences' parameters say.
        """
        keys = step.reads.key[samples].tolist()
        states = [self._states[key] for key in keys]
        wanted = max((s.params.logprobs for s in states if s.params.logprobs is not None), default=None)
        raw = logits
        found = [state.rules(masks.of(key)) for key, state in zip(keys, states, strict=True)]
        rules = [(row, rule) for row, rule in enumerate(found) if rule is not None]
        if rules:
            if wanted is not None:
                raw = logits.clone()  # log-probabilities are the model's own
            apply_rules(logits, rules, self._in_flight(step.input_ids[step.reads.row[samples]]))
        chosen = _choose(logits, states, step.position_ids[step.reads.row[samples]])
        if wanted is None:
            return chosen, None
        if rules:
            raw = logits.copy_(raw)  # frees the clone before another copy is made
        made = sampler.token_logprobs(raw, chosen.tokens, wanted)
        return chosen, RowLogprobs(to_host(made.chosen), to_host(made.best), to_host(made.best_tokens))

    def _in_flight(self, input_ids: Ints) -> Tensor:
        """(rows,): of each row the token that the step before sampled, which the host has not seen; -1 where it has."""
        known = self._runner.index(input_ids)
        if not (input_ids < 0).any():
            return torch.full_like(known, -1)
        return torch.where(known < 0, resolved(known, self._runner.last_tokens), -1)

    def take(self, values: StepValues, sampled: dict[int, Sampled]) -> None:
        """Waits for the step or a part of it, and gives each live sequence and node what it made for it.

        Of a sequence's rows, one behind the other, the first that is not as the row before it sampled was a wrong
        draft, and ends what is added to `sampled`; so does a token that ends the text.
        """
        values.wait()
        samples = values.step.reads.of_kind(ReadKind.SAMPLE)
        rows = zip(
            samples.key.tolist(),
            values.step.input_ids[samples.row].tolist(),
            values.step.position_ids[samples.row].tolist(),
            values.host.tokens.tolist(),
            values.host.margins.tolist(),
            strict=True,
        )
        for index, (key, given, position, token, margin) in enumerate(rows):
            state = self._states.get(key)
            if state is None:
                continue  # it ended while this step ran
            before = sampled.get(key)
            if before is not None and not (before.token_ids[-1] == given and state.goes_on_behind(position)):
                continue
            count = state.params.logprobs
            logprobs = None
            if count is not None and token >= 0:
                row, made = values.logprobs[index]
                logprobs = made.of(row, token, count)
            taken = state.take(token, margin, logprobs)
            sampled[key] = taken if before is None else before.then(taken)
        self._take_targets(values)
        for pooled in values.pooled:
            for key, part in zip(pooled.keys.tolist(), pooled.sums.numpy(), strict=True):
                if (reads := self._wanted.hidden.get(key)) is not None:  # else all below the node ended meanwhile
                    reads.take(part)

    def _take_targets(self, values: StepValues) -> None:
        if not values.target_values:
            return
        made = np.concatenate([part.numpy() for part in values.target_values], 1)
        is_label = values.target_reads.kind == ReadKind.LABEL
        labels = Reads(values.target_reads.table[is_label])
        for read, (logprob, is_best, finite, lead) in zip(labels, made[:, is_label].T.tolist(), strict=True):
            if (state := self._states.get(read.key)) is not None:  # else it ended while this step ran
                state.take_score(read.place, logprob, lead, is_best=bool(is_best), finite=bool(finite))
        best = [
            np.concatenate([part.numpy() for part in parts])[~is_label]
            for parts in zip(*values.alternatives, strict=True)
        ]
        self._take_prompt_reads(values.target_reads.table[~is_label], made[:3, ~is_label], best)

    def _take_prompt_reads(self, table: Ints, made: NDArray[np.float32], best: list[NDArray[Any]]) -> None:
        """`made` (3, reads) of the PROMPT reads in `table`, to each node its own; `best` tokens, and what they have."""
        by_key = np.argsort(table[:, 1], kind="stable")
        ends = np.flatnonzero(np.diff(table[by_key, 1])) + 1
        for part in np.split(by_key, ends) if len(by_key) else ():
            node_reads = self._wanted.logprobs.get(int(table[part[0], 1]))
            if node_reads is not None:  # else all below the node ended while this step ran
                logprobs, is_best, finite = made[:, part]
                node_reads.take(table[part, 4], logprobs, is_best > 0, finite > 0)
                if best:
                    tokens, best_logprobs = best
                    node_reads.take_alternatives(table[part, 4], tokens[part], best_logprobs[part])


@dataclass(frozen=True, slots=True, eq=False)
class _HeadRows:
    """The rows that go through the head, at `places` among the asked ones, and the reads of each.

    A sample that is drawn has a row to itself, whose logits its rules change. All reads with a target share their
    row's, behind those. `reads` are in the order of `rows`.
    """

    places: Ints
    reads: Ints
    rows: Ints
    num_drawn: int

    @classmethod
    def of(cls, places: Ints, drawn: Ints, num_samples: int) -> "_HeadRows":
        """`places` of all reads; of the first `num_samples`, only those at `drawn` need logits."""
        target_places, row_of = np.unique(places[num_samples:], return_inverse=True)
        by_row = np.argsort(row_of, kind="stable")
        return cls(
            places=np.concatenate((places[drawn], target_places)),
            reads=np.concatenate((drawn, num_samples + by_row)),
            rows=np.concatenate((np.arange(len(drawn)), len(drawn) + row_of[by_row])),
            num_drawn=len(drawn),
        )

    @property
    def target_reads(self) -> Ints:
        return self.reads[self.num_drawn :]

    def reads_in(self, part: slice) -> tuple[Ints, Ints]:
        """The reads of the rows in `part`, and each one's row in it."""
        first, last = np.searchsorted(self.rows, (part.start, part.stop))
        return self.reads[first:last], self.rows[first:last] - part.start


def _choose(logits: Tensor, states: Sequence[OutputState], positions: Ints) -> Chosen:
    """The token behind each row as its params ask for it, or what `greedy` has in its place."""
    best = sampler.greedy(logits)
    drawn = [row for row, state in enumerate(states) if not state.params.greedy]
    if not drawn:
        return best
    seeds, streams, places = np.array([states[row].draw_key(int(positions[row])) for row in drawn], dtype=np.uint64).T
    keys = words(seeds, streams, places)
    for first in range(0, len(drawn), DRAWN_ROWS):
        part = slice(first, first + DRAWN_ROWS)
        rows = torch.tensor(drawn[part], pin_memory=logits.is_cuda).to(logits.device, non_blocking=True)
        made = sampler.draw(logits[rows], [states[row].params for row in drawn[part]], keys[part])
        best.tokens[rows] = torch.where(best.tokens[rows] < 0, best.tokens[rows], made.tokens)
        best.margins[rows] = made.margins
    return best
