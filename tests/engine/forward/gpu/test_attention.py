"""The whole engine through the Triton kernels, in the interpreter, gives what it gives through torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import engine.forward.cpu.fused_layer
import engine.forward.gpu.attention
import engine.forward.gpu.decode_graphs
import engine.loop.build
import engine.machine.device
from engine.config import EngineConfig, Quantization
from engine.device_rates import DeviceRates
from engine.forward.attention import StepAttention, step_attention
from engine.forward.forward_output import Forward
from engine.forward.gpu.attention import TritonStepAttention
from engine.forward.quantize import linears_of
from engine.loop.build import build_engine
from engine.machine.device import Device
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.gpu.matmul.quantized_weights import dequantized, quantize_weight
from kernels.kv_format import FLOAT32
from tests.engine.families import SERVED, Family, save_tiny
from tests.engine.test_models import nearly_equal, prompts

# Whether the rotation came with it, of every call.
CALLS: list[bool] = []
# How often each captured graph ran.
REPLAYS: list[int] = []


class Counted(TritonStepAttention):
    def run(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        CALLS.append("rotary" in kwargs)
        return super().run(*args, **kwargs)


def answers(folder: Path, requests: list[Request], quantization: Quantization = "none") -> dict[str, RequestOutput]:
    """With chunks of 24 tokens and blocks of 8, so that contexts are cut, shared and in several runs."""
    files = resolve_model(str(folder))
    shape = load_shape(files)
    budget = 384 * shape.kv_bytes_per_token(FLOAT32)
    config = EngineConfig(
        dtype="float32", quantization=quantization, max_num_batched_tokens=24, block_size=8, kv_cache_memory=budget
    )
    engine = build_engine(files, config, detokenize=False)
    plan = make_plan(requests, config, CostModel(shape, FLOAT32, DeviceRates(1e9, 1e9)))
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    outputs = {output.request_id: output for future in futures for output in future.result(timeout=500)}
    engine.close()
    return outputs


def through_triton(
    folder: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch, quantization: Quantization = "none"
) -> dict[str, RequestOutput]:
    """As on a GPU: layers and attention are chosen as there, and Triton interprets them."""
    CALLS.clear()
    REPLAYS.clear()
    with monkeypatch.context() as patch:
        patch.setattr(engine.machine.device, "backend_of", lambda _: "triton")
        patch.setattr(engine.forward.gpu.attention, "TritonStepAttention", Counted)
        patch.setattr(engine.loop.build, "warm_up", lambda *_: None)
        patch.setattr(engine.forward.gpu.decode_graphs, "cuda_capture", lambda: recorded)
        # The CPU, which this is, refuses int4: it is the device that is played.
        patch.setattr(engine.loop.build, "resolve_device", lambda config: Device("cpu", config.dtype, "played"))
        outputs = answers(folder, requests, quantization)
    assert len(CALLS) > 4
    return outputs


def recorded(run: Callable[[], Forward]) -> tuple[Callable[[], None], Forward]:
    """What a CUDA graph does: the result's tensors stay where they are, and are overwritten when it runs again."""
    made = run()
    REPLAYS.append(0)
    place = len(REPLAYS) - 1

    def replay() -> None:
        REPLAYS[place] += 1
        again = run()
        made.hidden.copy_(again.hidden)
        made.best.copy_(again.best)

    made.hidden.fill_(torch.nan)  # what was captured has not run
    return replay, made


def assert_same(one: dict[str, RequestOutput], other: dict[str, RequestOutput]) -> None:
    assert one.keys() == other.keys()
    for key, output in one.items():
        assert nearly_equal(output, other[key]), key


@pytest.fixture(scope="module")
def requests_() -> list[Request]:
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
    return requests


def test_the_same_tokens_and_labels(
    tiny_model: Path, requests_: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Llama: its rotation and the write into the cache are one kernel."""
    assert_same(answers(tiny_model, requests_), through_triton(tiny_model, requests_, monkeypatch))
    assert all(CALLS[2:]), "but for the probe's, before layers are swapped"
    assert sum(REPLAYS) > len(REPLAYS) > 0


def test_four_bits_compute_what_their_weights_say(
    tiny_model: Path, requests_: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are what 4 bits make of them are kept exactly, so torch's float32 is what must come out."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    for linear in linears_of(model).values():
        linear.weight.data = dequantized(quantize_weight(linear.weight.data, 4))
    assert float((model.model.layers[0].mlp.down_proj.weight.detach() - before).abs().max()) > 0.01
    model.save_pretrained(tmp_path)
    assert_same(answers(tmp_path, requests_), through_triton(tmp_path, requests_, monkeypatch, "int4"))
    assert CALLS[:2] == [False, False], "first the model is held to its own code, as transformers wrote its layers"
    assert all(CALLS[2:])


def test_eight_bits_stay_near(tiny_model: Path, requests_: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the unquantised model; the products themselves are held to their twins in the kernels' tests."""
    ours, exact = through_triton(tiny_model, requests_, monkeypatch, "int8"), answers(tiny_model, requests_)
    for key, output in exact.items():
        assert output.token_ids == ours[key].token_ids
        if output.label_scores is not None:
            wanted, got = (np.array([score.logprob for score in one.label_scores]) for one in (output, ours[key]))
            assert 1e-5 < np.abs(got / wanted - 1).max() < 0.01


SPECIAL = [
    family for family in SERVED if family.name in ("Gemma 2", "GPT-OSS", "Mistral", "DeepSeek V2", "GPT-BigCode")
]


@pytest.mark.nightly
@pytest.mark.parametrize("family", SPECIAL, ids=lambda family: family.id)
def test_windows_caps_sinks_and_one_kv_head(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(family.model_type, family.config, tmp_path)
    requests = prompts(rows=6)
    assert_same(answers(tmp_path, requests), through_triton(tmp_path, requests, monkeypatch))
    assert all(CALLS) == (family.model_type == "mistral")


def test_a_gpu_takes_the_kernels_and_a_cpu_does_not() -> None:
    assert step_attention(Device("cuda:0", "bfloat16", "cuda:0").backend) is TritonStepAttention
    assert step_attention(Device("cpu", "float32", "cpu").backend) is StepAttention
