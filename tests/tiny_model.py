"""A random Llama of two layers with the embedded model's tokenizer and chat template."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer


def write_tiny_model(folder: Path) -> Path:
    tokenizer = load_tokenizer(resolve_model("embedded"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # spreads the logits, so that no two tokens tie
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
