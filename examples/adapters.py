"""Writes LoRA adapters for the example, as PEFT would save them, and a table of rows that name them.

    python -m examples.adapters [MODEL]

The weights are drawn, not trained: each adapter says something else than its base, and the same at every run. What
`peft.PeftModel.save_pretrained` writes takes their place. MODEL is `embedded` if not given.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from engine.model.adapter_files import CONFIG, PREFIX, WEIGHTS
from engine.model.base_linears import linear_sizes
from engine.model.checkpoint import resolve_model

DATA = Path(__file__).parent / "data"
ADAPTERS = ("formal", "playful")
TARGETS = ("q_proj", "v_proj")
QUESTIONS = ("What is a river?", "Why does bread rise?", "How does a lock keep a door shut?")


def write_adapter(
    folder: Path, linears: dict[str, tuple[int, int]], seed: int = 0, rank: int = 8, deviation: float = 0.1
) -> Path:
    """The folder, with an adapter of the layers (inputs, outputs) by path; `deviation` is that of B's numbers."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (inputs, outputs) in linears.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) / inputs**0.5
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * deviation
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in linears}),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def main(model: str = "embedded") -> None:
    sizes, _ = linear_sizes(resolve_model(model))
    linears = {path: size for path, size in sizes.items() if path.endswith(TARGETS)}
    for seed, name in enumerate(ADAPTERS):
        write_adapter(DATA / "adapters" / name, linears, seed, deviation=0.02)
    rows = [{"question": question, "style": style} for question in QUESTIONS for style in (*ADAPTERS, None)]
    pq.write_table(pa.Table.from_pylist(rows), DATA / "styles.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:])
