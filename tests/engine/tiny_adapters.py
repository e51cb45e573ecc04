"""Adapters that PEFT made and saved, with drawn weights, and PEFT's own model to hold answers to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.engine.oracle import Oracle

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """A LoRA of the model in `base`; B is drawn too, so that it says something."""
    from peft import LoraConfig, get_peft_model

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made: Any = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ALL, "r": 8} | config))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * (0.3 if "lora_A" in name else 0.1)
    made.save_pretrained(folder, safe_serialization=True)
    return folder


def llama_linears(hidden: int, queries: int, keys: int, intermediate: int, layers: int) -> dict[str, tuple[int, int]]:
    """Of a Llama's body, by path: (inputs, outputs)."""
    sizes = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, intermediate),
        "mlp.up_proj": (hidden, intermediate),
        "mlp.down_proj": (intermediate, hidden),
    }
    return {f"model.layers.{layer}.{name}": size for layer in range(layers) for name, size in sizes.items()}


class PeftOracle:
    """transformers' model by adapter, each by PEFT: with its weights merged in, or beside the model's own."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], *, merged: bool) -> None:
        from peft import PeftModel

        self.oracles: dict[str | None, Oracle] = {None: Oracle(base)}
        for name, folder in adapters.items():
            oracle = Oracle(base)
            model: Any = PeftModel.from_pretrained(oracle.model, str(folder)).eval()
            oracle.model = model.merge_and_unload() if merged else model
            self.oracles[name] = oracle
