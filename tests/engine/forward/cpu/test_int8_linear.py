from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import engine.machine.device
from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.errors import UserError
from engine.forward.cpu.fused_layer import FusedLayer
from engine.forward.cpu.int8_linear import Int8Linear, quantize_linears
from engine.forward.cpu.projection import Projection
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.machine.device import resolve_device
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from kernels.cpu.matmul.int8_rows import block_size, hadamard_matrix, hadamard_transform, quantize_rows
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS
from kernels.processor import takes_bytes
from tests.engine.families import save_tiny


def spread(rows: int, features: int) -> Tensor:
    """Rows of very different magnitudes."""
    return torch.randn(rows, features) * torch.logspace(-3, 3, rows)[:, None]


@pytest.mark.parametrize(("rows", "features"), [(1, 1), (63, 100), (111, 64), (20, 304)])
def test_a_transformed_row_is_within_half_a_step(rows: int, features: int) -> None:
    torch.manual_seed(0)
    values = spread(rows, features)
    quantized, scales = quantize_rows(values)
    assert quantized.dtype == torch.int8
    assert scales.shape == (rows,)
    steps = scales.double()[:, None]
    assert ((quantized.double() * steps - hadamard_transform(values).double()).abs() <= steps * 0.5001).all()
    assert quantized.abs().amax(-1).tolist() == [127] * rows


@pytest.mark.parametrize(("size", "block"), [(1, 1), (8, 1), (60, 1), (48, 16), (576, 64), (1536, 256), (4096, 256)])
def test_blocks_divide_a_row(size: int, block: int) -> None:
    assert block_size(size) == block


@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_the_hadamard_matrix_is_orthogonal(size: int) -> None:
    matrix = hadamard_matrix(size)
    assert matrix.abs().unique().tolist() == pytest.approx([size**-0.5])
    assert torch.allclose(matrix @ matrix.t(), torch.eye(size), atol=1e-6)


def test_zeros_stay_zeros_and_what_is_not_finite_shows() -> None:
    linear = Int8Linear(nn.Linear(4, 3, bias=False))
    assert linear(torch.zeros(2, 4)).tolist() == [[0.0] * 3] * 2
    rows = torch.ones(3, 4)
    rows[1, 2], rows[2, 0] = torch.nan, torch.inf
    assert torch.isfinite(linear(rows)).all(-1).tolist() == [True, False, False]


def test_the_transform_spreads_one_large_channel() -> None:
    """A channel a hundred times the rest, as language models have them: without it that one sets everybody's step."""
    torch.manual_seed(2)
    linear, values = nn.Linear(1024, 64, bias=False).requires_grad_(False), torch.randn(200, 1024)
    values[:, 5] *= 100
    exact = linear(values)
    steps = values.abs().amax(1, keepdim=True) / 127
    unmixed = ((values / steps).round() * steps) @ linear.weight.t()
    assert float((Int8Linear(linear)(values) - exact).abs().mean()) < float((unmixed - exact).abs().mean()) / 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inner", "outer"), [(0, 64, 64), (1, 64, 63), (63, 100, 111), (17, 576, 192), (5, 1536, 50)]
)
def test_the_layer_is_its_definition_in_float64(rows: int, inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(inner, outer, bias=bias)
    values = spread(rows, inner)
    got = Int8Linear(linear)(values[None])[0].double()
    (weight, weight_scales), (activations, scales) = quantize_rows(linear.weight.detach()), quantize_rows(values)
    scales, weight_scales = scales.double()[:, None], weight_scales.double()[:, None]
    wanted = (activations.double() * scales) @ (weight.double() * weight_scales).t()
    exact = values.double() @ linear.weight.detach().double().t()
    if linear.bias is not None:
        wanted, exact = wanted + linear.bias.double(), exact + linear.bias.double()
    # What is quantised are transformed rows, whose products are those of the rows themselves.
    rows_abs = hadamard_transform(values).double().abs()
    weight_abs = hadamard_transform(linear.weight.detach()).double().abs()
    whole = rows_abs @ weight_abs.t()
    assert ((got - wanted).abs() <= 1e-6 * (whole + 1)).all()
    # Each factor is off by at most half its step.
    steps, weight_steps = scales / 2, weight_scales.t() / 2
    bound = (steps * weight_abs.sum(1)) + rows_abs.sum(1, keepdim=True) * weight_steps + inner * steps * weight_steps
    assert ((got - exact).abs() <= 1.001 * bound + 1e-6).all()


def test_bfloat16_goes_in_and_comes_out() -> None:
    torch.manual_seed(2)
    linear, rows = nn.Linear(32, 16).bfloat16().requires_grad_(False), torch.randn(5, 32).bfloat16()
    got = Int8Linear(linear)(rows)
    assert got.dtype == torch.bfloat16
    assert float((got - linear(rows)).abs().max()) < 0.05


def test_a_body_without_linear_layers_is_refused() -> None:
    class Bare(nn.Module):
        base_model = nn.Sequential(nn.LayerNorm(3))

    with pytest.raises(UserError, match="no linear layer"):
        quantize_linears(Bare())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_gpu_takes_both_with_triton_and_neither_without(quantization: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.machine.device, "cuda_devices", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    config = EngineConfig(device="cuda", quantization=quantization)
    assert resolve_device(config).name == "cuda:0"
    monkeypatch.setattr(engine.machine.device, "backend_of", lambda _: "torch")
    with pytest.raises(UserError, match=f"{quantization} on cuda needs Triton"):
        resolve_device(config)


def test_the_cpu_takes_int8_alone() -> None:
    assert resolve_device(EngineConfig(device="cpu", quantization="int8")).name == "cpu"
    with pytest.raises(UserError, match=r"model\.quantization: int4 is for GPUs alone; take int8"):
        resolve_device(EngineConfig(device="cpu", quantization="int4"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def int8_engine(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Loading it is a test: the probe holds it to the model's own attention over the same weights."""
    config = EngineConfig(dtype=request.param, quantization="int8", kv_cache_memory=2**24)
    built = build_engine(resolve_model(str(tiny_model)), config, detokenize=False)
    yield built
    built.close()


def test_the_body_is_quantized_and_head_and_embeddings_are_not(int8_engine: Engine) -> None:
    model = int8_engine.runner.model
    layers = [module for module in model.body.modules() if isinstance(module, FusedLayer)]
    assert len(layers) == 2
    for layer in layers:
        projections = (layer.qkv, layer.out, layer.gate_up, layer.down)
        assert {projection.panels.dtype for projection in projections} == {torch.int8}
    head = model._head.lm_head
    kept = int8_engine.runner.cache.keys[0].dtype
    assert (head.panels if isinstance(head, Projection) else head.weight).dtype == kept
    assert model.body.embed_tokens.weight.is_floating_point()


@pytest.mark.skipif(not takes_bytes(64), reason="this processor has no products of bytes")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_are_in_8_bits_over_bfloat16(family: str, dtype: Any, tmp_path: Path) -> None:
    """In fused layers; plans count on it, and the budget holds nearly twice the tokens."""
    save_tiny(family, {"head_dim": 64, "hidden_act": "silu"}, tmp_path)
    files = resolve_model(str(tmp_path))
    config = EngineConfig(dtype=dtype, quantization="int8", kv_cache_memory=2**22)
    shape, device = load_shape(files), resolve_device(config)
    built = build_engine(files, config, detokenize=False)
    kept = {"float32": FLOAT32, "bfloat16": BFLOAT16 if family == "qwen3" else INT8_ROWS}[dtype]
    assert built.runner.cache.kv_format == kept
    assert device.kv_format(shape, "int8") == kept
    cache = built.runner.cache
    token = sum(kept.itemsize * kv.stride(1) * len(kv) for kv in (*cache.keys, *cache.values))
    assert token == 2 * shape.num_layers * shape.num_kv_heads * {1: 68, 2: 128, 4: 256}[kept.itemsize]
    assert built.runner.block_bytes == 16 * token
    assert built.runner.num_blocks == 2**22 // (16 * token)
    built.close()


def test_answers_do_not_depend_on_sharing(int8_engine: Engine) -> None:
    """A row's scale is its own, so what else runs in a step changes no answer but by attention's last bits."""
    stem = np.arange(300, 340, dtype=np.int32)
    labels = (np.array([5], dtype=np.int32), np.array([7, 8], dtype=np.int32))
    prompts = [np.append(stem, np.int32(tail)) for tail in (11, 12, 13)]
    requests = [Request(str(i), prompt, labels=labels) for i, prompt in enumerate(prompts)]

    def run(sharing: str) -> dict[str, RequestOutput]:
        config = EngineConfig(sharing=sharing, kv_cache_memory=2**24)  # type: ignore[arg-type]
        shape = int8_engine.runner.model.shape
        plan = make_plan(requests, config, CostModel(shape, FLOAT32, DeviceRates(1e9, 1e9)))
        outputs = int8_engine.submit(shard_work(plan, plan.shards[0], requests)).result(timeout=60)
        return {output.request_id: output for output in outputs}

    shared, alone = run("multi_level"), run("none")
    for name in "012":
        assert shared[name].label_scores is not None
        assert alone[name].label_scores is not None
        pairs = zip(shared[name].label_scores, alone[name].label_scores, strict=True)
        limit = 1e-2 if int8_engine.runner.cache.kv_format == FLOAT32 else 0.5
        assert all(abs(a.logprob - b.logprob) < limit for a, b in pairs)
