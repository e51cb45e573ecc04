"""The tables of `docs/models.md`, made from what the code and the tests have: `python -m tests.engine.models_table`.

That of known GPUs stands in `docs/kernels.md`.
"""

from pathlib import Path

from engine.model.linear_schemes import LINEAR_SCHEMES
from engine.model.model_shape import ModelShape
from engine.model.tensor_parallel import deals_heads
from kernels.known_gpus import KNOWN_GPUS
from kernels.kv_format import KV_FORMATS
from tests.engine.families import REFUSED, SERVED

DOCS = Path(__file__).parents[2] / "docs"
DEVICES = {"torch": "CPU", "triton": "GPU"}
# Layers, KV heads and dimensions of a head, as config.json on the hub has them.
KV_SIZES = {
    "SmolLM2 135M": (30, 3, 64),
    "Llama 3.2 1B": (16, 8, 64),
    "Llama 3.1 8B, Mistral 7B v0.3, Mixtral 8x7B": (32, 8, 128),
    "Qwen2.5 7B": (28, 4, 128),
    "Qwen3 8B": (36, 8, 128),
    "Gemma 2 9B": (42, 8, 256),
    "Gemma 3 4B": (34, 4, 256),
    "Phi-3 mini": (32, 32, 96),
    "GPT-OSS 20B": (24, 8, 64),
}


def tables() -> dict[tuple[str, str], str]:
    """By the page and the name of its markers."""
    return {
        ("models.md", "models"): models_table(),
        ("models.md", "schemes"): schemes_table(),
        ("models.md", "kv"): kv_table(),
        ("kernels.md", "gpus"): gpus_table(),
    }


def models_table() -> str:
    lines = ["| family | `model_type` | special | several devices |", "|---|---|---|---|"]
    for one in SERVED:
        parts = "yes" if deals_heads(one.model_type) else ""
        lines.append(f"| {one.name} | `{one.model_type}` | {', '.join(one.special)} | {parts} |")
    lines += ["", "Refused, by name and before any weight is read:", "", "| why | `model_type` |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in REFUSED.items()]
    return "\n".join(lines)


def schemes_table() -> str:
    lines = ["| `quantization` | device | layers | weights | activations | kernel |", "|---|---|---|---|---|---|"]
    for scheme in LINEAR_SCHEMES:
        cells = (DEVICES[scheme.backend], scheme.layers, scheme.weights, scheme.activations, f"`{scheme.kernel}`")
        lines.append(f"| `{scheme.quantization}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def kv_table() -> str:
    lines = [f"| model | {' | '.join(one.name for one in KV_FORMATS)} |", "|---" * (1 + len(KV_FORMATS)) + "|"]
    for model, (layers, kv_heads, dim) in KV_SIZES.items():
        shape = ModelShape(layers, 0, 0, kv_heads, dim, 0, 0, 0)
        cells = (f"{shape.kv_bytes_per_token(kv_format):,}" for kv_format in KV_FORMATS)
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {one.name}: {one.purpose}" for one in KV_FORMATS)])


def gpus_table() -> str:
    lines = ["| `--device` | GiB | TB/s | bfloat16 | fp8 | int8 | by |", "|---|---|---|---|---|---|---|"]
    for gpu in KNOWN_GPUS:
        rates = (f"{rate / 1e12:,.0f}" if rate else "" for rate in (gpu.bfloat16, gpu.fp8, gpu.int8))
        cells = (f"{gpu.memory:g}", f"{gpu.memory_bytes / 1e12:g}", *rates, gpu.source)
        lines.append(f"| `{gpu.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def written(page: str, name: str) -> str:
    """What stands between the markers of a table. Raises ValueError where there are none."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    return page[page.index(begin) + len(begin) : page.index(end)].strip()


def rewrite() -> None:
    for (file, name), table in tables().items():
        page = (DOCS / file).read_text()
        before, _, rest = page.partition(f"<!-- {name}:begin -->\n")
        page = f"{before}<!-- {name}:begin -->\n{table}\n{rest[rest.index(f'<!-- {name}:end -->') :]}"
        (DOCS / file).write_text(page)


if __name__ == "__main__":
    rewrite()
