"""Makes requests' outputs out of tokens and scores: when a text ends, what it says, what it was worth."""

import math
import os
from collections.abc import Sequence as Many
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from engine.forward import sampler
from engine.forward.logit_rules import NONE, RowRules
from engine.grammar.grammar import BAD_GRAMMAR, GrammarError
from engine.grammar.grammars import Grammars
from engine.grammar.matcher import Matcher
from engine.loop.stop_words import bad_word_ids, special_stops
from engine.request import LabelScore, Request, RequestOutput, TokenLogprobs
from engine.scheduling.sampled import Sampled
from engine.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NON_FINITE = "NON_FINITE"
"""The model's logits or hidden states are NaN or infinite for this row.

Cure: compute in a wider type (`model.dtype: bfloat16` in the place of float16, or float32); where that gives the same,
the weights are broken.
"""
OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""The device has no memory for a token of this row, or of a prefix that it shares, even in a step alone.

Cure: lower `engine.kv_cache_memory` or `engine.gpu_memory_utilization`, free the device, then `--retry-failed`.
"""
NO_TOKEN = "NO_TOKEN"
"""The row's sampling parameters, taken together, bar every token.

Cure: drop one of them, such as `allowed_token_ids` that the grammar has no use for.
"""
NO_MEMORY = (OUT_OF_MEMORY, "the device has no memory for this row's step alone")
_NOT_FINITE = (NON_FINITE, "the model's logits are not finite")
_ALL_BARRED = (NO_TOKEN, "its sampling parameters, taken together, bar every token; drop one of them")
_HIDDEN_NOT_FINITE = (NON_FINITE, "the model's hidden states are not finite")


class OutputState:
    """One request's output while it grows."""

    def __init__(
        self,
        sequence: Sequence,
        tokenizer: "PreTrainedTokenizerFast | None",
        eos_token_ids: Many[int],
        grammars: Grammars | None = None,
        *,
        strict: bool = False,
    ) -> None:
        """`strict`: a text without a seed is drawn by its request's name, and so again as it was."""
        self.sequence = sequence
        self.params = params = sequence.request.params
        self._is_plain = params.greedy and params.logprobs is None and not params.changes_logits_besides
        self.tokenizer = tokenizer
        self.finish_reason: str | None = None
        self.error: tuple[str, str] | None = None
        self.text_end: int | None = None
        self.logprobs: list[TokenLogprobs] = []
        self.min_margin = math.inf
        self._num_taken = 0
        self.label_logprobs = [0.0] * len(sequence.request.labels or ())
        self.label_greedy = [True] * len(sequence.request.labels or ())
        self.label_leads = [math.inf] * len(sequence.request.labels or ())
        self._special_stops = special_stops(tokenizer, self.params.stop) if self.params.stop and tokenizer else {}
        ends = () if self.params.ignore_eos else eos_token_ids
        self.end_token_ids = (*ends, *self.params.stop_token_ids, *self._special_stops)
        self._ignored_ends = tuple(eos_token_ids) if self.params.ignore_eos else ()
        self._grammars = grammars
        self._stops = tuple(stop for stop in self.params.stop if stop not in self._special_stops.values())
        self._streamed = ""
        self._stream = DecodeStream(skip_special_tokens=True) if self._stops and tokenizer else None
        self._seed = _seed_of(sequence.request, strict=strict)
        self._random_stream = sampler.stream_of(sequence.request.prompt_token_ids)
        penalised = self.params.repetition_penalty != 1
        self._prompt = np.unique(sequence.request.prompt_token_ids).astype(np.int64) if penalised else NONE
        self._bad_words = bad_word_ids(tokenizer, self.params.bad_words) if tokenizer else ()

    @cached_property
    def matcher(self) -> Matcher | None:
        """What follows a structured text, made when the first token is asked; where that fails, the row ends."""
        asked = self.params.structured_outputs
        if asked is None:
            return None
        assert self._grammars is not None
        try:
            return self._grammars.matcher(asked, self.end_token_ids, forces=self._forces)
        except GrammarError as problem:
            self.error = (BAD_GRAMMAR, str(problem))
            return None

    @property
    def _forces(self) -> bool:
        """Whether text that the grammar forces is put in whatever the model says: not where more may bar tokens."""
        return self.params.allowed_token_ids is None and not self.params.bad_words and not self._stops

    @property
    def takes_best(self) -> bool:
        """Whether the token in flight is that of the greatest logit, whatever the others are."""
        return self._is_plain and self.params.structured_outputs is None and not self._is_too_short

    def takes_best_if(self, mask: NDArray[np.int32] | None) -> bool:
        """Whether it is that token where the grammar's `mask` allows it: nothing else bars or changes any."""
        return mask is not None and self._is_plain and not self._is_too_short and not self._ignored_ends

    def rules(self, mask: NDArray[np.int32] | None = None) -> RowRules | None:
        """What the token in flight must heed; ends are barred while the text is shorter than `min_tokens`.

        `mask` is what the grammar allows of a structured text, whose end is the grammar's where the model's is ignored.
        """
        if not self._has_rules:
            return None
        barred = self.end_token_ids if self._is_too_short else ()
        if mask is not None:
            barred += self._ignored_ends
        generated = np.array(self.sequence.token_ids, dtype=np.int64)
        return RowRules(self.params, self._prompt, generated, barred, self._bad_words, mask)

    def goes_on_behind(self, position: int) -> bool:
        """Whether the row at `position` is that of the last token taken, and the text has not ended with it."""
        ended = self.finish_reason is not None or self.error is not None
        return not ended and position + 1 - self.sequence.num_prompt_tokens == self._num_taken

    def draw_key(self, position: int) -> tuple[int, int, int]:
        """Seed, stream and place: what the token behind the row at `position` is drawn by, and nothing else."""
        place = position + 1 - self.sequence.num_prompt_tokens
        return self._seed & (2**64 - 1), self._random_stream, place

    @property
    def _has_rules(self) -> bool:
        return self.params.changes_logits or self._is_too_short

    @property
    def _is_too_short(self) -> bool:
        # Most texts have no minimum, and are asked for each token: they are told without a look at their place.
        return self.params.min_tokens > 0 and self._place < self.params.min_tokens and bool(self.end_token_ids)

    @property
    def _place(self) -> int:
        """Of the last token that was scheduled, in the text."""
        return self.sequence.num_output_tokens - 1

    def take(self, token: int, margin: float = math.inf, logprobs: TokenLogprobs | None = None) -> Sampled:
        """The next token, or what the sampler has in the place of one; `margin` is by how much it was the best."""
        if self.error is not None:
            return self.fail(*self.error)
        if token < 0:
            barred = token == sampler.ALL_BARRED and self._has_rules
            return self.fail(*(_ALL_BARRED if barred else _NOT_FINITE))
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if margin < self.min_margin:
            self.min_margin = margin
        count = self._num_taken = self._num_taken + 1
        if self.matcher is not None:
            return self._take_structured(self.matcher, token, count)
        self._end_at(token in self.end_token_ids or self._at_stop_string(token, count), count)
        return Sampled(token, finished=self.finish_reason is not None)

    def _take_structured(self, matcher: Matcher, token: int, count: int) -> Sampled:
        """The text ends where the grammar does. What follows whatever the model says comes with the token.

        Where log-probabilities are asked, the model is asked for each token, as the only one that its mask allows.
        """
        matcher.take(token)
        if matcher.fault is not None:
            return self.fail(BAD_GRAMMAR, matcher.fault)
        forced = matcher.take_forced(self.sequence.max_tokens - count) if self.params.logprobs is None else ()
        self._num_taken += len(forced)
        self._end_at(matcher.ended or self._at_stop_string(token, count), count + len(forced))
        return Sampled(token, finished=self.finish_reason is not None, forced=forced)

    def _end_at(self, stops: bool, count: int) -> None:
        if stops:
            self.finish_reason = "stop"
        elif count >= self.sequence.max_tokens:
            self.finish_reason = "length"

    def fail(self, error_type: str, message: str) -> Sampled:
        """The row ends as this error, whatever it has come to."""
        self.error = (error_type, message)
        return Sampled(0, finished=True, failed=True)

    def _at_stop_string(self, token: int, count: int) -> bool:
        """Whether the text now holds a stop string; a string may span tokens.

        It ends behind the first `min_tokens` tokens: one that they hold whole is text as any other.
        """
        if self._stream is None or self.tokenizer is None:
            return False
        piece = self._stream.step(self.tokenizer.backend_tokenizer, token) or ""
        before = len(self._streamed)
        self._streamed += piece
        if not piece or count <= self.params.min_tokens:
            return False
        found = [
            (at, len(stop))
            for stop in self._stops
            if (at := self._streamed.find(stop, max(before - len(stop) + 1, 0))) >= 0
        ]
        if found:
            at, length = min(found)
            self.text_end = at + length if self.params.include_stop_str_in_output else at
        return bool(found)

    @property
    def asks_for_leads(self) -> bool:
        """Whether the request's one label is asked how surely it is the greedy text, or is none."""
        return self.sequence.request.labels is not None and len(self.sequence.request.labels) == 1

    def take_score(self, label: int, logprob: float, lead: float, *, is_best: bool, finite: bool) -> None:
        """Of a label's token; by `lead` it is ahead of the best of the others."""
        if not finite and self.error is None:
            self.error = _NOT_FINITE
        self.label_logprobs[label] += logprob
        self.label_greedy[label] &= is_best
        self.label_leads[label] = min(self.label_leads[label], lead)

    def output(self) -> RequestOutput:
        """The finished request's output."""
        sequence, request = self.sequence, self.sequence.request
        embedding = self._read_prompt()
        if self.error is not None:
            return error_output(sequence, *self.error)
        if request.labels is not None:
            scores = tuple(map(LabelScore, self.label_logprobs, self.label_greedy))
            # Behind its greedy flag is the one label's worst token, on whichever side of the others.
            flagged = self.asks_for_leads and math.isfinite(self.label_leads[0])
            return RequestOutput(
                request.request_id,
                "scored",
                sequence.num_prompt_tokens,
                label_scores=scores,
                prompt_logprobs=sequence.prompt_logprobs,
                embedding=embedding,
                num_cached_tokens=sequence.num_cached_tokens,
                min_margin=abs(self.label_leads[0]) if flagged else None,
            )
        assert self.finish_reason is not None
        return RequestOutput(
            request.request_id,
            self.finish_reason,
            sequence.num_prompt_tokens,
            token_ids=tuple(sequence.token_ids),
            text=self._text(),
            cumulative_logprob=sum(token.logprob for token in self.logprobs) if self.logprobs else None,
            logprobs=tuple(self.logprobs) or None,
            prompt_logprobs=sequence.prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens,
            min_margin=self.min_margin if math.isfinite(self.min_margin) else None,
        )

    def _read_prompt(self) -> NDArray[np.float32] | None:
        """The prompt's embedding, where it is asked for; the error where something of the prompt could not be read."""
        sequence = self.sequence
        if self.error is None and not all(r.is_finite[first:].all() for r, first in sequence.prompt_reads):
            self.error = _NOT_FINITE
        if self.error is not None:
            return None
        embedding = sequence.embedding
        if embedding is not None and not np.isfinite(embedding).all():
            self.error = _HIDDEN_NOT_FINITE
        return embedding

    def _text(self) -> str | None:
        if self.tokenizer is None:
            return None
        if self.text_end is not None:
            return self._streamed[: self.text_end]
        if self.matcher is not None:
            return self.matcher.text
        text = str(self.tokenizer.decode(self.sequence.token_ids, skip_special_tokens=True))
        if self.params.include_stop_str_in_output and self.finish_reason == "stop":
            text += self._special_stops.get(self.sequence.token_ids[-1], "")
        return text


def _seed_of(request: Request, *, strict: bool) -> int:
    if request.params.seed is not None:
        return request.params.seed
    drawn = blake2b(request.request_id.encode(), digest_size=8).digest() if strict else os.urandom(8)
    return int.from_bytes(drawn, "little")


def error_output(sequence: Sequence, error_type: str, message: str) -> RequestOutput:
    return RequestOutput(
        sequence.request.request_id,
        "error",
        sequence.num_prompt_tokens,
        error_type=error_type,
        error_message=message,
    )
