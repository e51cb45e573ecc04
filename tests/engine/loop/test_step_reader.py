"""The head sees rows in pieces, whose logits take what the memory budget counts, whatever is asked of how many rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.profiler import ProfilerActivity, profile

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.machine.device import resolve_device
from engine.machine.memory import HEAD_ROWS, memory_need
from engine.model.checkpoint import resolve_model
from engine.pooling_params import PoolingParams
from engine.request import Request
from engine.sampling_params import SamplingParams

CONFIG = EngineConfig(dtype="float32", kv_cache_memory=2**24, max_num_batched_tokens=1024)
PROMPT = np.arange(1000, dtype=np.int32) + 100


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG, detokenize=False)
    yield engine
    engine.close()


def peak_bytes(profiled: Any) -> int:
    """The most that was held at once of what was allocated while the profile ran."""
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max(initial=0))


PROMPT_TOKENS = Request("prompt", PROMPT, SamplingParams(prompt_logprobs=20), labels=(), prompt_logprobs_from=1)
LABELS = Request("labels", PROMPT[:9], labels=tuple(np.array([i, 7, 8], np.int32) for i in range(400)))
SUMS = [
    Request(str(i), np.append(PROMPT[:9], np.int32(i)), labels=(), pooling=PoolingParams("mean")) for i in range(900)
]
ENDS = [Request(str(i), np.append(PROMPT[:9], np.int32(i)), labels=(PROMPT[:1],)) for i in range(900)]

DRAWS = [
    Request(
        str(i),
        np.append(PROMPT[:9], np.int32(i)),
        SamplingParams(temperature=0.8, top_p=0.9, min_p=0.01, logit_bias=((5, 1.0),), logprobs=3, max_tokens=1),
    )
    for i in range(900)
]


@pytest.mark.parametrize(
    ("requests", "num_rows"),
    [([PROMPT_TOKENS], 999), ([LABELS], 801), (ENDS, 900), (DRAWS, 900)],
    ids=["tokens of a prompt", "labels of a prompt", "labels of many", "draws"],
)
def test_logits_take_what_is_planned(
    engine: Engine, tiny_model: Path, requests: list[Request], num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = engine._reader.launch
    peaks, rows = [], []

    def profiled(step: Any, forward: Any, masks: Any) -> Any:
        rows.append(len(np.unique(step.reads.row)))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            values = launch(step, forward, masks)
        peaks.append(peak_bytes(profiler))
        return values

    monkeypatch.setattr(engine._reader, "launch", profiled)
    outputs = run_plan(engine, plan_requests(engine, requests), requests)
    assert {output.error_type for output in outputs} == {None}
    assert sum(rows) == num_rows
    files, shape = resolve_model(str(tiny_model)), engine.runner.model.shape
    planned = memory_need(files, shape, engine.config, resolve_device(engine.config)).logits
    one_piece = HEAD_ROWS * shape.vocab_size * 4
    assert num_rows > 3 * HEAD_ROWS, "more than what is planned, if it were not in pieces"
    assert one_piece < max(peaks) <= planned


def test_sums_of_hidden_states_take_what_is_planned(
    engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum for each of 900 leaves, in one step."""
    launch, peaks = engine._reader.launch, []

    def profiled(step: Any, forward: Any, masks: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            values = launch(step, forward, masks)
        peaks.append(peak_bytes(profiler) + forward.hidden.nbytes)
        return values

    monkeypatch.setattr(engine._reader, "launch", profiled)
    outputs = run_plan(engine, plan_requests(engine, SUMS), SUMS)
    assert {output.error_type for output in outputs} == {None}
    shape = engine.runner.model.shape
    planned = memory_need(resolve_model(str(tiny_model)), shape, engine.config, resolve_device(engine.config))
    assert 900 * shape.hidden_size * 4 < max(peaks) <= planned.activations
