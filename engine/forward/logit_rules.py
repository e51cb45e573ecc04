"""Changes logits as a row's sampling parameters ask, before a token is chosen: bars, biases and penalties.

All rows of a batch at once, on their device. Rules come as pairs of a row and a token, so what a batch costs follows
from what its rows ask for. The token in flight, which the host has not seen, is read on the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.sampling_params import SamplingParams

Tokens = NDArray[np.int64]
NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class RowRules:
    """A row's parameters, and what they depend on: the tokens of its prompt and those that were generated.

    `barred` may not be next. `bad_words` are sequences of tokens that may not come to be. `mask` (words,) says which
    tokens a grammar allows: bit i % 32 of word i // 32 for token i.
    """

    params: SamplingParams
    prompt: Tokens = field(default_factory=lambda: NONE)
    generated: Tokens = field(default_factory=lambda: NONE)
    barred: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    mask: NDArray[np.int32] | None = None


def apply_rules(logits: Tensor, rules: Sequence[tuple[int, RowRules]], in_flight: Tensor) -> None:
    """Changes `logits` (rows, vocab_size) in place, for the rows that `rules` name, each once.

    `in_flight` (rows,) int64 is each row's last token where the host has not seen it, else -1. In vLLM's order: what
    grammars allow, allowed tokens, bad words and barred ones, biases, then the penalties for repetition, frequency and
    presence.
    """
    if not rules:
        return
    _keep_grammatical(logits, rules)
    _keep_allowed(logits, rules)
    _bar(logits, rules, in_flight)
    _bias(logits, rules)
    penalised = [(row, rule) for row, rule in rules if rule.params.penalises]
    if penalised:
        _penalise(logits, penalised, in_flight)


def _keep_grammatical(logits: Tensor, rules: Sequence[tuple[int, RowRules]]) -> None:
    masked = [(row, rule.mask) for row, rule in rules if rule.mask is not None]
    if not masked:
        return
    barred = are_barred(np.stack([mask for _, mask in masked]), logits.shape[1], logits.device)
    if len(masked) == len(logits):
        logits.masked_fill_(barred, -torch.inf)
    else:
        rows = _on(logits, [row for row, _ in masked])
        logits[rows] = logits[rows].masked_fill_(barred, -torch.inf)


def are_barred(masks: NDArray[np.int32], vocab_size: int, device: torch.device) -> Tensor:
    """(rows, vocab_size) bool on the device: the tokens whose bit in `masks` (rows, words) is 0."""
    octets = masks.view(np.uint8)
    if device.type == "cpu":
        bits = np.unpackbits(~octets, axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))
    packed = torch.from_numpy(octets).pin_memory().to(device, non_blocking=True)
    return unpacked(packed, vocab_size).logical_not_()


def unpacked(octets: Tensor, count: int) -> Tensor:
    """(rows, count) bool: the first bits of `octets` (rows, bytes) uint8, each byte's lowest first."""
    places = torch.arange(8, dtype=torch.uint8, device=octets.device)
    return ((octets[:, :, None] >> places) & 1).view(len(octets), -1)[:, :count].to(torch.bool)


def _keep_allowed(logits: Tensor, rules: Sequence[tuple[int, RowRules]]) -> None:
    limited = [(row, rule.params.allowed_token_ids) for row, rule in rules if rule.params.allowed_token_ids is not None]
    if not limited:
        return
    rows = _on(logits, [row for row, _ in limited])
    barred = torch.ones(len(limited), logits.shape[1], dtype=torch.bool, device=logits.device)
    places, tokens = _pairs(logits, ((place, ids) for place, (_, ids) in enumerate(limited)))
    barred[places, tokens] = False
    logits[rows] = logits[rows].masked_fill(barred, -torch.inf)


def _bar(logits: Tensor, rules: Sequence[tuple[int, RowRules]], in_flight: Tensor) -> None:
    """A bad word's last token is barred where the text ends in what is before it."""
    always = [(row, token) for row, rule in rules for token in rule.barred]
    behind: list[tuple[int, int, int]] = []
    for row, rule in rules:
        for *head, last in rule.bad_words:
            if not head:
                always.append((row, last))
                continue
            if _ends_in(rule.generated, head):
                behind.append((row, last, -1))
            if _ends_in(rule.generated, head[:-1]):
                behind.append((row, last, head[-1]))
    if always:
        rows, tokens = _on(logits, always).unbind(1)
        logits[rows, tokens] = -torch.inf
    if behind:
        rows, tokens, before = _on(logits, behind).unbind(1)
        # Added, because a token may be there twice, and is barred if either says so.
        barred = torch.where(in_flight[rows] == before, -torch.inf, 0.0).to(logits.dtype)
        logits.index_put_((rows, tokens), barred, accumulate=True)


def _ends_in(tokens: Tokens, end: Sequence[int]) -> bool:
    return not end or (len(tokens) >= len(end) and tokens[-len(end) :].tolist() == list(end))


def _bias(logits: Tensor, rules: Sequence[tuple[int, RowRules]]) -> None:
    biases = [(row, token, bias) for row, rule in rules for token, bias in rule.params.logit_bias]
    if biases:
        rows, tokens = _on(logits, [pair[:2] for pair in biases]).unbind(1)
        amounts = torch.tensor([bias for *_, bias in biases], dtype=logits.dtype, pin_memory=logits.is_cuda)
        logits.index_put_((rows, tokens), amounts.to(logits.device, non_blocking=True), accumulate=True)


def _penalise(logits: Tensor, rules: Sequence[tuple[int, RowRules]], in_flight: Tensor) -> None:
    """Repetition counts prompt and text, the others the text alone (as vLLM and OpenAI have it)."""
    rows = _on(logits, [row for row, _ in rules])
    made = logits[rows]
    counts = torch.zeros_like(made)
    places, tokens = _pairs(logits, ((place, rule.generated) for place, (_, rule) in enumerate(rules)))
    counts.index_put_((places, tokens), counts.new_ones(len(tokens)), accumulate=True)
    last = in_flight[rows]
    counts.scatter_add_(1, last.clamp(min=0)[:, None], (last >= 0).to(counts.dtype)[:, None])
    repetition, frequency, presence = (
        _column(logits, [getattr(rule.params, f"{name}_penalty") for _, rule in rules])
        for name in ("repetition", "frequency", "presence")
    )
    seen = counts > 0
    repeats = ((place, rule.prompt) for place, (_, rule) in enumerate(rules) if rule.params.repetition_penalty != 1)
    places, tokens = _pairs(logits, repeats)
    is_repeated = seen.clone()
    is_repeated[places, tokens] = True
    made = torch.where(is_repeated, torch.where(made > 0, made / repetition, made * repetition), made)
    logits[rows] = made - frequency * counts - presence * seen


def _pairs(logits: Tensor, tokens_of: Iterable[tuple[int, Sequence[int] | Tokens]]) -> tuple[Tensor, Tensor]:
    """A place and a token for each of the tokens, on the device."""
    lists = [(place, np.asarray(tokens, dtype=np.int64)) for place, tokens in tokens_of]
    places = np.repeat([place for place, _ in lists], [len(tokens) for _, tokens in lists]).astype(np.int64)
    tokens = np.concatenate([NONE, *(tokens for _, tokens in lists)])
    both = torch.from_numpy(np.stack((places, tokens)))
    both = (both.pin_memory() if logits.is_cuda else both).to(logits.device, non_blocking=True)
    return both[0], both[1]


def _on(logits: Tensor, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    """On the logits' device, from pinned memory, so that the host does not wait."""
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=logits.is_cuda).to(logits.device, non_blocking=True)


def _column(logits: Tensor, numbers: Sequence[float]) -> Tensor:
    host = torch.tensor(numbers, dtype=logits.dtype, pin_memory=logits.is_cuda)
    return host.to(logits.device, non_blocking=True)[:, None]
