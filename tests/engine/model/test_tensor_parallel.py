"""What a rank has of a model, and which models and settings cannot be dealt."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.device import Device, device_not_here, resolve_device
from engine.machine.memory import memory_need, refuse_too_large
from engine.model.checkpoint import load_shape, resolve_model
from engine.model.model_shape import ModelShape, num_kv_blocks
from engine.model.tensor_parallel import deals_heads, part_of
from kernels.kv_format import FLOAT32

LLAMA = {"model_type": "llama"}
WHOLE = ModelShape(2, 64, 8, 4, 16, 96, 512, 256)


def test_a_part_is_an_equal_one() -> None:
    assert part_of(WHOLE, 1, {"model_type": "unheard-of"}, "m") == WHOLE
    part = part_of(WHOLE, 2, LLAMA, "m")
    assert part == replace(WHOLE, num_heads=4, num_kv_heads=2, intermediate_size=48)
    assert 2 * part.matmul_params == WHOLE.matmul_params
    assert 2 * part.kv_bytes_per_token(FLOAT32) == WHOLE.kv_bytes_per_token(FLOAT32)


@pytest.mark.parametrize(
    ("ranks", "config", "message"),
    [
        (3, LLAMA, r"m has 8 heads, which 3 do not divide; take 1 or 2 or 4$"),
        (8, LLAMA, r"m has 4 KV heads, which 8 do not divide; take 1 or 2 or 4$"),
        (2, {"model_type": "gpt2"}, "transformers has no plan for m that deals its heads; take 1$"),
        (2, {"model_type": "unheard-of"}, "transformers has no plan for m that deals its heads; take 1$"),
        (2, LLAMA | {"quantization_config": {}}, "m has weights in few bits, which are not dealt; take 1$"),
    ],
)
def test_what_cannot_be_dealt_is_one_line(ranks: int, config: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^engine\.tensor_parallel: {message}"):
        part_of(WHOLE, ranks, config, "m")


def test_columns_are_dealt_too() -> None:
    with pytest.raises(UserError, match=r"has 90 columns of its MLP, which 4 do not divide; take 1 or 2$"):
        part_of(replace(WHOLE, intermediate_size=90), 4, LLAMA, "m")


def test_a_plan_that_leaves_heads_whole_is_none() -> None:
    """Phi-3's and DeepSeek's deal the MLP alone, or gather what they dealt before attention."""
    assert [deals_heads(one) for one in ("qwen3", "gemma2", "mixtral", "gpt_neox")] == [True] * 4
    assert [deals_heads(one) for one in ("phi3", "deepseek_v3", "opt")] == [False] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "int8"}, r"2 does not go with model\.quantization: int8; take none, or 1$"),
        ({"kv_cache_dtype": "fp8"}, r"2 does not go with model\.kv_cache_dtype: fp8; take auto, or 1$"),
        ({"determinism": "strict"}, r"2 does not go with engine\.determinism: strict; take default, or 1$"),
        ({"device": "cuda:1"}, r"cuda:1 is one device; take engine\.device: cuda$"),
    ],
)
def test_what_does_not_go_with_ranks_is_one_line(changes: dict[str, str], message: str) -> None:
    config = replace(EngineConfig(device="cuda", tensor_parallel=2), **changes)  # type: ignore[arg-type]
    for resolve in (resolve_device, lambda one: device_not_here("h100", one)):
        with pytest.raises(UserError, match=rf"^engine\.tensor_parallel: {message}"):
            resolve(config)


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    config = EngineConfig(device="cpu", tensor_parallel=2)
    assert resolve_device(config).shared_by(2, 2).cores == 1
    with pytest.raises(UserError, match=r"^engine\.tensor_parallel: 6 are more than the 5 cores that there are$"):
        resolve_device(config).shared_by(1, 6)
    with pytest.raises(UserError, match=r"^engine\.workers: 3 times engine\.tensor_parallel: 2 are more than the 5"):
        resolve_device(config).shared_by(3, 2)
    monkeypatch.setattr("engine.machine.device.cuda_devices", lambda: 1)
    with pytest.raises(UserError, match=r"^engine\.tensor_parallel: 2 are more than the 1 GPUs there are$"):
        resolve_device(replace(config, device="cuda"))


def test_a_rank_needs_its_part_of_the_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, device = resolve_model(str(tiny_model)), Device("cpu", "float32", "cpu")
    config = EngineConfig(device="cpu", kv_cache_memory=2**24)
    shapes = {ranks: load_shape(files, ranks) for ranks in (1, 2)}
    needs = {
        ranks: memory_need(files, shape, replace(config, tensor_parallel=ranks), device)
        for ranks, shape in shapes.items()
    }
    assert needs[1].weights - needs[2].weights == 4 * shapes[1].matmul_params // 2, "all but embedding, head and norms"
    assert num_kv_blocks(shapes[2], config, FLOAT32) == 2 * num_kv_blocks(shapes[1], config, FLOAT32)
    monkeypatch.setattr("engine.machine.memory.machine_memory", lambda: 2 * needs[2].total)
    refuse_too_large(needs[2], replace(config, tensor_parallel=2), device)
    with pytest.raises(UserError, match="each of 4 ranks has"):
        refuse_too_large(needs[2], replace(config, tensor_parallel=2), device, workers=2)
