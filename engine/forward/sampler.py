"""Chooses tokens from logits, and reads off log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.forward.forward_output import Chosen
from engine.forward.philox import Words
from engine.request import TokenIds, TokenLogprobs
from engine.sampling_params import SamplingParams

# Lower ones could make scaled logits infinite, and choose no other token than this does.
_LOWEST_TEMPERATURE = 1e-30
# SplitMix64's constants, as signed numbers.
_GOLDEN_GAMMA, _MIX_FIRST, _MIX_SECOND = (
    word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
# What a row has in place of a token.
NOT_FINITE, ALL_BARRED = -1, -2


def greedy(logits: Tensor) -> Chosen:
    """Of (rows, vocab_size): each row's best token.

    ALL_BARRED where every logit is minus infinity, else NOT_FINITE where the best is not finite.
    """
    best = logits.max(-1)
    chosen = torch.where(torch.isfinite(best.values), best.indices, NOT_FINITE)
    chosen.masked_fill_(best.values == -torch.inf, ALL_BARRED)
    return Chosen(chosen, _leads(logits, best.values, best.indices))


def draw(logits: Tensor, params: Sequence[SamplingParams], keys: Words) -> Chosen:
    """Of (rows, vocab_size): a token of each row, the one of the greatest logit with noise of Gumbel's added.

    That is a draw from the softmax (Gumbel 1954; Maddison et al., A* sampling, NIPS 2014, section 2). A token's noise
    is its row's key's alone, so that the row gives the same token in any batch, and what a batch changes in the last
    bits of logits moves it only where two tokens are that close. Temperature first, then min_p, then top_k, then top_p
    over what is left, as vLLM orders them. A row that is not finite gives any token. A margin is that of scaled logits
    with their noise, times the temperature: how far the model's own logits would have to move to draw another token, of
    those that are left.
    """
    temperature = _column(logits, [max(p.temperature, _LOWEST_TEMPERATURE) for p in params], np.float64)
    scaled = logits.double().div_(temperature)
    if any(p.min_p for p in params):
        shares = (scaled - scaled.amax(-1, keepdim=True)).exp_()
        scaled.masked_fill_(shares < _column(logits, [p.min_p for p in params], np.float64), -torch.inf)
    if any(p.top_k or p.top_p < 1 for p in params):
        _keep_top(scaled, params)
    best = scaled.add_(_gumbel_noise(keys, scaled)).max(-1)
    leads = _leads(scaled, best.values, best.indices).mul_(temperature[:, 0])
    return Chosen(best.indices, leads.to(logits.dtype))


def _leads(scores: Tensor, best: Tensor, places: Tensor) -> Tensor:
    """(rows,): by how much the best of each row of `scores`, which stays as it is, is ahead of the others."""
    at = places[:, None]
    scores.scatter_(-1, at, -torch.inf)
    behind = scores.amax(-1)
    scores.scatter_(-1, at, best[:, None])
    return best - behind


def _keep_top(scaled: Tensor, params: Sequence[SamplingParams]) -> None:
    """Bars what is behind each row's top_k, and behind top_p of what is left, in place; the best always stays."""
    top_k = _column(scaled, [p.top_k or scaled.shape[-1] for p in params], np.int64)
    # Of 1 or more, top_p keeps everything, whatever a sum rounds to.
    top_p = _column(scaled, [p.top_p if p.top_p < 1 else 2.0 for p in params], np.float64)
    ordered, ids = scaled.sort(descending=True, stable=True)
    place = torch.arange(scaled.shape[-1], device=scaled.device)
    ordered.masked_fill_(place >= top_k, -torch.inf)
    probs = ordered.softmax(-1)
    barred = probs.cumsum(-1).sub_(probs) >= top_p
    barred[:, 0] = False
    scaled.scatter_(-1, ids, ordered.masked_fill_(barred, -torch.inf))


def _gumbel_noise(keys: Words, like: Tensor) -> Tensor:
    """(rows, vocab_size) float64: of each row's SplitMix64, which begins at its key, a number a token.

    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, section 4.
    """
    start = _column(like, keys.view(np.int64), np.int64)
    words = torch.arange(1, like.shape[-1] + 1, device=like.device) * _GOLDEN_GAMMA + start
    for shift, factor in ((30, _MIX_FIRST), (27, _MIX_SECOND)):
        words.bitwise_xor_(_shifted(words, shift)).mul_(factor)
    words.bitwise_xor_(_shifted(words, 31))
    # 52 bits and a half: neither 0 nor 1.
    uniforms = _shifted(words, 12).double().add_(0.5).mul_(2.0**-52)
    return uniforms.log_().neg_().log_().neg_()


def _shifted(words: Tensor, by: int) -> Tensor:
    """To the right, zeros behind."""
    return words.bitwise_right_shift(by).bitwise_and_((1 << (64 - by)) - 1)


def _column(made: Tensor, numbers: Sequence[float] | NDArray[np.int64], dtype: type[np.number[Any]]) -> Tensor:
    """(rows, 1) on `made`'s device, from pinned memory, so that the host does not wait."""
    host = torch.from_numpy(np.asarray(numbers, dtype=dtype))[:, None]
    return (host.pin_memory() if made.is_cuda else host).to(made.device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class RowLogprobs:
    """Of rows: the chosen token's log-probability (rows,), and the best tokens (rows, count) with theirs."""

    chosen: Tensor
    best: Tensor
    best_tokens: Tensor

    def of(self, row: int, token_id: int, count: int) -> TokenLogprobs:
        """A row's, with its `count` best alternatives."""
        top = zip(self.best_tokens[row, :count].tolist(), self.best[row, :count].tolist(), strict=True)
        return TokenLogprobs(token_id, float(self.chosen[row]), tuple(top))


def token_logprobs(logits: Tensor, tokens: Tensor, count: int) -> RowLogprobs:
    """Of (rows, vocab_size) and a token of each row (rows,), with the `count` best alternatives."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(count)
    return RowLogprobs(logprobs.gather(-1, tokens.clamp(min=0)[:, None])[:, 0], best.values, best.indices)


def target_logprobs(
    logits: Tensor, rows: Tensor, targets: Tensor, *, in_order: bool = False, with_leads: bool = False
) -> Tensor:
    """(4, targets) float32. For target i in row `rows[i]`: its log-probability, whether it is the row's best, whether
    the row is finite, and by how much it is ahead of the best of the others: below 0 where it is behind, and 0 where it
    is the best and its lead is not asked for.
    """
    best = logits.max(-1)
    lse = _log_sum_exp(logits, in_order)
    own, is_best = logits[rows, targets], best.indices[rows] == targets
    leads = own - best.values[rows]
    if with_leads:
        leads = torch.where(is_best, _leads(logits, best.values, best.indices)[rows], leads)
    return torch.stack((own - lse[rows], is_best.float(), torch.isfinite(lse[rows]).float(), leads))


def best_logprobs(logits: Tensor, count: int, *, in_order: bool = False) -> tuple[Tensor, Tensor]:
    """The `count` best tokens of each row of (rows, vocab_size), (rows, count) int64, and their log-probabilities."""
    best = logits.topk(count)
    return best.indices, best.values - _log_sum_exp(logits, in_order)[:, None]


def _log_sum_exp(logits: Tensor, in_order: bool) -> Tensor:
    """(rows,). A row alone is summed by torch in as many parts as there are threads; of several, each in one."""
    if in_order and len(logits) == 1:
        return logits.repeat(2, 1).logsumexp(-1)[:1]
    return logits.logsumexp(-1)


def stream_of(prompt_token_ids: TokenIds) -> int:
    """A number for a prompt, so that prompts under one seed draw independently."""
    return int.from_bytes(blake2b(prompt_token_ids.astype("<i4").tobytes(), digest_size=8).digest(), "little")
