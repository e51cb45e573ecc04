"""What a model's config.json says: its sizes under any of their names, and what in it is not served."""

from collections.abc import Mapping
from typing import Any

from engine.errors import UserError
from engine.model.fused_families import fused_backends
from engine.model.model_shape import ModelShape

Config = Mapping[str, Any]

ALIASES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("n_inner", "ffn_dim", "dff"),
    "max_position_embeddings": ("n_positions", "max_seq_len"),
}

SERVED_LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
LAYER_REASONS = {
    "chunked_attention": "attention within chunks",
    "compressed_sparse_attention": "attention over compressed keys",
    "conv": "short convolutions",
    "heavily_compressed_attention": "attention over compressed keys",
    "hybrid": "a state space or convolutions beside attention",
    "linear_attention": "linear attention",
    "mamba": "state-space layers",
    "recurrent": "recurrent layers",
}
LAYER_KEYS = ("layer_types", "layers_block_type", "block_types")
STATE_SPACE_KEYS = ("state_size", "mamba_d_state", "ssm_cfg", "ssm_state_size", "mamba_d_conv")
_ALIBI = "adds ALiBi to its scores, which is not served"
_INDEX = "chooses the keys it reads by an index, which is not served"
_RECURRENT = "is recurrent; only attention is served"
_SHAPES = "has keys and values of different shapes in its layers, which is not served"
_TWICE = "attends more than once in a layer, which is not served"
# A key that holds anything but nothing, and what it says of the model.
REASONS = {
    "is_encoder_decoder": "has an encoder; only decoder-only models are served",
    "vision_config": "wraps a model of images; only text models are served",
    "audio_config": "wraps a model of sound; only text models are served",
    "text_config": "wraps a text model; only text models themselves are served",
    "use_bidirectional_attention": "reads in both directions; only causal models are served",
    "num_kv_shared_layers": "has layers that share keys and values, which is not served",
    "index_topk": _INDEX,
    "alibi": _ALIBI,
}
TYPE_REASONS = {
    "bloom": _ALIBI,
    "diffllama": _TWICE,
    "doge": "adds a mask of its own to attention, which is not served",
    "gemma4_text": _SHAPES,
    "gemma4_unified_text": _SHAPES,
    "hrm_text": _TWICE,
    "jetmoe": "has an attention head a selected expert, which is not served",
    "longcat_flash": _TWICE,
    "mimo_v2_flash": _SHAPES,
    "minimax_m3_vl_text": _INDEX,
    "mpt": _ALIBI,
    "rwkv": _RECURRENT,
    "xlstm": _RECURRENT,
}


def refuse(config: Config, kind: str) -> None:
    """Raises UserError, which names `kind` and the reason, for an architecture that the engine would compute wrongly.

    `config` is config.json's content, or better all of a configuration's attributes.
    """
    if reason := TYPE_REASONS.get(config.get("model_type", "")):
        raise UserError(f"{kind} {reason}")
    for key, reason in REASONS.items():
        if config.get(key):
            raise UserError(f"{kind} {reason}")
    layers = next((config[key] for key in LAYER_KEYS if config.get(key)), None)
    for layer in sorted(set(layers or ()) - SERVED_LAYERS):
        raise UserError(f"{kind} has layers of type {layer} ({LAYER_REASONS.get(layer, 'unknown')}), not served")
    if layers is None and any(config.get(key) for key in STATE_SPACE_KEYS):
        raise UserError(f"{kind} has state-space layers; only attention is served")


def shape_of(config: Config, generation: Config) -> ModelShape:
    """Raises KeyError for a size that the configuration lacks."""
    heads, hidden = int(_find(config, "num_attention_heads")), int(_find(config, "hidden_size"))
    vocab_size = int(config["vocab_size"])
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ModelShape(
        num_layers=int(_find(config, "num_hidden_layers")),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, hidden // heads),
        intermediate_size=int(config.get("moe_intermediate_size") or _find(config, "intermediate_size", 4 * hidden)),
        vocab_size=vocab_size,
        max_model_len=_max_model_len(config),
        eos_token_ids=tuple(end for end in ends if end < vocab_size),  # another is never written
        experts_per_token=int(config.get("num_experts_per_tok") or 1),
        fused_on=fused_backends(config),
    )


def _find(config: Config, key: str, default: int | None = None) -> Any:
    """Raises KeyError(key) where no name of it holds a value and there is no default."""
    for name in (key, *ALIASES[key]):
        if config.get(name) is not None:
            return config[name]
    if default is None:
        raise KeyError(key)
    return default


def _max_model_len(config: Config) -> int:
    """longrope turns all positions another way once one is beyond the original context: rows would not be alike."""
    longest = int(_find(config, "max_position_embeddings"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if "longrope" in (part.get("rope_type"), part.get("type")):
            original = part.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
            longest = min(longest, int(original or longest))
    return longest


def _kv_heads(config: Config, heads: int) -> int:
    if config.get("kv_lora_rank"):
        return heads  # latent keys and values are kept as they are attended to, a head each
    if config.get("multi_query"):
        return 1
    inner = config.get("attn_config") or {}
    return int(config.get("num_key_value_heads") or inner.get("kv_n_heads") or heads)


def _head_dim(config: Config, default: int) -> int:
    """Of keys; shorter values are padded to it."""
    if config.get("kv_lora_rank"):
        return int(config["qk_nope_head_dim"]) + int(config["qk_rope_head_dim"])
    return int(config.get("head_dim") or default)
