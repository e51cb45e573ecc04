"""Rules against transformers' own processors, row by row, and against the words of their definition."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

from engine.forward.logit_rules import RowRules, apply_rules, are_barred, unpacked
from engine.sampling_params import SamplingParams, StructuredOutputs

VOCABULARY = 12
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)
NOT_IN_FLIGHT = torch.full((8,), -1)


def rules_of(prompt: Any = (), generated: Any = (), barred: Any = (), bad_words: Any = (), **params: Any) -> RowRules:
    tokens = (np.array(ids, dtype=np.int64) for ids in (sorted(set(prompt)), generated))
    return RowRules(SamplingParams(**params), *tokens, tuple(barred), tuple(map(tuple, bad_words)))


def by_definition(logits: torch.Tensor, rule: RowRules, text: list[int]) -> torch.Tensor:
    """One row (vocab_size,), token by token."""
    params, made = rule.params, logits.clone()
    for token in range(VOCABULARY):
        allowed = params.allowed_token_ids
        ends_in_bad = any(
            word[-1] == token and text[len(text) - len(word) + 1 :] == list(word[:-1]) for word in rule.bad_words
        )
        if (allowed is not None and token not in allowed) or token in rule.barred or ends_in_bad:
            made[token] = -torch.inf
        made[token] += sum(bias for biased, bias in params.logit_bias if biased == token)
        if token in text or token in rule.prompt.tolist():
            made[token] *= 1 / params.repetition_penalty if made[token] > 0 else params.repetition_penalty
        made[token] -= params.frequency_penalty * text.count(token) + params.presence_penalty * (token in text)
    return made


PARAMS = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.25]),
        "frequency_penalty": st.sampled_from([0.0, 0.5, -1.0]),
        "presence_penalty": st.sampled_from([0.0, 0.25, -2.0]),
        "logit_bias": st.lists(st.tuples(st.integers(0, VOCABULARY - 1), st.floats(-3, 3)), max_size=3).map(tuple),
        "allowed_token_ids": st.none() | st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8).map(tuple),
    }
)
BAD_WORDS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3), max_size=3)
ROWS = st.lists(st.tuples(TOKENS, TOKENS, TOKENS, BAD_WORDS, PARAMS, st.booleans()), min_size=1, max_size=5)


@settings(deadline=None)
@given(ROWS, st.integers(0, 2**31))
def test_every_row_is_as_its_rules_say(rows: list[Any], seed: int) -> None:
    """Where the last token is in flight, as where the host has it; rows without rules keep their logits."""
    logits = torch.randn(len(rows) + 1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    rules, in_flight, wanted = [], [-1], [logits[0].clone()]
    for row, (prompt, text, barred, bad_words, params, flies) in enumerate(rows, start=1):
        flies = flies and bool(text)
        rules.append((row, rules_of(prompt, text[:-1] if flies else text, barred, bad_words, **params)))
        in_flight.append(text[-1] if flies else -1)
        wanted.append(by_definition(logits[row], rules[-1][1], text))
    apply_rules(logits, rules, torch.tensor(in_flight))
    torch.testing.assert_close(logits, torch.stack(wanted))


@settings(deadline=None, max_examples=30)
@given(TOKENS, TOKENS, st.sampled_from([0.5, 1.3]))
def test_repetition_is_transformers(prompt: list[int], text: list[int], penalty: float) -> None:
    logits = torch.randn(1, VOCABULARY)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = processor(torch.tensor([prompt + text], dtype=torch.int64), logits.clone())
    apply_rules(logits, [(0, rules_of(prompt, text, repetition_penalty=penalty))], NOT_IN_FLIGHT)
    torch.testing.assert_close(logits, wanted)


@settings(deadline=None, max_examples=30)
@given(TOKENS.filter(len), BAD_WORDS.filter(len))
def test_bad_words_are_transformers(text: list[int], words: list[list[int]]) -> None:
    logits = torch.randn(1, VOCABULARY)
    wanted = NoBadWordsLogitsProcessor(words, eos_token_id=None)(torch.tensor([text]), logits.clone())
    apply_rules(logits, [(0, rules_of((), text, bad_words=words))], NOT_IN_FLIGHT)
    torch.testing.assert_close(logits, wanted)


@pytest.mark.parametrize(
    ("params", "needed"),
    [
        ({"temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "min_tokens": 3}, False),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"logit_bias": ((1, 2.0),)}, True),
        ({"allowed_token_ids": (1,)}, True),
        ({"bad_words": ("no",)}, True),
    ],
)
def test_what_needs_rules(params: dict[str, Any], needed: bool) -> None:
    assert SamplingParams(**params).changes_logits == needed


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 63, 96])
def test_a_grammars_mask_bars_what_has_no_bit(vocab_size: int) -> None:
    """Of some rows alone; both ways to unpack it, the host's and a device's, are the definition."""
    draw = np.random.default_rng(vocab_size)
    masks = draw.integers(-(2**31), 2**31, (3, 3), dtype=np.int64).astype(np.int32)
    expected = np.array([[mask[i // 32] >> i % 32 & 1 for i in range(vocab_size)] for mask in masks], dtype=np.bool_)
    assert unpacked(torch.from_numpy(masks.view(np.uint8)), vocab_size).tolist() == expected.tolist()
    assert are_barred(masks, vocab_size, torch.device("cpu")).tolist() == (~expected).tolist()
    for rows in ([0, 1, 2], [3, 1, 4]):
        logits = torch.randn(max(rows) + 1, vocab_size)
        before = logits.clone()
        params = SamplingParams(structured_outputs=StructuredOutputs(regex="x"))
        apply_rules(
            logits,
            [(row, RowRules(params, mask=mask)) for row, mask in zip(rows, masks, strict=True)],
            torch.full((len(logits),), -1),
        )
        for row in range(len(logits)):
            if row in rows:
                wanted = before[row].masked_fill(torch.from_numpy(~expected[rows.index(row)]), -torch.inf)
                assert torch.equal(logits[row], wanted)
            else:
                assert torch.equal(logits[row], before[row])
