"""A model dealt to two ranks, on gloo: the answers of one device, and of transformers; and how the ranks end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from engine.config import EngineConfig
from engine.errors import EngineDeadError
from engine.forward.cpu.fused_body import FusedBody
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import ModelFiles, load_shape, resolve_model
from engine.pooling_params import PoolingParams
from engine.ranks.other_ranks import RankLostError
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32
from tests.engine.oracle import Oracle

ROOT = Path(__file__).parents[3]
# The longest request has 93 tokens: some wait for others' KV.
KV_TOKENS = 192
TOLERANCE = 1e-4


def requests() -> list[Request]:
    """Texts and labels on two stems, and one of each other kind."""
    draw = np.random.default_rng(0)

    def tokens(size: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return draw.integers(100, 40_000, size, dtype=np.int32)

    stems, made = [tokens(40), tokens(61)], []
    for row in range(10):
        prompt = np.concatenate((stems[row % 2], tokens(1 + 2 * row)))
        labels = tuple(tokens(size) for size in (1, 2, 3)) if row % 3 == 2 else None
        made.append(Request(f"{row}", prompt, SamplingParams(max_tokens=12, logprobs=2), labels))
    drawn = SamplingParams(temperature=1.0, seed=3, max_tokens=12, ignore_eos=True)
    made.append(Request("drawn", stems[0], drawn))
    made.append(Request("prompt", stems[0], SamplingParams(prompt_logprobs=2), (), prompt_logprobs_from=1))
    made.append(Request("vector", stems[1], labels=(), pooling=PoolingParams("mean")))
    return made


def config_of(files: ModelFiles, ranks: int) -> EngineConfig:
    memory = KV_TOKENS * load_shape(files, ranks).kv_bytes_per_token(FLOAT32)
    return EngineConfig(device="cpu", kv_cache_memory=memory, max_num_batched_tokens=48, tensor_parallel=ranks)


def answers(engine: Engine, asked: list[Request]) -> dict[str, RequestOutput]:
    outputs = run_plan(engine, plan_requests(engine, asked), asked)
    engine.scheduler.check_integrity()
    return {output.request_id: output for output in outputs}


def numbers(output: RequestOutput) -> list[float]:
    """All log-probabilities of an answer, or its vector."""
    found = [logprob for token in output.logprobs or () for _, logprob in token.top]
    found += [score.logprob for score in output.label_scores or ()]
    found += () if output.prompt_logprobs is None else output.prompt_logprobs.logprobs.tolist()
    return found if output.embedding is None else output.embedding.tolist()


def rank_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "engine.ranks" in " ".join(child.cmdline())]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine's thread is pinned to its core, never this one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    cores = os.sched_getaffinity(0)
    yield
    assert os.sched_getaffinity(0) == cores
    assert rank_processes() == []


@pytest.mark.usefixtures("two_cores")
def test_two_ranks_answer_as_one_does_until_one_is_killed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a torch that was built for GPUs, which transformers then takes, be there any or not.
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
    files, asked = resolve_model(str(tiny_model)), requests()
    engine = build_engine(files, config_of(files, 1), detokenize=False)
    alone, blocks, peak = answers(engine, asked), engine.runner.num_blocks, engine.counters().peak_kv_bytes
    engine.close()
    assert max(map(len, map(numbers, alone.values()))) == 64, "an answer of each kind has its numbers"
    engine = build_engine(files, config_of(files, 2), detokenize=False)
    try:
        assert isinstance(engine.runner.model.body, FusedBody), "a processor's own layers run their part"
        assert engine.runner.cache.keys[0].shape == (1, KV_TOKENS, 16), "one of two KV heads"
        dealt = answers(engine, asked)
        assert (engine.runner.num_blocks, 2 * engine.counters().peak_kv_bytes) == (blocks, peak)
        for name, output in dealt.items():
            assert output.token_ids == alone[name].token_ids, name
            assert numbers(output) == pytest.approx(numbers(alone[name]), abs=TOLERANCE), name
        oracle = Oracle(tiny_model)
        for request in asked[:3]:
            oracle.assert_same(request, dealt[request.request_id])
        (other,) = rank_processes()
        other.send_signal(signal.SIGKILL)
        with pytest.raises(EngineDeadError, match=r"rank 1 ended: its process was killed \(SIGKILL\)"):
            answers(engine, asked)
    finally:
        engine.close()


@pytest.mark.usefixtures("two_cores")
def test_a_rank_that_cannot_begin_is_no_engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.ranks.other_ranks.SERVER", "no_such_module")
    files = resolve_model(str(tiny_model))
    with pytest.raises(RankLostError, match=r"^rank 1 ended: its process ended with exit code 1$"):
        build_engine(files, config_of(files, 2), detokenize=False)


PARENT = """
import sys
from engine.process.child import Child

child = Child("engine.ranks.rank_server")
print(child.pid, flush=True)
sys.stdin.readline()
"""


def test_a_rank_ends_with_the_first_one() -> None:
    command, pipe = [sys.executable, "-c", PARENT], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        rank = psutil.Process(int(first.stdout.readline()))
        first.kill()
        rank.wait(10)


@pytest.mark.nightly
@pytest.mark.usefixtures("two_cores")
def test_another_engine_of_the_process_has_ranks_of_its_own(tiny_model: Path) -> None:
    files, asked = resolve_model(str(tiny_model)), requests()
    for dtype, tolerance in (("float32", TOLERANCE), ("bfloat16", 0.2)):
        both = []
        for ranks in (1, 2):
            config = replace(config_of(files, ranks), dtype=dtype)  # type: ignore[arg-type]
            engine = build_engine(files, config, detokenize=False)
            both.append(answers(engine, asked))
            engine.close()
        alone, dealt = both
        for name in ("prompt", "2", "5", "8", "vector"):  # no token that is chosen moves the next one's numbers
            assert numbers(dealt[name]) == pytest.approx(numbers(alone[name]), abs=tolerance), (dtype, name)
