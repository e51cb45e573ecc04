"""What loading makes of a model on the CPU, beside the answers that `tests/engine/test_models.py` holds it to."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward.cpu.fused_layer import FusedLayer
from engine.forward.load import load_model
from engine.machine.device import resolve_device
from engine.model.checkpoint import resolve_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_keep_all_their_bits(tiny_model: Path, dtype: str) -> None:
    """Rounded to bfloat16 they are off by up to one in 256: at position 2000 that turns a key by most of a radian."""
    device = resolve_device(EngineConfig(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    loaded = load_model(resolve_model(str(tiny_model)), device)
    assert {type(layer) for layer in loaded.body.layers} == {FusedLayer}
    assert loaded.body.layers[0].qkv.panels.dtype == getattr(torch, dtype)
    own = AutoModelForCausalLM.from_pretrained(tiny_model).model.rotary_emb.inv_freq
    assert torch.equal(loaded.body.rotary_emb.inv_freq, own)


@pytest.mark.parametrize(
    ("gone", "said"),
    [("layers.1.mlp.up_proj", "lacks model.layers.1.mlp.up_proj.weight:"), ("layers.1.mlp", "and 2 more weights:")],
)
def test_weights_that_a_checkpoint_lacks_are_not_drawn(tiny_model: Path, tmp_path: Path, gone: str, said: str) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    left = {key: value for key, value in load_file(file).items() if gone not in key}
    save_file(left, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=said):
        load_model(resolve_model(str(tmp_path / "model")), resolve_device(EngineConfig(device="cpu")))
