"""Sampling keys: every name of vLLM's, its bounds, and lm-eval's other names."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.job.job_file import faults_of
from tasks.job.sampling import Sampling

EVERY_NAME: dict[str, Any] = {
    "n": 2,
    "best_of": 3,
    "temperature": 1.5,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.1,
    "seed": 3,
    "stop": ["x", "y"],
    "stop_token_ids": [1, 2],
    "ignore_eos": True,
    "max_tokens": 9,
    "min_tokens": 4,
    "logprobs": 5,
    "presence_penalty": -2,
    "frequency_penalty": 2,
    "repetition_penalty": 1.2,
    "logit_bias": {5: -100, 6: 1.5},
    "allowed_token_ids": [5, 6],
    "bad_words": ["bad", "worse"],
    "include_stop_str_in_output": True,
}


def faults(**keys: object) -> list[str]:
    try:
        Sampling.model_validate(keys)
    except ValidationError as invalid:
        return faults_of(invalid, ("sampling",))
    return []


def test_every_name_is_taken_and_passed_on() -> None:
    params = Sampling.model_validate(EVERY_NAME).params()
    for name, value in EVERY_NAME.items():
        if name in ("n", "best_of"):  # of the row: the engine writes one text at a time
            continue
        wanted = tuple(value.items()) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        assert getattr(params, name) == wanted, name


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("n", (1,), (0, -1, 16_385, 1.5, "many")),
        ("temperature", (0, 1e-9, 1000), (-1e-9, float("nan"), float("inf"), "hot")),
        ("top_p", (1e-9, 1), (0, 1.0001, -1)),
        ("top_k", (-1, 0, 1, 10**6), (-2, 0.5)),
        ("min_p", (0, 1), (-0.1, 1.1)),
        ("seed", (-1, 0, 2**63 - 1), (-2, 2**63)),
        ("stop", ("a", ["a"], []), ("", ["a", ""], 1)),
        ("stop_token_ids", ([], [1]), (["a"], 1)),
        ("max_tokens", (1,), (0, -1, 1.5)),
        ("min_tokens", (0, 16), (-1, 17)),
        ("logprobs", (0, 20), (-1, 21)),
        ("presence_penalty", (-2, 2), (-2.1, 2.1)),
        ("frequency_penalty", (-2, 2), (-2.1, 2.1)),
        ("repetition_penalty", (0.01, 25), (0, -1, float("inf"))),
        ("logit_bias", ({}, {"5": 100}), ({5: 101}, {"word": 1})),
        ("allowed_token_ids", ([1],), ([], ["a"])),
        ("bad_words", ("a", ["a"]), ("", [""])),
    ],
)
def test_bounds_are_vllms(name: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        assert faults(**{name: value}) == [], value
    for value in bad:
        found = faults(**{name: value})
        assert found, value
        assert name in found[0]
        assert "\n" not in found[0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"n": 2}, "n 2 asks for copies of one greedy text; give a temperature, or leave it out"),
        ({"best_of": 2}, "best_of 2 asks for copies of one greedy text; give a temperature, or leave it out"),
        ({"n": 2, "do_sample": False}, "n 2 asks for copies of one greedy text; give a temperature, or leave it out"),
        ({"n": 3, "best_of": 2, "temperature": 1}, "best_of 2 is less than n 3"),
        ({"min_tokens": 6, "max_gen_toks": 5}, "min_tokens 6 is more than max_tokens 5"),
    ],
)
def test_what_is_wrong_between_keys(keys: dict[str, Any], said: str) -> None:
    assert faults(**keys) == [f"sampling: {said}"]


def test_copies_are_as_many_as_are_drawn() -> None:
    assert Sampling(n=2, temperature=1).copies == 2
    assert Sampling(n=2, best_of=5, temperature=1).copies == 5
    assert Sampling().copies == 1
    assert faults(n=2, do_sample=True) == []
    assert faults(n=2, column="how") == []  # a row may give the temperature


def test_a_seed_of_minus_one_is_none() -> None:
    assert Sampling(seed=-1) == Sampling(seed=None)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"max_gen_toks": 5}, {"max_tokens": 5}),
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
        ({"until": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"until": "a"}, {"stop": "a"}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
        ({"do_sample": True}, {"temperature": 1}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
    ],
)
def test_names_of_lm_eval(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert Sampling.model_validate(theirs) == Sampling.model_validate(ours)
