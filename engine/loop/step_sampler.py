"""A step's tokens and label scores, chosen on the device from its hidden states: launched now, read when they are made.

No row is chosen by itself: whole batches of rows go through the head, `HEAD_ROWS` at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.forward import sampler
from engine.forward.forward_output import Forward
from engine.forward.logit_rules import apply_rules
from engine.forward.model_runner import ModelRunner
from engine.forward.philox import uniforms
from engine.forward.sampler import RowLogprobs
from engine.forward.step_inputs import resolved, to_host
from engine.loop.output_processor import OutputState
from engine.scheduling.scheduler import Sampled
from engine.scheduling.scheduler_output import SchedulerOutput, ScoreRow


@dataclass(frozen=True, slots=True, eq=False)
class StepSamples:
    """What a step came to, on its way to the host.

    `tokens` (samples,) stay on the device for the next step; `host_tokens` and the tensors of `logprobs` (for samples
    by place) and `scores` (3, targets) are read once `done` has passed.
    """

    step: SchedulerOutput
    tokens: Tensor
    host_tokens: Tensor
    logprobs: dict[int, tuple[int, RowLogprobs]]
    scores: tuple[Tensor, ...]
    done: torch.cuda.Event | None

    def wait(self) -> None:
        if self.done is not None:
            self.done.synchronize()


class StepSampler:
    """Chooses for the sequences of `states`, which their owner keeps up."""

    def __init__(self, runner: ModelRunner, states: Mapping[int, OutputState]) -> None:
        self._runner = runner
        self._states = states

    @torch.inference_mode()
    def launch(self, step: SchedulerOutput, forward: Forward) -> StepSamples:
        """Behind the step's forward pass; the host does not wait for either."""
        tokens, logprobs = self._sample(step, forward)
        scores = tuple(map(to_host, self._score(step, forward.hidden)))
        host_tokens = to_host(tokens)
        done = None
        if tokens.is_cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return StepSamples(step, tokens, host_tokens, logprobs, scores, done)

    def _sample(self, step: SchedulerOutput, forward: Forward) -> tuple[Tensor, dict[int, tuple[int, RowLogprobs]]]:
        """Rows whose token is the greatest logit's, and nothing else is asked of them, need no logits."""
        places = step.places([sample.row for sample in step.samples])
        takes_best = np.array([self._states[sample.key].takes_best for sample in step.samples], dtype=np.bool_)
        others = np.flatnonzero(~takes_best)
        if not len(others):
            best = self._best(forward, places)
            return best, {}
        tokens = torch.zeros(len(places), dtype=torch.int64, device=forward.hidden.device)
        plain = np.flatnonzero(takes_best)
        if len(plain):
            tokens[self._runner.index(plain)] = self._best(forward, places[plain])
        logprobs: dict[int, tuple[int, RowLogprobs]] = {}
        for part, logits in self._runner.logits(forward.hidden, places[others]):
            chosen = others[part]
            states = [self._states[step.samples[index].key] for index in chosen.tolist()]
            raw = logits
            rules = [(row, rule) for row, state in enumerate(states) if (rule := state.rules) is not None]
            if rules:
                if any(state.params.logprobs is not None for state in states):
                    raw = logits.clone()  # log-probabilities are the model's own
                apply_rules(logits, rules, self._in_flight(step, chosen))
            drawn = _choose(logits, states)
            tokens[self._runner.index(chosen)] = drawn
            wanted = max((s.params.logprobs for s in states if s.params.logprobs is not None), default=None)
            if wanted is not None:
                made = sampler.token_logprobs(raw, drawn, wanted)
                made = RowLogprobs(to_host(made.chosen), to_host(made.best), to_host(made.best_tokens))
                logprobs |= {index: (row, made) for row, index in enumerate(chosen.tolist())}
        return tokens, logprobs

    def _in_flight(self, step: SchedulerOutput, samples: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """(samples,) each row's token that the step before sampled, which the host has not seen; -1 where it has."""
        ids = step.input_ids[[step.samples[index].row for index in samples.tolist()]]
        known = self._runner.index(ids)
        return torch.where(known < 0, resolved(known, self._runner.last_tokens), -1)

    def _best(self, forward: Forward, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        if forward.best is None:
            return self._runner.best_tokens(forward.hidden, places)
        return forward.best if len(places) == len(forward.best) else forward.best[self._runner.index(places)]

    def _score(self, step: SchedulerOutput, hidden: Tensor) -> Iterator[Tensor]:
        for part, logits in self._runner.logits(hidden, step.places([score.row for score in step.scores])):
            rows, targets = zip(*_targets(step.scores[part]), strict=True)
            yield sampler.target_logprobs(logits, rows, targets)

    def take(self, samples: StepSamples) -> dict[int, Sampled]:
        """Waits for the step, and gives each live sequence what it made for it."""
        samples.wait()
        sampled = {}
        for index, (sample, token) in enumerate(zip(samples.step.samples, samples.host_tokens.tolist(), strict=True)):
            state = self._states.get(sample.key)
            if state is None:
                continue  # it ended while this step ran
            count = state.params.logprobs
            logprobs = None
            if count is not None and token >= 0:
                row, made = samples.logprobs[index]
                logprobs = made.of(row, token, count)
            sampled[sample.key] = state.take(token, logprobs)
        values = np.concatenate([part.numpy() for part in samples.scores], 1) if samples.scores else np.empty((3, 0))
        at = 0
        for score in samples.step.scores:
            for label in score.labels:
                logprob, is_best, finite = values[:, at].tolist()
                self._states[score.key].take_score(label, logprob, bool(is_best), bool(finite))
                at += 1
        return sampled


def _choose(logits: Tensor, states: Sequence[OutputState]) -> Tensor:
    """(rows,): each row's token as its params ask for it; -1 where the row is not finite."""
    best = sampler.greedy(logits)
    drawn = [row for row, state in enumerate(states) if not state.params.greedy]
    if not drawn:
        return best
    rows = torch.tensor(drawn, pin_memory=logits.is_cuda).to(logits.device, non_blocking=True)
    chosen = [states[row] for row in drawn]
    seeds, streams, places = np.array([state.draw_key for state in chosen], dtype=np.uint64).T
    made = sampler.draw(logits[rows], [state.params for state in chosen], uniforms(seeds, streams, places).tolist())
    best[rows] = torch.where(best[rows] < 0, -1, made)
    return best


def _targets(scores: Sequence[ScoreRow]) -> list[tuple[int, int]]:
    return [(row, target) for row, score in enumerate(scores) for target in score.targets]
