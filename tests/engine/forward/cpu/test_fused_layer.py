"""The swapped layers against the ones that transformers wrote."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import engine.forward.attention
from engine.forward.cpu.attention import CpuAttention
from engine.forward.cpu.fused_body import FusedBody, fuse_body
from engine.forward.cpu.fused_layer import FusedLayer
from engine.forward.cpu.int8_linear import quantize_linears
from engine.forward.kv_cache import KVCache
from engine.forward.step_inputs import step_inputs
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, KVFormat
from kernels.processor import takes_bytes

ROWS = 50
SIZES = {
    "vocab_size": 300,
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "initializer_range": 0.2,
}
MODELS = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "Llama with biases": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "Mistral with a window": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=7)),
    "Qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
}


def hidden(model: Any, asked: Sequence[int] = range(ROWS), kv_format: KVFormat = FLOAT32) -> torch.Tensor:
    cache = KVCache(2, 2, 0, model.config.head_dim, kv_format, "cpu")
    output = replace(SchedulerOutput.causal_rows(ROWS), reads=Reads.samples(np.array(asked), np.array(asked)))
    attention = CpuAttention(cache).prepare(output, step_inputs(output, "cpu"))
    rows = torch.arange(ROWS)[None]
    with torch.inference_mode():
        made = model.model(input_ids=rows * 5, position_ids=rows, use_cache=False, step_attention=attention)
    return made.last_hidden_state


def drawn(model_class: Any, config: Any) -> Any:
    """A model whose every weight is drawn, attention by our name."""
    torch.manual_seed(0)
    model: Any = model_class(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    model.set_attn_implementation(engine.forward.attention.NAME)
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
def test_equals_the_layer_that_it_replaces(name: str, quantized: bool) -> None:
    model = drawn(*MODELS[name])
    if quantized:
        quantize_linears(model)
    wanted = hidden(model)
    assert fuse_body(model, torch.float32)
    assert isinstance(model.model, FusedBody)
    assert {type(layer) for layer in model.model.layers} == {FusedLayer}
    # In 8 bits, a last bit of a sum moves an activation to the next of its 255 steps.
    assert float((hidden(model) - wanted).abs().max()) < (0.2 if quantized else 2e-5)


BYTES = pytest.mark.skipif(not takes_bytes(64), reason="this processor has no products of bytes")


@BYTES
def test_int8_keeps_keys_and_values_in_8_bits() -> None:
    """Which moves a hidden state by no more than keys and values in bfloat16 do, twice over."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES | {"head_dim": 64})).eval().requires_grad_(False)
    model.set_attn_implementation(engine.forward.attention.NAME)
    quantize_linears(model)
    fuse_body(model, torch.float32)
    wanted, got, plain = (hidden(model, kv_format=kept) for kept in (FLOAT32, INT8_ROWS, BFLOAT16))
    error, rounding = (float((made - wanted).square().mean().sqrt()) for made in (got, plain))
    assert 0 < error < 2 * rounding


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("asked", [[], [0], [3, ROWS - 1]])
def test_the_last_layer_computes_the_asked_rows_alone(name: str, asked: list[int]) -> None:
    torch.manual_seed(0)
    model_class, config = MODELS[name]
    model: Any = model_class(config).eval().requires_grad_(False)
    model.set_attn_implementation(engine.forward.attention.NAME)
    wanted = hidden(model)[:, asked]
    fuse_body(model, torch.float32)
    got = hidden(model, asked)
    assert got.shape == wanted.shape
    assert torch.allclose(got, wanted, atol=2e-5)


def test_bfloat16_rounds_less_than_the_layer_that_it_replaces() -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(MODELS["Llama"][1]).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    model.set_attn_implementation(engine.forward.attention.NAME)
    model.bfloat16()
    plain = hidden(model).float()
    exact = hidden(model.float())
    model.bfloat16()
    assert fuse_body(model, torch.bfloat16)
    got = hidden(model)
    assert got.dtype == torch.float32
    assert float((got - exact).square().mean()) < float((plain - exact).square().mean()) / 1.5


def test_what_is_not_known_stays_as_it_is() -> None:
    other = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert not fuse_body(other, torch.float32)
    assert not fuse_body(LlamaForCausalLM(MODELS["Llama"][1]).half(), torch.float16)
    between = LlamaForCausalLM(MODELS["Llama"][1])
    between.model.embed_norm = torch.nn.LayerNorm(60)
    assert not fuse_body(between, torch.float32), "a body with a part more does more"
