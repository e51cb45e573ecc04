"""The harness's model of transformers, which ours is held to, and what the harness's wheel holds to ask."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from flows.harness.model import TrunklineLM

# Short, so that texts do not fit.
WINDOW = 128
TOLERANCE = 1e-3


def instances(kind: str, asked: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, arguments, 0, ("task", place, 1)) for place, arguments in enumerate(asked)]  # type: ignore[arg-type]


@cache
def prefixes() -> list[str]:
    """Five examples of each of MMLU's 57 subjects."""
    file = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    return list(json.loads(file.read_text()).values())


@pytest.fixture(scope="session")
def theirs(tiny_model: Path) -> HFLM:
    return HFLM(str(tiny_model), dtype="float32", device="cpu", batch_size=1, max_length=WINDOW)


@pytest.fixture(scope="session")
def ours(tiny_model: Path) -> TrunklineLM:
    return TrunklineLM(str(tiny_model), max_length=WINDOW, kv_cache_memory="64MiB")
