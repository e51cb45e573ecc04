"""Adapter folders as PEFT saves them, written without PEFT: weights drawn from a seed."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.model.adapter_files import CONFIG, PREFIX, WEIGHTS


def write_adapter(
    folder: Path, linears: dict[str, tuple[int, int]], seed: int = 0, rank: int = 8, **config: Any
) -> Path:
    """For linear layers (inputs, outputs) by path."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (inputs, outputs) in linears.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) / inputs**0.5
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * 0.1
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    names = sorted({path.rpartition(".")[2] for path in linears})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": names,
    }
    (folder / CONFIG).write_text(json.dumps(content | config))
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
