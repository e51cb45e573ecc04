"""The whole engine through the Triton kernels, in the interpreter, gives what it gives through torch."""

from pathlib import Path

import numpy as np
import pytest

import engine.model_runner
from engine.attention import StepAttention
from engine.build import build_engine
from engine.config import EngineConfig
from engine.device import Device
from engine.model import load_shape, resolve_model
from engine.model_runner import _step_attention
from engine.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from engine.triton_attention import TritonStepAttention
from tests.engine.families import SERVED, Family, save_tiny
from tests.engine.test_models import nearly_equal, prompts

CALLS: list[int] = []


class Counted(TritonStepAttention):
    def run(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        CALLS.append(len(self.step.input_ids))
        return super().run(*args, **kwargs)


def answers(folder: Path, requests: list[Request]) -> dict[str, RequestOutput]:
    """With chunks of 24 tokens and blocks of 8, so that contexts are cut, shared and in several runs."""
    files = resolve_model(str(folder))
    shape = load_shape(files)
    budget = 384 * shape.kv_bytes_per_token(4)
    config = EngineConfig(dtype="float32", max_num_batched_tokens=24, block_size=8, kv_cache_memory=budget)
    engine = build_engine(files, config, detokenize=False)
    plan = make_plan(requests, shape, config, dtype_bytes=4, flops_per_second=1e9)
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    outputs = {output.request_id: output for future in futures for output in future.result(timeout=500)}
    engine.close()
    return outputs


def assert_same(folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    through_torch = answers(folder, requests)
    CALLS.clear()
    monkeypatch.setattr(engine.model_runner, "StepAttention", Counted)
    through_triton = answers(folder, requests)
    assert len(CALLS) > 4
    assert through_torch.keys() == through_triton.keys()
    for key, output in through_torch.items():
        assert nearly_equal(output, through_triton[key]), key


def test_the_same_tokens_and_labels(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    stem = draw.integers(3, 400, 21).tolist()
    requests = []
    for row in range(4):
        prompt = np.array(stem[: 21 if row < 3 else 9] + draw.integers(3, 400, 3 + row).tolist(), dtype=np.int32)
        labels = None
        if row % 2:
            # The first label's token is behind the third's as well, with the second's between them.
            labels = tuple(np.array(label, dtype=np.int32) for label in ([5, 6, 7], [8, 9], [5, 10, 11]))
        requests.append(Request(str(row), prompt, SamplingParams(max_tokens=4), labels))
    assert_same(tiny_model, requests, monkeypatch)


SPECIAL = [
    family for family in SERVED if family.name in ("Gemma 2", "GPT-OSS", "Mistral", "DeepSeek V2", "GPT-BigCode")
]


@pytest.mark.nightly
@pytest.mark.parametrize("family", SPECIAL, ids=lambda family: family.id)
def test_windows_caps_sinks_and_one_kv_head(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(family.model_type, family.config, tmp_path)
    assert_same(tmp_path, prompts(rows=6), monkeypatch)


def test_a_gpu_takes_the_kernels_and_a_cpu_does_not() -> None:
    assert _step_attention(Device("cuda:0", "bfloat16", 1.0, "cuda:0")) is TritonStepAttention
    assert _step_attention(Device("cpu", "float32", 1.0, "cpu")) is StepAttention
