"""One pass over a text says of it what transformers' own generation would."""

from pathlib import Path

import numpy as np
import pytest

from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from tests.engine.oracle import Oracle


def test_it_takes_what_transformers_generates_and_nothing_else(tiny_model: Path) -> None:
    oracle = Oracle(tiny_model)
    request = Request("a", np.array([5, 6, 7, 900], dtype=np.int32), SamplingParams(max_tokens=8))
    made = oracle.generate(request)
    assert oracle.assert_same(request, RequestOutput("a", "length", 4, tuple(made))) == 0
    end = oracle.model.generation_config.eos_token_id
    for wrong in (made[:5], [*made, made[0]], [*made[:3], made[3] + 1, *made[4:]], [*made[:4], end, *made[5:]]):
        with pytest.raises(AssertionError):
            oracle.assert_same(request, RequestOutput("a", "length", 4, tuple(wrong)))
