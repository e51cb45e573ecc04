"""Memory that fails at the n-th allocation of a run, for n = 1, 2, ...: the same answers, or that row's own error."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import EngineConfig
from engine.grammar.grammars import Grammars
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.loop.step_launcher import LaunchedStep, StepLauncher
from engine.model.adapter_files import read_adapter
from engine.model.checkpoint import resolve_model
from engine.pooling_params import PoolingParams
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams, StructuredOutputs
from engine.scheduling.scheduler_output import SchedulerOutput
from tests.engine.tiny_adapters import save_adapter

pytestmark = pytest.mark.fault(19)

STEM = list(range(100, 130))


class FailingMemory(TorchDispatchMode):
    """Raises for `count` of the tensors that are made within it, from the `first` on."""

    def __init__(self, first: int, count: int) -> None:
        super().__init__()
        self.failing = range(first, first + count)
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(made.alias_info is None for made in func._schema.returns):
            self.allocate()
        return func(*args, **(kwargs or {}))

    def allocate(self) -> None:
        self.made += 1
        if self.made - 1 in self.failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")


def requests_of_all_kinds(adapter: str) -> list[Request]:
    def prompt(*tail: int) -> Any:
        return np.array([*STEM, *tail], dtype=np.int32)

    labels = (np.array([5, 6], np.int32), np.array([5, 7, 8], np.int32))
    structured = StructuredOutputs(choice=("red", "green"))
    return [
        Request("greedy", prompt(1, 2), SamplingParams(max_tokens=4)),
        Request("logprobs", prompt(1, 3), SamplingParams(max_tokens=3, logprobs=2)),
        Request("drawn", prompt(1, 4), SamplingParams(max_tokens=4, temperature=1.0, seed=7, top_k=20)),
        Request("structured", prompt(2), SamplingParams(max_tokens=4, structured_outputs=structured)),
        Request("labels", prompt(2, 5, 6), labels=labels),
        Request("prompt", prompt(3, 7), labels=(), prompt_logprobs_from=4),
        Request("embedding", prompt(3, 8), labels=(), pooling=PoolingParams("mean")),
        Request("adapter", prompt(1, 2), SamplingParams(max_tokens=3), adapter=adapter),
    ]


class Case:
    """An engine, and what it answers with all the memory that it asks for."""

    def __init__(self, engine: Engine, requests: Sequence[Request], patch: pytest.MonkeyPatch) -> None:
        self.engine, self.requests, self._patch = engine, requests, patch
        self.memory: FailingMemory | None = None
        launch, begin = StepLauncher.launch, Grammars.begin_masks

        def limited(launcher: StepLauncher, step: SchedulerOutput) -> LaunchedStep:
            with self.memory or nullcontext():
                return launch(copy(launcher), step)  # the next step is tried whole again

        def masks(grammars: Grammars, matchers: Any) -> Any:
            if matchers and self.memory is not None:
                self.memory.allocate()
            return begin(grammars, matchers)

        patch.setattr(StepLauncher, "launch", limited)
        patch.setattr(Grammars, "begin_masks", masks)
        self.run(None)  # what is made once is there
        self.undisturbed = self.run(None)

    def run(self, memory: FailingMemory | None) -> dict[str, RequestOutput]:
        """Every request once; no block is held behind it."""
        self.memory = memory
        outputs = run_plan(self.engine, plan_requests(self.engine, self.requests), self.requests)
        self.memory = None
        self.engine.scheduler.check_integrity()
        made = {output.request_id: output for output in outputs}
        assert len(made) == len(outputs) == len(self.requests)
        return made


@pytest.fixture(scope="module")
def case(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    adapter = save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), seed=1)
    engine = build_engine(resolve_model(str(tiny_model)), EngineConfig(dtype="float32", kv_cache_memory=2**24))
    with pytest.MonkeyPatch.context() as patch:
        yield Case(engine, requests_of_all_kinds(read_adapter(adapter).name), patch)
    engine.close()


def assert_same(made: RequestOutput, wanted: RequestOutput) -> None:
    """Tokens exactly; sums to what another order of adding leaves."""
    assert (made.error_type, made.finish_reason) == (wanted.error_type, wanted.finish_reason)
    assert (made.token_ids, made.text) == (wanted.token_ids, wanted.text)
    for one, other in zip(made.label_scores or (), wanted.label_scores or (), strict=True):
        assert one.is_greedy == other.is_greedy
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    for one, other in zip(made.logprobs or (), wanted.logprobs or (), strict=True):
        assert (one.token_id, [token for token, _ in one.top]) == (other.token_id, [token for token, _ in other.top])
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    if wanted.prompt_logprobs is not None:
        assert made.prompt_logprobs is not None
        np.testing.assert_allclose(made.prompt_logprobs.logprobs, wanted.prompt_logprobs.logprobs, atol=1e-4)
    if wanted.embedding is not None:
        assert made.embedding is not None
        np.testing.assert_allclose(made.embedding, wanted.embedding, atol=1e-5)


def sweep(case: Case, count: int, stride: int, check: Callable[[dict[str, RequestOutput]], None]) -> int:
    """Runs with `count` failures in a row, from the first on, until none is reached; returns how many runs there were.

    `stride`: every so many.
    """
    first = runs = 0
    while True:
        memory = FailingMemory(first, count)
        made = case.run(memory)
        check(made)
        runs += 1
        if memory.made <= first:
            return runs
        first += stride


def same_answers(case: Case) -> Callable[[dict[str, RequestOutput]], None]:
    def check(made: dict[str, RequestOutput]) -> None:
        for name, wanted in case.undisturbed.items():
            assert_same(made[name], wanted)

    return check


def same_answers_or_no_memory(case: Case) -> Callable[[dict[str, RequestOutput]], None]:
    def check(made: dict[str, RequestOutput]) -> None:
        for name, wanted in case.undisturbed.items():
            if made[name].error_type != "OUT_OF_MEMORY":
                assert_same(made[name], wanted)

    return check


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.nightly)])
def test_one_failure_changes_no_answer(case: Case, stride: int) -> None:
    assert sweep(case, 1, stride, same_answers(case)) > 5


@pytest.mark.parametrize("count", [9, 60])
@pytest.mark.parametrize("stride", [53, pytest.param(3, marks=pytest.mark.nightly)])
def test_failures_in_a_row_cost_rows_and_change_none(case: Case, count: int, stride: int) -> None:
    assert sweep(case, count, stride, same_answers_or_no_memory(case)) > 5


def test_memory_that_never_comes_back_costs_what_is_not_done(case: Case) -> None:
    made = case.run(FailingMemory(0, 10**9))
    assert {output.error_type for output in made.values()} == {"OUT_OF_MEMORY"}
    some = case.run(FailingMemory(300, 10**9))
    same_answers_or_no_memory(case)(some)
    same_answers(case)(case.run(None))
