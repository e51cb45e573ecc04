"""Packed checkpoints through the engine: the answers are those of the weights that their codes stand for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward.gpu.fp8_linear import Fp8Linear
from engine.forward.gpu.packed_linear import PackedLinear, stacked
from engine.forward.gpu.stored_linears import keep_codes
from engine.loop.build import build_engine
from engine.machine import device as devices
from engine.machine.device import Device
from engine.model.checkpoint import load_shape, resolve_model
from engine.model.stored_weights import read_stored, stored_format
from engine.request import Request
from engine.sampling_params import SamplingParams
from tests.engine.forward.gpu.test_attention import answers, through_triton
from tests.engine.model.packed_checkpoints import FORMATS, write
from tests.engine.test_models import nearly_equal

PLAYED = Device("cpu", "bfloat16", 1e9, "played")
REQUESTS = [
    Request(f"r{i}", np.arange(3, 20 + i, dtype=np.int32) * 7 % 500, SamplingParams(max_tokens=4, ignore_eos=True))
    for i in range(3)
]


@pytest.fixture
def packed(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A packed checkpoint, and a plain one with the weights that it stands for."""
    dense = write(tiny_model, tmp_path / "packed", request.param)
    shutil.copytree(tiny_model, tmp_path / "plain")
    file = tmp_path / "plain" / "model.safetensors"
    weights = {f"{path}.weight": weight.float().contiguous() for path, weight in dense.items()}
    save_file(load_file(file) | weights, file, metadata={"format": "pt"})
    return tmp_path / "packed", tmp_path / "plain"


@pytest.mark.parametrize("packed", FORMATS, indirect=True)
def test_a_cpu_runs_on_what_the_codes_stand_for(packed: tuple[Path, Path]) -> None:
    ours, plain = (answers(folder, REQUESTS) for folder in packed)
    assert all(ours[key].token_ids == plain[key].token_ids for key in plain)


@pytest.mark.parametrize("packed", ["awq", "gptq", "w4a16", "w4a16, asymmetric"], indirect=True)
def test_a_gpu_keeps_the_codes(packed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = packed
    kept: list[int] = []
    whole = PackedLinear.__init__
    monkeypatch.setattr(PackedLinear, "__init__", lambda self, *given: (kept.append(1), whole(self, *given))[1])
    ours = through_triton(folder, REQUESTS, monkeypatch).outputs
    wanted = answers(plain, REQUESTS)
    assert len(kept) >= 14
    assert all(nearly_equal(ours[key], wanted[key]) for key in wanted)


def layers(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    found = stored_format({"quantization_config": FORMATS[name][0]}, "")
    assert found is not None
    return model, read_stored(folder.parent / "packed", found)[1]


@pytest.mark.parametrize(
    ("packed", "kept"),
    [("awq", 14), ("w4a16", 14), ("gptq, in the order of activations", 0), ("w8a16", 0), ("w8a8", 0), ("fp8", 14)],
    indirect=["packed"],
)
def test_what_has_no_kernel_keeps_its_weights(
    packed: tuple[Path, Path], kept: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "nvidia_capability", lambda _: (9, 0))
    model, stored = layers(packed[1], request.node.callspec.params["packed"])
    assert keep_codes(model, stored, PLAYED) == kept
    monkeypatch.setattr(devices, "nvidia_capability", lambda _: (8, 0))
    if kept and isinstance(model.model.layers[0].self_attn.q_proj, Fp8Linear):
        assert keep_codes(*layers(packed[1], "fp8"), PLAYED) == 0


@pytest.mark.parametrize("packed", ["awq"], indirect=True)
def test_layers_side_by_side_keep_their_zero_points(packed: tuple[Path, Path]) -> None:
    model, stored = layers(packed[1], "awq")
    keep_codes(model, stored, PLAYED)
    attention = model.model.layers[0].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    rows = torch.randn(5, 64)
    torch.testing.assert_close(stacked(*parts)(rows), torch.cat([part(rows) for part in parts], -1))
    wanted = rows @ stored["model.layers.0.self_attn.q_proj"].dense().t()
    torch.testing.assert_close(attention.q_proj(rows), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", ["w4a16"], indirect=True)
def test_a_checkpoint_that_lacks_a_layer_is_refused(packed: tuple[Path, Path]) -> None:
    file = packed[0] / "model.safetensors"
    left = {key: value for key, value in load_file(file).items() if "layers.1.mlp.up_proj" not in key}
    save_file(left, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model.layers.1.mlp.up_proj.weight"):
        build_engine(resolve_model(str(packed[0])), EngineConfig(dtype="float32", kv_cache_memory=2**24))


def test_a_format_that_is_not_served_is_refused_before_any_weight_is_read(tiny_model: Path, tmp_path: Path) -> None:
    write(tiny_model, tmp_path / "packed", "gptq")
    config = tmp_path / "packed" / "config.json"
    config.write_text(config.read_text().replace('"bits": 4', '"bits": 3'))
    with pytest.raises(
        UserError, match=r"model.path: packed \(llama\) has gptq weights of 3 bits, which is not served"
    ):
        load_shape(resolve_model(str(tmp_path / "packed")))
