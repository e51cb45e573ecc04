"""Chooses tokens from logits, and reads off log-probabilities."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from numpy.random import Generator, Philox
from torch import Tensor

from engine.request import TokenIds, TokenLogprobs
from engine.sampling_params import SamplingParams


def suppress(logits: Tensor, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
    """Bars `token_ids[i]` from row `rows[i]`, in place."""
    for row, ids in zip(rows, token_ids, strict=True):
        logits[row, list(ids)] = -torch.inf


def greedy(logits: Tensor) -> list[int]:
    """(rows, vocab_size): each row's best token; -1 where the row is not finite."""
    best = logits.max(-1)
    return torch.where(torch.isfinite(best.values), best.indices, -1).tolist()


def draw(logits: Tensor, params: SamplingParams, uniform: float) -> int:
    """One token of one row (vocab_size,) by inverse CDF: the same `uniform` gives the same token in any batch.

    Temperature first, then top_k, then top_p over what is left, as vLLM orders them.
    """
    ordered, ids = (logits.double() / params.temperature).sort(descending=True, stable=True)
    if params.top_k > 0:
        ordered, ids = ordered[: params.top_k], ids[: params.top_k]
    probs = ordered.softmax(-1)
    if params.top_p < 1:
        keep = probs.cumsum(-1) - probs < params.top_p
        keep[0] = True
        probs, ids = probs[keep], ids[keep]
    cdf = probs.cumsum(-1)
    index = int(torch.searchsorted(cdf, uniform * float(cdf[-1]), right=True))
    return int(ids[min(index, len(ids) - 1)])


def uniform(seed: int, stream: int, step: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (counter-based: Philox, Salmon et al. 2011)."""
    return float(Generator(Philox(key=[seed & (2**64 - 1), stream & (2**64 - 1)], counter=step)).random())


def token_logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """The token's log-probability in one row (vocab_size,), with the `count` best alternatives."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(count) if count else None
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best is not None else ()
    return TokenLogprobs(token_id, float(logprobs[token_id]), top)


def target_logprobs(
    logits: Tensor, rows: Sequence[int], targets: Sequence[int]
) -> tuple[list[float], list[bool], list[bool]]:
    """For target i in row `rows[i]`: its log-probability, whether it is the row's best, whether the row is finite."""
    best = logits.max(-1)
    lse = logits.logsumexp(-1)
    at = torch.tensor([rows, targets], device=logits.device)
    logprobs = logits[at[0], at[1]] - lse[at[0]]
    is_best = best.indices[at[0]] == at[1]
    return logprobs.tolist(), is_best.tolist(), torch.isfinite(lse[at[0]]).tolist()


def stream_of(prompt_token_ids: TokenIds) -> int:
    """A number for a prompt, so that prompts under one seed draw independently."""
    return int.from_bytes(blake2b(prompt_token_ids.astype("<i4").tobytes(), digest_size=8).digest(), "little")
