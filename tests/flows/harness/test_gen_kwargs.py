"""What a task's `generation_kwargs` become."""

from typing import Any

import pytest

from engine.errors import UserError
from engine.sampling_params import SamplingParams
from flows.harness.gen_kwargs import read_gen_kwargs

END = "<end>"


@pytest.mark.parametrize(
    ("given", "params"),
    [
        ({}, SamplingParams(max_tokens=256, stop=(END,))),
        ({"until": ["\n", ""], "max_gen_toks": 5}, SamplingParams(max_tokens=5, stop=("\n", END))),
        ({"until": "Q:", "max_new_tokens": 5}, SamplingParams(max_tokens=5, stop=("Q:", END))),
        ({"until": [END]}, SamplingParams(max_tokens=256, stop=(END,))),
        ({"do_sample": False, "temperature": 0.7}, SamplingParams(max_tokens=256, stop=(END,))),
        ({"do_sample": True}, SamplingParams(temperature=1.0, max_tokens=256, stop=(END,))),
        ({"temperature": 0.5, "top_p": 0.9, "num_beams": 1}, SamplingParams(0.5, 0.9, max_tokens=256, stop=(END,))),
        ({"do_sample": True, "temperature": 0.5, "seed": 3}, SamplingParams(0.5, seed=3, max_tokens=256, stop=(END,))),
        ({"repetition_penalty": 1.2}, SamplingParams(repetition_penalty=1.2, max_tokens=256, stop=(END,))),
    ],
)
def test_names_of_the_harness(given: dict[str, Any], params: SamplingParams) -> None:
    before = dict(given)
    read = read_gen_kwargs(given, 256, END)
    assert (read.params, read.until) == (params, params.stop)
    assert given == before


def test_a_model_without_an_end() -> None:
    assert read_gen_kwargs({"until": ["\n"]}, 256, None).until == ("\n",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 4}, "generation_kwargs: num_beams 4 is not taken; leave it out"),
        ({"n": 2}, "generation_kwargs: n 2 is not taken; leave it out"),
        ({"max_length": 20}, "generation_kwargs: max_length 20 is not taken; leave it out"),
        ({"temperature": -1.0, "do_sample": True}, "generation_kwargs: temperature: should be greater than or equal"),
        ({"max_gen_toks": 0}, "generation_kwargs: max_tokens: should be greater than or equal to 1"),
        ({"top_p": 2}, "generation_kwargs: top_p: should be less than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_gen_kwargs(given, 256, END)
    assert str(refused.value).startswith(said)
