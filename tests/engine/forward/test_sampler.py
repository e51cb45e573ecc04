import math

import numpy as np
import pytest
import torch

from engine.forward import sampler
from engine.forward.philox import words
from engine.sampling_params import SamplingParams

DRAWS = 100_000
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])


def probabilities(params: SamplingParams) -> list[float]:
    """The distribution that `draw` samples from, of many draws."""
    tally = torch.bincount(drawn(LOGITS, params, DRAWS), minlength=len(LOGITS))
    return (tally / DRAWS).tolist()


def drawn(logits: torch.Tensor, params: SamplingParams, count: int) -> torch.Tensor:
    """(count,) tokens of one row's logits, or of (count, vocab_size), each with a key of its own."""
    zeros = np.zeros(count, dtype=np.uint64)
    keys = words(zeros, zeros, np.arange(count, dtype=np.uint64))
    return sampler.draw(logits.expand(count, -1), [params] * count, keys).tokens


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (SamplingParams(temperature=1), softmax(LOGITS.tolist())),
        (SamplingParams(temperature=0.5), softmax([4, 2, 0, -2, -60])),
        (SamplingParams(temperature=1, top_k=2), [*softmax([2, 1]), 0, 0, 0]),
        # 0.644 + 0.237 pass 0.7, so two tokens stay.
        (SamplingParams(temperature=1, top_p=0.7), [*softmax([2, 1]), 0, 0, 0]),
        (SamplingParams(temperature=1, top_p=0.01), [1, 0, 0, 0, 0]),
        (SamplingParams(temperature=2, top_k=3, top_p=0.99), [*softmax([1, 0.5, 0]), 0, 0]),
        # Shares of the likeliest: 0.37, 0.14, 0.05, 0.
        (SamplingParams(temperature=1, min_p=0.1), [*softmax([2, 1, 0]), 0, 0]),
        (SamplingParams(temperature=0.5, min_p=0.1), [*softmax([4, 2]), 0, 0, 0]),
        # Of the three that min_p leaves, the first has 0.67.
        (SamplingParams(temperature=1, min_p=0.1, top_p=0.66), [1, 0, 0, 0, 0]),
    ],
    ids=["plain", "cold", "top_k", "top_p", "tiny top_p", "all", "min_p", "min_p, cold", "min_p, then top_p"],
)
def test_draw_follows_the_distribution(params: SamplingParams, wanted: list[float]) -> None:
    assert probabilities(params) == pytest.approx(wanted, abs=4 * math.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7, "top_k": 9},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.05, "top_k": 12},
    ],
    ids=str,
)
def test_draws_are_of_transformers_distribution(params: dict[str, float]) -> None:
    """Its warpers, of 60 drawn logits: which tokens there are to draw, and how often each comes."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(3))
    warpers = {
        "temperature": TemperatureLogitsWarper,
        "min_p": MinPLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
    }
    scores = logits[None].clone()
    for name, warper in warpers.items():
        if name in params:
            scores = warper(params[name])(torch.empty(1, 0, dtype=torch.int64), scores)
    wanted = scores.softmax(-1)[0]
    tally = torch.bincount(drawn(logits, SamplingParams(**params), DRAWS), minlength=60)  # type: ignore[arg-type]
    assert ((tally > 0) == (wanted > 0)).all()
    assert (tally / DRAWS).tolist() == pytest.approx(wanted.tolist(), abs=4 * math.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize("params", [{}, {"top_k": 200}, {"top_p": 0.9}, {"min_p": 0.05}], ids=str)
def test_the_last_bits_of_logits_move_few_draws(params: dict[str, float]) -> None:
    """What another batch changes in them: of 500 draws over 2,000 tokens of much the same probability, one at most.

    By the inverse of the distribution's sum it would be dozens, for all that is before a token moves its place.
    """
    logits = torch.randn(500, 2000, generator=torch.Generator().manual_seed(0))
    moved = logits + 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    how = SamplingParams(temperature=1, **params)  # type: ignore[arg-type]
    before, after = drawn(logits, how, len(logits)), drawn(moved, how, len(logits))
    assert int((before != after).sum()) <= 1
    assert len(set(before.tolist())) > 200


def test_a_temperature_that_is_hardly_one_is_greedy() -> None:
    assert set(drawn(LOGITS, SamplingParams(temperature=1e-308), 50).tolist()) == {0}


def test_prompts_have_streams_of_their_own() -> None:
    first, second = np.array([1, 2], dtype=np.int32), np.array([2, 1], dtype=np.int32)
    assert sampler.stream_of(first) == sampler.stream_of(first.copy())
    assert sampler.stream_of(first) != sampler.stream_of(second)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_become_no_token(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[1, 2] = bad
    assert sampler.greedy(logits).tokens.tolist() == [0, -1]
    _, _, finite, _ = sampler.target_logprobs(logits, torch.tensor([0, 1]), torch.tensor([1, 1])).tolist()
    assert finite == [True, False]


def test_target_logprobs() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    rows, targets = torch.tensor([0, 1, 1]), torch.tensor([0, 4, 3])
    logprobs, is_best, finite, leads = sampler.target_logprobs(logits, rows, targets, with_leads=True).tolist()
    assert torch.equal(logits, torch.stack([LOGITS, LOGITS.flip(0)]))
    assert leads == [1, 1, -1]
    p = softmax(LOGITS.tolist())
    assert logprobs == pytest.approx([math.log(p[0]), math.log(p[0]), math.log(p[1])], abs=1e-5)
    assert is_best == [True, True, False]
    assert finite == [True] * 3


def test_margins_are_to_the_next_best() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.5], [2.0, 2.0, 1.0], [7.0, -torch.inf, 0.0], [3.0, -torch.inf, -torch.inf]])
    made = sampler.greedy(logits)
    assert made.tokens.tolist() == [1, 0, 0, 0]
    assert made.margins.tolist() == [0.5, 0, 7, torch.inf], "no other may be chosen in the last"


def test_a_draw_s_margin_is_how_far_logits_would_have_to_move() -> None:
    """Of 200 draws each is another as soon as its next best token has a little more than the margin, and not before."""
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(5))
    zeros = np.zeros(200, dtype=np.uint64)
    keys = words(zeros, zeros, np.arange(200, dtype=np.uint64))
    params = [SamplingParams(temperature=0.7)] * 200
    made = sampler.draw(logits, params, keys)
    moved = {}
    for share in (0.999, 1.001):
        every = [
            sampler.draw(logits + share * made.margins[:, None] * torch.eye(30)[token], params, keys).tokens
            for token in range(30)
        ]
        moved[share] = torch.stack([tokens != made.tokens for tokens in every]).any(0)
    assert not moved[0.999].any()
    assert moved[1.001].all()


def test_token_logprobs_gives_the_best_alternatives_first() -> None:
    got = sampler.token_logprobs(LOGITS[None], torch.tensor([2]), 2).of(0, 2, 2)
    p = softmax(LOGITS.tolist())
    assert got.logprob == pytest.approx(math.log(p[2]), abs=1e-5)
    assert [token for token, _ in got.top] == [0, 1]
    assert sampler.token_logprobs(LOGITS[None], torch.tensor([2]), 2).of(0, 2, 0).top == ()
