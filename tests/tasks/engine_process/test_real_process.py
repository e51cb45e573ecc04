"""A real model in a process of its own: the answers of one in this process, whatever ends it meanwhile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.config import EngineConfig
from engine.errors import EngineDeadError, UserError
from engine.loop.trace import read_trace
from engine.model.checkpoint import ModelFiles, resolve_model
from engine.plan import PrefixNode, ShardWork
from engine.pooling_params import PoolingParams
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from tasks.engine_process.engine_process import EngineProcess
from tasks.in_process import InProcess
from tests.tasks.engine_process.test_messages import assert_same

CONFIG = EngineConfig(kv_cache_memory=2**24, device="cpu", max_num_batched_tokens=64)


def requests() -> tuple[Request, ...]:
    """One of each kind, behind the same prompt but for its last token."""
    prompts = [np.array([*range(5, 25), 100 + i], dtype=np.int32) for i in range(6)]
    labels = (np.array([7], dtype=np.int32), np.array([8, 9], dtype=np.int32))
    texts = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
    drawn = SamplingParams(temperature=1.0, seed=3, max_tokens=12, stop=("e",), logit_bias=((5, 1.5),))
    return (
        Request("text", prompts[0], texts),
        Request("drawn", prompts[1], drawn),
        Request("labels", prompts[2], labels=labels),
        Request("prompt", prompts[3], SamplingParams(prompt_logprobs=2), labels=(), prompt_logprobs_from=1),
        Request("vector", prompts[4], labels=(), pooling=PoolingParams("mean")),
        Request("too-long", np.zeros(2000, dtype=np.int32), texts),
    )


def work() -> ShardWork:
    asked = requests()
    nodes = [PrefixNode(0, -1, 0, 20, 5)]
    nodes += [PrefixNode(i + 1, 0, 20, 21, 1) for i in range(5)]
    nodes.append(PrefixNode(6, -1, 0, 2000, 1))
    return ShardWork("layout", 0, "shard", tuple(nodes), asked, (1, 2, 3, 4, 5, 6))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ModelFiles:
    return resolve_model(str(tiny_model))


@pytest.fixture(scope="module")
def expected(model: ModelFiles) -> list[RequestOutput]:
    with InProcess(model, CONFIG) as workers:
        return workers.submit(work()).result(60)


def assert_expected(outputs: list[RequestOutput], expected: list[RequestOutput]) -> None:
    assert len(outputs) == len(expected)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.fault(2)
def test_answers_are_the_same_before_and_after_what_ends_it(
    model: ModelFiles, expected: list[RequestOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, others = tmp_path / "trace.jsonl", psutil.Process().children()
    monkeypatch.setenv("FAILPOINT", "engine.step:14:crash")
    with EngineProcess(model, CONFIG, trace=trace) as workers:
        assert_expected(workers.submit(work()).result(60), expected)
        before = workers.totals()
        with pytest.raises(EngineDeadError, match="SIGSEGV") as dead:
            workers.submit(work()).result(60)
        assert "engine/loop/engine.py" in "".join(dead.value.__notes__), "where it was"
        assert len(read_trace(trace)) == 13
        monkeypatch.delenv("FAILPOINT")
        assert_expected(workers.submit(work()).result(60), expected)
        assert len(read_trace(trace)) > 13, "the trace goes on"
        assert workers.totals().requests >= before.requests + len(expected) - 1
    assert psutil.Process().children() == others


def test_what_cannot_be_loaded_is_said_as_in_process(model: ModelFiles) -> None:
    config = replace(CONFIG, kv_cache_memory=2**50)
    said = []
    for kind in (InProcess, EngineProcess):
        with pytest.raises(UserError) as refused, kind(model, config) as workers:
            workers.submit(work())
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert said[0].startswith("engine.kv_cache_memory: ")
