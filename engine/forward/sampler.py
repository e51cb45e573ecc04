"""Chooses tokens from logits, and reads off log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from engine.request import TokenIds, TokenLogprobs
from engine.sampling_params import SamplingParams

_LOWEST_TEMPERATURE = 1e-30


def greedy(logits: Tensor) -> Tensor:
    """(rows, vocab_size) to (rows,) int64: each row's best token; -1 where the row is not finite."""
    best = logits.max(-1)
    return torch.where(torch.isfinite(best.values), best.indices, -1)


def draw(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """(rows, vocab_size) to (rows,): a token of each by inverse CDF; a row's uniform gives its token in any batch.

    Temperature first, then min_p, then top_k, then top_p over what is left, as vLLM orders them. A row that is not
    finite gives any token.
    """
    temperature, top_p = (_on(logits, [[v] for v in c], torch.float64) for c in zip(*_scales(params), strict=True))
    top_k = _on(logits, [[p.top_k or logits.shape[-1]] for p in params], torch.int64)
    ordered, ids = (logits.double() / temperature).sort(descending=True, stable=True)
    if any(p.min_p for p in params):
        shares = (ordered - ordered[:, :1]).exp_()
        ordered.masked_fill_(shares < _on(logits, [[p.min_p] for p in params], torch.float64), -torch.inf)
    place = torch.arange(logits.shape[-1], device=logits.device)
    probs = ordered.masked_fill_(place >= top_k, -torch.inf).softmax(-1)
    keep = (probs.cumsum(-1) - probs < top_p) & (probs > 0)
    keep[:, 0] = True
    cdf = probs.mul_(keep).cumsum(-1)
    index = torch.searchsorted(cdf, _on(logits, [[u] for u in uniforms], torch.float64) * cdf[:, -1:], right=True)
    return ids.gather(-1, index.clamp_(max=keep.sum(-1, keepdim=True) - 1))[:, 0]


def _scales(params: Sequence[SamplingParams]) -> list[tuple[float, float]]:
    """Temperature and top_p; of 1 or more, top_p keeps everything, whatever a sum rounds to.

    A temperature so low that logits would not be finite is as good as the lowest that keeps them so.
    """
    return [(max(p.temperature, _LOWEST_TEMPERATURE), p.top_p if p.top_p < 1 else 2.0) for p in params]


def _on(made: Tensor, numbers: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """On `made`'s device, from pinned memory, so that the host does not wait."""
    host = torch.tensor(numbers, dtype=dtype, pin_memory=made.is_cuda)
    return host.to(made.device, non_blocking=True)


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


def target_logprobs(logits: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """(3, targets) float32. For target i in row `rows[i]`: its log-probability, whether it is the row's best, whether
    the row is finite.
    """
    best = logits.max(-1)
    lse = logits.logsumexp(-1)
    logprobs = logits[rows, targets] - lse[rows]
    return torch.stack((logprobs, (best.indices[rows] == targets).float(), torch.isfinite(lse[rows]).float()))


def best_logprobs(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best tokens of each row of (rows, vocab_size), (rows, count) int64, and their log-probabilities."""
    best = logits.topk(count)
    return best.indices, best.values - logits.logsumexp(-1, keepdim=True)


def stream_of(prompt_token_ids: TokenIds) -> int:
    """A number for a prompt, so that prompts under one seed draw independently."""
    return int.from_bytes(blake2b(prompt_token_ids.astype("<i4").tobytes(), digest_size=8).digest(), "little")
