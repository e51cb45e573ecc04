"""A device that runs out of memory in a step: what fits is done, in parts, and nothing else is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.forward.forward_output import Forward
from engine.loop import step_launcher
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.machine.out_of_memory import is_out_of_memory
from engine.model.checkpoint import resolve_model
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling.scheduler_output import SchedulerOutput

pytestmark = pytest.mark.fault(19)

CONFIG = EngineConfig(dtype="float32", kv_cache_memory=2**22, max_num_batched_tokens=256, block_size=8)
STEM = np.arange(40, dtype=np.int32) + 100
# Texts that go on, and labels under leaves that no later step reads.
REQUESTS = [
    *(
        Request(
            f"text {i}", np.append(STEM, np.arange(i + 1, dtype=np.int32)), SamplingParams(max_tokens=6, logprobs=i % 2)
        )
        for i in range(6)
    ),
    *(
        Request(
            f"choice {i}",
            np.append(STEM, np.arange(5 + 6 * i, dtype=np.int32) + 200 + 40 * i),
            labels=(np.array([5, 6], np.int32), np.array([5, 7, 8], np.int32)),
        )
        for i in range(5)
    ),
]


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG, detokenize=False)
    yield engine
    engine.close()


def run(engine: Engine) -> dict[str, RequestOutput]:
    outputs = {output.request_id: output for output in run_plan(engine, plan_requests(engine, REQUESTS), REQUESTS)}
    engine.scheduler.check_integrity()
    return outputs


def no_room_above(rows: int, engine: Engine, sizes: list[int]) -> Callable[[SchedulerOutput], Forward]:
    forward = engine.runner.forward

    def limited(step: SchedulerOutput) -> Forward:
        if step.num_scheduled_tokens > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        sizes.append(step.num_scheduled_tokens)
        return forward(step)

    return limited


def assert_same(one: RequestOutput, other: RequestOutput) -> None:
    assert one.token_ids == other.token_ids
    assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-4)
    for score, wanted in zip(one.label_scores or (), other.label_scores or (), strict=True):
        assert score.logprob == pytest.approx(wanted.logprob, abs=1e-4)


def test_a_step_that_does_not_fit_runs_in_parts(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """With the same answers, and no later step is tried as large again."""
    wanted, sizes = run(engine), []
    assert engine.runner.forward.__name__ == "forward"
    engine.runner.forward = no_room_above(48, engine, sizes)  # type: ignore[method-assign]
    made = run(engine)
    assert made.keys() == wanted.keys()
    for name, output in made.items():
        assert_same(output, wanted[name])
    assert max(sizes) <= 48
    warned = [record.getMessage() for record in caplog.records]
    assert 1 <= len(warned) <= 4
    assert all(said.startswith("out of memory in a step of ") for said in warned)
    caplog.clear()
    run(engine)
    assert caplog.records == [], "what did not fit once is not tried again"


def test_larger_steps_are_tried_again_once_smaller_ones_went_well(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that another program held for a while costs no more than that while."""
    monkeypatch.setattr(step_launcher, "PATIENCE", 2)
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG, detokenize=False)
    forward = engine.runner.forward

    def sizes_of(room: int) -> list[int]:
        sizes: list[int] = []
        engine.runner.forward = forward  # type: ignore[method-assign]
        engine.runner.forward = no_room_above(room, engine, sizes)  # type: ignore[method-assign]
        run(engine)
        return sizes

    whole = sizes_of(1000)
    assert len(sizes_of(24)) > len(whole)
    assert sizes_of(1000) != whole
    assert any(sizes_of(1000) == whole for _ in range(20))
    engine.close()


def test_a_row_that_does_not_fit_alone_ends_as_an_error(engine: Engine) -> None:
    """A leaf's own rows are in one step: those of the longest do not fit, and all other rows are answered."""
    wanted = run(engine)
    longest = len(REQUESTS[-1].prompt_token_ids) - len(STEM)
    engine.runner.forward = no_room_above(longest, engine, [])  # type: ignore[method-assign]
    made = run(engine)
    failed = made.pop("choice 4")
    assert (failed.finish_reason, failed.error_type) == ("error", "OUT_OF_MEMORY")
    assert failed.error_message == "the device has no memory for this row's step alone"
    for name, output in made.items():
        assert_same(output, wanted[name])


def test_without_memory_for_any_row_all_are_errors_and_the_engine_goes_on(engine: Engine) -> None:
    """Even where the row is a stem's, whose KV all below it read."""
    wanted, forward = run(engine), engine.runner.forward
    engine.runner.forward = no_room_above(0, engine, [])  # type: ignore[method-assign]
    assert {output.error_type for output in run(engine).values()} == {"OUT_OF_MEMORY"}
    engine.runner.forward = forward  # type: ignore[method-assign]
    for name, output in run(engine).items():
        assert_same(output, wanted[name])


@pytest.mark.parametrize(
    ("problem", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_what_is_out_of_memory(problem: Any, is_one: bool) -> None:
    assert is_out_of_memory(problem) == is_one
