"""The memory that is worked out beforehand, and the refusal of more than there is."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.errors import UserError
from engine.loop.build import build_engine
from engine.machine import memory
from engine.machine.device import Device, resolve_device
from engine.machine.memory import machine_memory, memory_need, refuse_too_large, settled
from engine.model.checkpoint import load_shape, resolve_model
from kernels.processor import NATIVE_BYTES

CONFIG = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**22)


def test_weights_are_those_that_are_loaded(tiny_model: Path) -> None:
    files = resolve_model(str(tiny_model))
    need = memory_need(files, load_shape(files), CONFIG, resolve_device(CONFIG))
    engine = build_engine(files, CONFIG, detokenize=False)
    engine.close()
    assert need.weights == pytest.approx(engine.runner.model.weight_bytes, rel=0.01)
    assert need.kv_cache == 2**22
    assert need.total == need.weights + need.kv_cache + need.activations + need.logits


def test_precision_and_step_decide_the_size(tiny_model: Path) -> None:
    files = resolve_model(str(tiny_model))
    shape = load_shape(files)

    def of(config: EngineConfig) -> memory.MemoryNeed:
        return memory_need(files, shape, config, resolve_device(config))

    full, half = of(CONFIG), of(replace(CONFIG, dtype="bfloat16"))
    coarse = shape.head_params if NATIVE_BYTES else 0
    assert half.weights - coarse == (full.weights - coarse) // 2
    assert half.activations == full.activations // 2
    assert of(replace(CONFIG, quantization="int8")).weights == full.weights + shape.matmul_params
    assert of(replace(CONFIG, max_num_batched_tokens=2048)).activations == 2 * full.activations


def test_a_head_of_its_own_is_not_counted_twice(tiny_model: Path, tmp_path: Path) -> None:
    files = resolve_model(str(tiny_model))
    shape, device = load_shape(files), resolve_device(CONFIG)
    tied = memory_need(files, shape, CONFIG, device)
    weights = load_file(tiny_model / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    assert memory_need(replace(files, folder=tmp_path), shape, CONFIG, device).weights == tied.weights


def test_strict_has_a_tied_head_of_its_own_where_layers_are_not_ours(tiny_model: Path) -> None:
    files = resolve_model(str(tiny_model))
    shape, device = replace(load_shape(files), fused_on=()), resolve_device(CONFIG)
    strict = memory_need(files, shape, replace(CONFIG, determinism="strict"), device)
    more = strict.weights - memory_need(files, shape, CONFIG, device).weights
    assert more == shape.head_params * device.dtype_bytes > 0
    ours = load_shape(files)
    assert memory_need(files, ours, replace(CONFIG, determinism="strict"), device) == memory_need(
        files, ours, CONFIG, device
    )


def test_more_than_the_machine_has_is_refused_before_weights_are_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve_model(str(tiny_model))
    config = replace(CONFIG, kv_cache_memory=2**50)
    monkeypatch.delattr("engine.loop.build.load_ranks")
    message = r"^engine\.kv_cache_memory: .* 1,048,576\.00 GiB KV, .*; take at most [0-9]+MiB$"
    with pytest.raises(UserError, match=message):
        build_engine(files, config)


@pytest.mark.fault(19)
@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOMEM, "no memory")])
def test_memory_that_ends_while_the_model_loads_is_one_line(
    problem: Exception, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr("engine.loop.build.load_ranks", load)
    message = r"^engine\.kv_cache_memory: this machine ran out of memory while the model was loaded: .* or take less$"
    with pytest.raises(UserError, match=message):
        build_engine(resolve_model(str(tiny_model)), CONFIG)


def test_what_fits_beside_the_model_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(CONFIG)
    need = memory_need(files, load_shape(files), CONFIG, device)
    monkeypatch.setattr(memory, "machine_memory", lambda: need.total)
    refuse_too_large(need, CONFIG, device)
    monkeypatch.setattr(memory, "machine_memory", lambda: need.total - 2**20)
    with pytest.raises(UserError, match="take at most 3MiB"):
        refuse_too_large(need, CONFIG, device)
    monkeypatch.setattr(memory, "machine_memory", lambda: need.weights)
    with pytest.raises(UserError, match="the model itself does not fit"):
        refuse_too_large(need, CONFIG, device)


def test_a_control_group_may_allow_less(tmp_path: Path) -> None:
    whole = machine_memory()
    limit = tmp_path / "memory.max"
    for said, allowed in (("max", whole), (str(2**20), 2**20), (str(2**60), whole)):
        limit.write_text(said)
        assert machine_memory(limit) == allowed


def test_kv_takes_what_a_gpu_has_left(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the share that the job gives; a CPU has a number of its own, and one that is asked for stays."""
    files, gpu = resolve_model(str(tiny_model)), Device("cuda:0", "bfloat16", "cuda:0")
    shape, auto = load_shape(files), replace(CONFIG, kv_cache_memory=0, gpu_memory_utilization=0.5)
    monkeypatch.setattr(memory, "device_memory", lambda _: 80 * 2**30)
    got = settled(files, shape, auto, gpu).kv_cache_memory
    assert got + memory_need(files, shape, auto, gpu).total == 39 * 2**30
    refuse_too_large(memory_need(files, shape, replace(auto, kv_cache_memory=got), gpu), auto, gpu)
    assert settled(files, shape, auto, resolve_device(CONFIG)).kv_cache_memory == 2 * 2**30
    assert settled(files, shape, CONFIG, gpu) is CONFIG
    monkeypatch.setattr(memory, "device_memory", lambda _: 2**31)
    with pytest.raises(UserError, match=r"^engine\.gpu_memory_utilization: .* GiB needed before any KV, but 0\.5 of"):
        settled(files, shape, auto, gpu)
    too_much = replace(CONFIG, kv_cache_memory=2**31)
    with pytest.raises(UserError, match=r"but cuda:0 has 1\.00 GiB; take at most \d+MiB$"):
        refuse_too_large(memory_need(files, shape, too_much, gpu), too_much, gpu)
