"""The whole engine through the Triton kernels, in the interpreter, gives what it gives through torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig, KVCacheDtype, Quantization
from engine.device_rates import DeviceRates
from engine.forward.attention_backend import attention_backend
from engine.forward.cpu.attention import CpuAttention
from engine.forward.gpu.attention import GpuAttention, GpuStepAttention, Rotation
from engine.forward.kv_cache import KVCache
from engine.forward.load import load_model
from engine.forward.model_runner import ModelRunner
from engine.forward.smoothing import linears_of
from engine.forward.step_attention import Scoring
from engine.forward.step_inputs import step_inputs, to_device
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.loop.step_budget import engine_config
from engine.machine.device import Device
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.gpu.matmul.quantized_weights import dequantized, quantize_weight
from kernels.gpu.tuning.attention_config import SAFE, AttentionConfig
from kernels.kv_format import FLOAT32, kv_format_of
from kernels.segments import Ints
from tests.engine.families import SERVED, Family, save_tiny
from tests.engine.forward.played_gpu import PlayedCapture, played_gpu
from tests.engine.test_models import nearly_equal, prompts

Outputs = dict[str, RequestOutput]


@dataclass(frozen=True)
class Played:
    """`rotated`: of every layer that ran, whether the rotation came with it. `replays`: of every captured graph.
    `partials`: where partial results of captured launches are, by graph and window.
    """

    outputs: Outputs
    rotated: list[bool]
    replays: list[int]
    partials: dict[tuple[GpuStepAttention, int | None], int]


def config_of(folder: Path, quantization: Quantization = "none", kv_cache_dtype: KVCacheDtype = "auto") -> EngineConfig:
    """With chunks of 24 tokens and blocks of 8, so that contexts are cut, shared and in several runs."""
    budget = 384 * load_shape(resolve_model(str(folder))).kv_bytes_per_token(FLOAT32)
    return EngineConfig(
        dtype="float32",
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        max_num_batched_tokens=24,
        block_size=8,
        kv_cache_memory=budget,
    )


def run(engine: Engine, folder: Path, requests: list[Request]) -> Outputs:
    shape = load_shape(resolve_model(str(folder)))
    plan = make_plan(requests, config_of(folder), CostModel(shape, FLOAT32, DeviceRates(1e9, 1e9)))
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    outputs = {output.request_id: output for future in futures for output in future.result(timeout=500)}
    engine.close()
    return outputs


def answers(folder: Path, requests: list[Request]) -> Outputs:
    return run(build_engine(resolve_model(str(folder)), config_of(folder), detokenize=False), folder, requests)


def through_triton(
    folder: Path,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    quantization: Quantization = "none",
    kv_cache_dtype: KVCacheDtype = "auto",
) -> Played:
    """As on a GPU: layers and attention are chosen as there, and Triton interprets them."""
    files, capture = resolve_model(str(folder)), PlayedCapture()
    config = config_of(folder, quantization, kv_cache_dtype)
    device, rotated, partials = played_gpu(), [], {}

    def load() -> tuple[ModelRunner, EngineConfig]:
        runner = ModelRunner(load_model(files, device, quantization, kv_cache_dtype), config, device, capture)
        return runner, engine_config(files, config, runner)

    def counted(method: Any, *, rotates: bool) -> Any:
        def call(attention: GpuStepAttention, *arguments: Any) -> Any:
            rotated.append(rotates)
            made = method(attention, *arguments)
            if attention._room is not None:
                for window, tables in attention._tables.items():
                    partials[attention, window] = tables.partials.out_ptr.data_ptr()
            return made

        return call

    with monkeypatch.context() as patch:
        patch.setattr(GpuStepAttention, "run", counted(GpuStepAttention.run, rotates=False))
        patch.setattr(GpuStepAttention, "run_rotated", counted(GpuStepAttention.run_rotated, rotates=True))
        outputs = run(Engine(load, config), folder, requests)
    assert len(rotated) > 4
    return Played(outputs, rotated, capture.replays, partials)


def assert_same(one: Outputs, other: Outputs) -> None:
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
    played = through_triton(tiny_model, requests_, monkeypatch)
    assert_same(answers(tiny_model, requests_), played.outputs)
    assert all(played.rotated[2:]), "but for the probe's, before layers are swapped"
    assert sum(played.replays) > len(played.replays) > 0


@pytest.mark.fault(19)
def test_steps_run_without_a_graph_where_there_is_no_memory_for_it(
    tiny_model: Path, requests_: list[Request], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")

    monkeypatch.setattr(PlayedCapture, "__call__", no_room)
    played = through_triton(tiny_model, requests_, monkeypatch)
    assert_same(answers(tiny_model, requests_), played.outputs)
    warned = [record.getMessage() for record in caplog.records]
    assert warned
    assert all(said.startswith("out of memory for the graph of steps of ") for said in warned), "steps stay whole"


def test_a_gemma_whose_layers_hand_on_two_tensors(
    requests_: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs too, and a window that ends within the contexts."""
    save_tiny("gemma2", {"sliding_window": 24, "attn_logit_softcapping": 20.0}, tmp_path)
    played = through_triton(tmp_path, requests_, monkeypatch)
    assert_same(answers(tmp_path, requests_), played.outputs)
    assert all(played.rotated[2:])
    assert sum(played.replays) > len(played.replays) > 0
    # One memory for all of them.
    assert len(played.partials) == 2 * len(played.replays)
    assert len(set(played.partials.values())) == 1


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
    played = through_triton(tmp_path, requests_, monkeypatch, "int4")
    assert_same(answers(tmp_path, requests_), played.outputs)
    assert played.rotated[:2] == [False, False], "first the model is held to its own code, in transformers' layers"
    assert all(played.rotated[2:])


def test_eight_bits_stay_near(tiny_model: Path, requests_: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the unquantised model; the products themselves are held to their twins in the kernels' tests."""
    ours = through_triton(tiny_model, requests_, monkeypatch, "int8").outputs
    exact = answers(tiny_model, requests_)
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
    played = through_triton(tmp_path, requests, monkeypatch)
    assert_same(answers(tmp_path, requests), played.outputs)
    assert all(played.rotated[2:]) == (family.model_type in ("gemma2", "mistral")), "layers that are fused"


def test_nobody_waits_to_say_which_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied from pinned memory: a plain copy holds up every step of layers that do not rotate."""
    told: list[list[int]] = []

    def copied(numbers: Ints, device: str) -> torch.Tensor:
        told.append(numbers.tolist())
        return to_device(numbers, device)

    monkeypatch.setattr("engine.forward.gpu.attention.to_device", copied)
    step = replace(SchedulerOutput.causal_rows(4), slot_mapping=np.array([-1, 9, -1, 5]))
    cache = KVCache(1, 1, 16, 16, FLOAT32, "cpu")
    query, key, value = torch.randn(3, 1, 4, 16)
    GpuAttention(cache).prepare(step, step_inputs(step, "cpu")).run(0, query, key, value, Scoring(0.25))
    assert told == [[1, 3]]
    assert torch.equal(cache.keys[0][:, [9, 5]], key[:, [1, 3]])


@pytest.mark.parametrize(("dtype", "room"), [(torch.float32, 32), (torch.bfloat16, 16)])
def test_heads_in_32_bits_take_the_tile_of_twice_the_size(
    dtype: torch.dtype, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles hold bytes: three blocks of heads of 256 in 32 bits are 200 KiB, where an A100's programs have 163."""
    asked: list[int] = []

    def choose(_: torch.device, dim: int, __: int) -> AttentionConfig:
        asked.append(dim)
        return SAFE

    for module in ("kernels.gpu.attention.launch_tables", "engine.forward.gpu.attention"):
        monkeypatch.setattr(f"{module}.choose_config", choose)
    step, kv_format = SchedulerOutput.causal_rows(4), kv_format_of(str(dtype).removeprefix("torch."))
    backend = GpuAttention(KVCache(1, 1, 16, 16, kv_format, "cpu"))
    rows, rotation = torch.randn(3, 1, 4, 16).to(dtype), Rotation(torch.ones(4, 16), torch.zeros(4, 16))
    for prepare in (backend.prepare, backend.prepare_to_repeat):
        prepare(step, step_inputs(step, "cpu")).run_rotated(0, *rows, Scoring(0.25), rotation)
    assert asked == [room, room]


def test_a_gpu_takes_the_kernels_and_a_cpu_does_not() -> None:
    cache = KVCache(1, 1, 0, 16, FLOAT32, "cpu")
    assert isinstance(attention_backend(Device("cuda:0", "bfloat16", "cuda:0").backend, cache), GpuAttention)
    assert isinstance(attention_backend(Device("cpu", "float32", "cpu").backend, cache), CpuAttention)
