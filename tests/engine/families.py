"""Every family of models that is held to transformers, as a tiny random model, and every one that is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Small against prompts of 20 to 130 tokens, so that it ends within shared prefixes, chunks, labels and answers.
WINDOW = 24

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
ALL_HEADS: dict[str, Any] = {"num_key_value_heads": None}
HEAD_16: dict[str, Any] = {"head_dim": 16}
SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
SOME_SLIDING = SLIDING | {"use_sliding_window": True, "max_window_layers": 1}
MIXED = SLIDING | {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
GROUPED = ROUTED | {"n_group": 1, "topk_group": 1}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "num_key_value_heads": None}


@dataclass(frozen=True)
class Family:
    """`special` is what its layers do beside full attention and a gated MLP, in the words of docs/models.md."""

    name: str
    model_type: str
    special: tuple[str, ...]
    config: dict[str, Any]

    @property
    def id(self) -> str:
        return self.name.replace(" ", "-")


def family(name: str, model_type: str, special: str = "", **config: Any) -> Family:
    return Family(name, model_type, tuple(special.split(", ")) if special else (), config)


SERVED = (
    family("AFMoE", "afmoe", "sliding window, experts", **MIXED, **EXPERTS, num_dense_layers=1, num_shared_experts=1),
    family("Apertus", "apertus"),
    family("Arcee", "arcee"),
    family("Aria (text)", "aria_text", "experts", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
    family(
        "Beam", "beam", "sliding window, experts", **MIXED, **GROUPED, mlp_layer_types=["dense", "sparse", "sparse"]
    ),
    family("BERT (decoder)", "bert", "learned positions", is_decoder=True, **ALL_HEADS),
    family("BERT generation", "bert-generation", "learned positions", is_decoder=True, **ALL_HEADS),
    family("BioGPT", "biogpt", "learned positions", **ALL_HEADS),
    family("BitNet", "bitnet"),
    family("Cohere", "cohere", "scaled logits"),
    family("Cohere 2", "cohere2", "sliding window, scaled logits", **MIXED),
    family("Cohere 2 MoE", "cohere2_moe", "sliding window, experts", **MIXED, **EXPERTS),
    family("CTRL", "ctrl", "fixed positions", n_embd=64, n_layer=2, n_head=4, dff=96, n_positions=256, **ALL_HEADS),
    family("CWM", "cwm", "sliding window", **MIXED),
    family("DeepSeek V2", "deepseek_v2", "latent attention, experts", **ROUTED, **LATENT),
    family("DeepSeek V3", "deepseek_v3", "latent attention, experts", **GROUPED, **LATENT),
    family("dots.1", "dots1", "sliding window, experts", **MIXED, **GROUPED),
    family("ELECTRA (decoder)", "electra", "learned positions", is_decoder=True, **ALL_HEADS),
    family("Ernie 4.5", "ernie4_5"),
    family("Ernie 4.5 MoE", "ernie4_5_moe", "experts", **EXPERTS, moe_num_experts=4, moe_k=2),
    family("EXAONE 4", "exaone4", "sliding window", **MIXED),
    family("EXAONE MoE", "exaone_moe", "sliding window, experts", **MIXED, **EXPERTS),
    family("FlexOlmo", "flex_olmo", "experts", **EXPERTS),
    family("Flint", "flint", "sliding window, sinks, experts", **MIXED, **EXPERTS),
    family("Gemma", "gemma", **HEAD_16),
    family(
        "Gemma 2",
        "gemma2",
        "sliding window, soft-cap",
        **HEAD_16,
        **SLIDING,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=5.0,
    ),
    family("Gemma 3 (text)", "gemma3_text", "sliding window", **HEAD_16, **MIXED),
    family("GLM", "glm", "partial rotary", **HEAD_16),
    family("GLM-4", "glm4", "partial rotary", **HEAD_16),
    family("GLM-4 MoE", "glm4_moe", "partial rotary, experts", **GROUPED),
    family("GLM-4 MoE Lite", "glm4_moe_lite", "latent attention, experts", **GROUPED, **LATENT),
    family("GPT-2", "gpt2", "learned positions", **GPT),
    family("GPT-BigCode", "gpt_bigcode", "learned positions, one KV head", **GPT),
    family("GPT-NeoX", "gpt_neox", "partial rotary", **ALL_HEADS),
    family("GPT-OSS", "gpt_oss", "sliding window, sinks, experts", **HEAD_16, **SLIDING, **LOCAL_EXPERTS),
    family("GPT-SW3", "gpt-sw3", "learned positions", **GPT),
    family("Granite", "granite", "scaled logits", attention_multiplier=0.3, logits_scaling=2.0),
    family("Granite MoE", "granitemoe", "experts", **LOCAL_EXPERTS),
    family(
        "Granite MoE, attention only", "granitemoehybrid", "experts", **LOCAL_EXPERTS, layer_types=["attention"] * 2
    ),
    family("Granite MoE, shared expert", "granitemoeshared", "experts", **LOCAL_EXPERTS, shared_intermediate_size=32),
    family("Granite MoE SWA", "granitemoe_swa", "sliding window, sinks, experts", **MIXED, **LOCAL_EXPERTS),
    family("Granite SWA", "granite_swa", "sliding window, sinks", **MIXED),
    family("Helium", "helium", **HEAD_16),
    family("HunYuan", "hunyuan_v1_dense", **HEAD_16),
    family("HunYuan MoE", "hunyuan_v1_moe", "experts", **HEAD_16, num_experts=4, moe_topk=2),
    family("Hy 3", "hy_v3", "experts", **EXPERTS),
    family("HyperCLOVA X", "hyperclovax"),
    family("InternLM 3", "internlm3"),
    family("IQuest Coder", "iquestcoder"),
    family("Jais 2", "jais2"),
    family("Kolibri 1", "kolibri1", "sliding window, experts", **MIXED, **EXPERTS, **HEAD_16),
    family("Laguna", "laguna", "sliding window, experts", **MIXED, **EXPERTS),
    family("Llama", "llama"),
    family("Mellum", "mellum", "sliding window, experts", **MIXED, **EXPERTS),
    family("MiniCPM 3", "minicpm3", "latent attention", **LATENT),
    family("MiniMax M2", "minimax_m2", "partial rotary, experts", **LOCAL_EXPERTS, **HEAD_16, rotary_dim=8),
    family("Ministral", "ministral", "sliding window", **HEAD_16, **MIXED),
    family("Ministral 3", "ministral3", "sliding window", **SLIDING),
    family("Mistral", "mistral", "sliding window", **SLIDING),
    family("Mixtral", "mixtral", "sliding window, experts", **SLIDING, **LOCAL_EXPERTS),
    family("ModernBERT decoder", "modernbert-decoder", "sliding window", local_attention=WINDOW, **ALL_HEADS),
    family("NanoChat", "nanochat", "capped logits"),
    family("Nemotron", "nemotron", "partial rotary"),
    family("OLMo", "olmo"),
    family("OLMo 2", "olmo2"),
    family("OLMo 3", "olmo3", "sliding window", **MIXED),
    family("OLMoE", "olmoe", "experts", **EXPERTS),
    family("OPT", "opt", "learned positions", ffn_dim=96, word_embed_proj_dim=64, **ALL_HEADS),
    family("Persimmon", "persimmon", "partial rotary", **ALL_HEADS),
    family("Phi", "phi", "partial rotary"),
    family("Phi-3", "phi3", "sliding window", **SLIDING),
    family("PhiMoE", "phimoe", "sliding window, experts", **SLIDING, **LOCAL_EXPERTS),
    family("Qwen2", "qwen2"),
    family("Qwen2, sliding", "qwen2", "sliding window", **SOME_SLIDING),
    family(
        "Qwen2-MoE",
        "qwen2_moe",
        "sliding window, experts",
        **SOME_SLIDING,
        **EXPERTS,
        shared_expert_intermediate_size=32,
    ),
    family("Qwen3", "qwen3", **HEAD_16),
    family("Qwen3, sliding", "qwen3", "sliding window", **HEAD_16, **SOME_SLIDING),
    family("Qwen3-MoE", "qwen3_moe", "sliding window, experts", **HEAD_16, **SOME_SLIDING, **EXPERTS),
    family("Seed-OSS", "seed_oss", **HEAD_16),
    family("SmolLM3", "smollm3", "layers without rotary", no_rope_layer_interval=2),
    family("Solar Open", "solar_open", "experts", **ROUTED),
    family("StableLM", "stablelm", "partial rotary"),
    family("StarCoder2", "starcoder2", "sliding window", **SLIDING),
    family("VaultGemma", "vaultgemma", "sliding window, soft-cap", **HEAD_16, **MIXED, attn_logit_softcapping=0.5),
    family("Youtu", "youtu", "latent attention", **LATENT),
)

# Reason, as the message has it: the families, by model type, that are refused for it.
REFUSED: dict[str, tuple[str, ...]] = {
    "has state-space layers": ("bamba", "falcon_h1", "falcon_mamba", "jamba", "mamba", "mamba2"),
    "linear attention": (
        "bailing_hybrid",
        "granitemoehybrid",
        "kimi_linear",
        "minimax",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_text",
        "qwen3_next",
    ),
    "a state space or convolutions beside attention": ("inkling_text", "zamba", "zamba2", "zaya"),
    "short convolutions": ("lfm2", "lfm3"),
    "recurrent": ("recurrent_gemma", "rwkv", "xlstm"),
    "attention within chunks": ("llama4_text",),
    "adds ALiBi": ("bloom", "mpt"),
    "chooses the keys it reads by an index": (
        "axk2",
        "deepseek_v32",
        "deepseek_v4",
        "glm_moe_dsa",
        "hy_v4",
        "minimax_m3_vl_text",
    ),
    "has layers that share keys and values": ("gemma3n_text",),
    "has keys and values of different shapes in its layers": ("gemma4_text", "mimo_v2_flash"),
    "attends more than once in a layer": ("diffllama", "hrm_text", "longcat_flash"),
    "adds a mask of its own": ("doge",),
    "has an attention head a selected expert": ("jetmoe",),
    "takes no attention function by name": ("codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "openai-gpt"),
    "has an encoder": ("bart", "mbart", "pegasus", "t5", "whisper"),
    "wraps a": ("emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "llama4", "mllama", "phi4_multimodal", "qwen2_vl"),
}

# Where a configuration of nothing but defaults would be served.
REFUSED_CONFIG: dict[str, dict[str, Any]] = {"lfm2": {"full_attn_idxs": [2]}}


def save_tiny(model_type: str, config: dict[str, Any], folder: Path) -> Any:
    """Makes a random model in `folder` and returns it."""
    torch.manual_seed(0)
    filled = AutoConfig.for_model(model_type, **(SIZES | config))
    model: Any = AutoModelForCausalLM.from_config(filled, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)  # spreads the logits, so that no two tokens tie
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return model
