"""Every family of models that is held to transformers, as a tiny random model, and those that are refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Small against prompts of 20 to 110 tokens, so that it ends within shared prefixes, chunks and answers.
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
SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
ALTERNATING = SLIDING | {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Family:
    name: str
    model_type: str
    special: str = ""
    config: dict[str, Any] = field(default_factory=dict)


def family(name, model_type, special="", **config):
    return Family(name, model_type, special, config)

H64 = {"head_dim": 16}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 4}
SERVED = [
 family("AFMoE","afmoe","",**ALTERNATING,**EXPERTS,num_dense_layers=1,num_shared_experts=1),
 family("Apertus","apertus"),
 family("Arcee","arcee"),
 family("Aria text","aria_text",**EXPERTS),
 family("AXK1","axk1",**EXPERTS, **LATENT),
 family("BitNet","bitnet"),
 family("Cohere","cohere"),
 family("Cohere 2","cohere2",**ALTERNATING),
 family("Cohere 2 MoE","cohere2_moe",**ALTERNATING,**EXPERTS),
 family("CWM","cwm",**ALTERNATING),
 family("CTRL","ctrl",num_key_value_heads=None),
 family("DBRX","dbrx",d_model=64,n_heads=4,n_layers=2,max_seq_len=256,attn_config={"kv_n_heads":2},ffn_config={"ffn_hidden_size":32,"moe_num_experts":4,"moe_top_k":2}),
 family("DeepSeek V2","deepseek_v2",**EXPERTS,**LATENT, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1),
 family("DeepSeek V3","deepseek_v3",**EXPERTS,**LATENT, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1,n_group=1,topk_group=1),
 family("DiffLlama","diffllama"),
 family("Doge","doge"),
 family("dots.1","dots1",**ALTERNATING,**EXPERTS,n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1,n_group=1,topk_group=1),
 family("Ernie 4.5","ernie4_5"),
 family("Ernie 4.5 MoE","ernie4_5_moe",**EXPERTS,moe_num_experts=4,moe_k=2),
 family("EXAONE 4","exaone4",**ALTERNATING),
 family("EXAONE MoE","exaone_moe",**ALTERNATING,**EXPERTS),
 family("FlexOlmo","flex_olmo",**EXPERTS),
 family("Flint","flint",**ALTERNATING,**EXPERTS),
 family("Gemma","gemma",**H64),
 family("Gemma 2","gemma2",**H64,**SLIDING),
 family("Gemma 3","gemma3_text",**H64,**ALTERNATING),
 family("Gemma 4","gemma4_text",**H64,**ALTERNATING),
 family("GLM","glm",**H64),
 family("GLM-4","glm4",**H64),
 family("GLM-4 MoE","glm4_moe",**EXPERTS,n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1,n_group=1,topk_group=1),
 family("GLM-4 MoE lite","glm4_moe_lite",**EXPERTS,**LATENT,n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1,n_group=1,topk_group=1),
 family("GPT-2","gpt2",num_key_value_heads=None,n_embd=64,n_layer=2,n_head=4,n_positions=256),
 family("GPT-BigCode","gpt_bigcode",n_embd=64,n_layer=2,n_head=4,n_positions=256),
 family("GPT-NeoX","gpt_neox",num_key_value_heads=None),
 family("GPT-OSS","gpt_oss",**H64,**SLIDING,**EXPERTS),
 family("Granite","granite"),
 family("Granite SWA","granite_swa",**ALTERNATING),
 family("Granite MoE","granitemoe",**EXPERTS),
 family("Granite MoE SWA","granitemoe_swa",**ALTERNATING,**EXPERTS),
 family("Granite MoE hybrid","granitemoehybrid",**EXPERTS,layer_types=["attention","attention"]),
 family("Granite MoE shared","granitemoeshared",**EXPERTS,shared_intermediate_size=32),
 family("Helium","helium",**H64),
 family("HRM","hrm_text"),
 family("HunYuan","hunyuan_v1_dense",**H64),
 family("HunYuan MoE","hunyuan_v1_moe",**H64,**EXPERTS),
 family("HY3","hy_v3",**EXPERTS),
 family("HyperCLOVA X","hyperclovax"),
 family("Jais 2","jais2"),
 family("JetMoe","jetmoe",**EXPERTS),
 family("Kolibri","kolibri1",**ALTERNATING),
 family("Laguna","laguna",**ALTERNATING,**EXPERTS),
 family("Llama","llama"),
 family("LongCat","longcat_flash",**LATENT,**EXPERTS),
 family("Mellum","mellum",**ALTERNATING,**EXPERTS),
 family("MiMo V2","mimo_v2_flash",**ALTERNATING,**EXPERTS),
 family("MiniCPM3","minicpm3",**LATENT),
 family("MiniMax M2","minimax_m2",**EXPERTS,**H64),
 family("Ministral","ministral",head_dim=16,**ALTERNATING),
 family("Ministral 3","ministral3",**SLIDING),
 family("Mistral","mistral",**SLIDING),
 family("Mixtral","mixtral",**SLIDING,**EXPERTS),
 family("ModernBERT decoder","modernbert-decoder",num_key_value_heads=None,local_attention=WINDOW),
 family("NanoChat","nanochat"),
 family("Nemotron","nemotron"),
 family("OLMo","olmo"),
 family("OLMo 2","olmo2"),
 family("OLMo 3","olmo3",**ALTERNATING),
 family("OLMoE","olmoe",**EXPERTS),
 family("OPT","opt",num_key_value_heads=None,ffn_dim=96,word_embed_proj_dim=64),
 family("Persimmon","persimmon",num_key_value_heads=None),
 family("Phi","phi"),
 family("Phi-3","phi3",**SLIDING),
 family("PhiMoE","phimoe",**SLIDING,**EXPERTS),
 family("Qwen2","qwen2"),
 family("Qwen2 w","qwen2",**SLIDING,use_sliding_window=True,max_window_layers=1),
 family("Qwen2-MoE","qwen2_moe",**EXPERTS,shared_expert_intermediate_size=32,**SLIDING,use_sliding_window=True,max_window_layers=1),
 family("Qwen3","qwen3",**H64,**SLIDING,use_sliding_window=True,max_window_layers=1),
 family("Qwen3-MoE","qwen3_moe",**EXPERTS,**H64,**SLIDING,use_sliding_window=True,max_window_layers=1),
 family("Seed-OSS","seed_oss",**H64),
 family("SmolLM3","smollm3",**SLIDING,use_sliding_window=True,no_rope_layer_interval=2),
 family("Solar","solar_open",**EXPERTS,n_routed_experts=4, n_shared_experts=1),
 family("StableLM","stablelm"),
 family("StarCoder2","starcoder2",**SLIDING),
 family("VaultGemma","vaultgemma",**H64,**ALTERNATING),
 family("Youtu","youtu",**LATENT),
 family("Zaya","zaya"),
 family("BERT","bert",num_key_value_heads=None,is_decoder=True),
 family("BioGPT","biogpt"),
 family("GPT-J","gptj"),
 family("Beam","beam"),
]


def config_of(family: Family) -> Any:
    return AutoConfig.for_model(family.model_type, **(SIZES | family.config))


def save_tiny(family: Family, folder: Path) -> Any:
    """A random model of the family in `folder`; returns it."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return model
