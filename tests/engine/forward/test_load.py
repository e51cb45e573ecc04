"""What loading makes of a model on the CPU, beside the answers that `tests/engine/test_models.py` holds it to."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
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
