"""What one of several ranks has of a model: an equal part of the heads and of each MLP, as transformers' plan says.

A family's `base_model_tp_plan` says of each linear layer whether its outputs are dealt ("colwise"), so that heads and
inner columns are, or its inputs ("rowwise"), whose products are then summed over the ranks: Megatron-LM's way (Shoeybi
et al., 2019, section 3). Embedding and head are whole on each rank, whatever the plan has: the first rank alone looks
at logits, and then needs nobody for them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.config import EngineConfig
from engine.errors import UserError
from engine.model.model_shape import ModelShape

TENSOR_PARALLEL = "engine.tensor_parallel"
# Of attention, the layers that make keys, under any of their names, and the one that brings heads together.
_KEYS, _OUT = re.compile(r"\.(k_proj|query_key_value)$"), re.compile(r"\.(o_proj|dense|out_proj)$")


def refuse_parts(config: EngineConfig) -> None:
    """Raises UserError for what does not go with several ranks, whatever the model is."""
    if config.tensor_parallel < 2:
        return
    for given, usual, key in (
        (config.quantization, "none", "model.quantization"),
        (config.kv_cache_dtype, "auto", "model.kv_cache_dtype"),
        (config.determinism, "default", "engine.determinism"),
    ):
        if given != usual:
            ranks = config.tensor_parallel
            raise UserError(f"{TENSOR_PARALLEL}: {ranks} does not go with {key}: {given}; take {usual}, or 1")
    if ":" in config.device:
        raise UserError(f"{TENSOR_PARALLEL}: {config.device} is one device; take engine.device: cuda")


def part_of(shape: ModelShape, ranks: int, config: Mapping[str, Any], kind: str) -> ModelShape:
    """The sizes of a rank's part. Raises UserError, which names `kind`, for a model that cannot be dealt so."""
    if ranks < 2:
        return shape
    if not deals_heads(config.get("model_type", "")):
        raise UserError(f"{TENSOR_PARALLEL}: transformers has no plan for {kind} that deals its heads; take 1")
    if "quantization_config" in config:
        raise UserError(f"{TENSOR_PARALLEL}: {kind} has weights in few bits, which are not dealt; take 1")
    sizes = {"heads": shape.num_heads, "KV heads": shape.num_kv_heads, "columns of its MLP": shape.intermediate_size}
    for what, count in sizes.items():
        if count % ranks:
            raise UserError(
                f"{TENSOR_PARALLEL}: {kind} has {count} {what}, which {ranks} do not divide; {_cure(shape)}"
            )
    return replace(
        shape,
        num_heads=shape.num_heads // ranks,
        num_kv_heads=shape.num_kv_heads // ranks,
        intermediate_size=shape.intermediate_size // ranks,
    )


def deals_heads(model_type: str) -> bool:
    """Whether transformers' plan for the family deals attention's heads, which then have their KV where they are."""
    from transformers import CONFIG_MAPPING  # seconds, which only those wait for who deal a model

    if model_type not in CONFIG_MAPPING:
        return False
    plan: Mapping[str, str] = getattr(CONFIG_MAPPING[model_type], "base_model_tp_plan", None) or {}
    return all(
        any(style == wanted and layer.search(path) for path, style in plan.items())
        for layer, wanted in ((_KEYS, "colwise"), (_OUT, "rowwise"))
    )


def _cure(shape: ModelShape) -> str:
    sizes = shape.num_heads, shape.num_kv_heads, shape.intermediate_size
    fits = [str(ranks) for ranks in range(1, min(sizes) + 1) if not any(size % ranks for size in sizes)]
    return f"take {' or '.join(fits)}"
