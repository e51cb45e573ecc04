"""The swapped layers against the ones that transformers wrote."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import engine.forward.attention
from engine.forward.attention import StepAttention
from engine.forward.cpu.fused_layer import FusedLayer, fuse_layers
from engine.forward.kv_cache import KVCache
from engine.forward.quantize import quantize_linears
from engine.forward.step_inputs import step_inputs
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, KVFormat
from kernels.processor import takes_bytes
from kernels.segments import Segment, Segments

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
    step = StepAttention(output, step_inputs(output, "cpu"), cache)
    rows = torch.arange(ROWS)[None]
    with torch.inference_mode():
        return model.model(input_ids=rows * 5, position_ids=rows, use_cache=False, step=step).last_hidden_state


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
    assert fuse_layers(model, torch.float32) == 2
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
    fuse_layers(model, torch.float32)
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
    fuse_layers(model, torch.float32)
    got = hidden(model, asked)
    assert got.shape == wanted.shape
    assert torch.allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", pytest.param("int8", marks=BYTES)])
def test_a_step_makes_the_calls_of_the_one_before_again(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many rows; what it reads and where it writes are its own. Another number of rows begins anew."""
    torch.manual_seed(0)
    model_class, config = MODELS[name]
    config = deepcopy(config)
    config.head_dim = 64 if kind == "int8" else config.head_dim
    model: Any = model_class(config).eval().requires_grad_(False)
    model.set_attn_implementation(engine.forward.attention.NAME)
    if kind == "int8":
        quantize_linears(model)
    elif kind == "bfloat16":
        model.bfloat16()
    kept = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8_ROWS}[kind]
    fuse_layers(model, torch.bfloat16 if kind == "bfloat16" else torch.float32)
    reruns = []
    rerun = StepAttention.rerun
    monkeypatch.setattr(StepAttention, "rerun", lambda step, recorded: reruns.append(step) or rerun(step, recorded))
    again = prefilled_and_read(model, kept)
    # The second layer's in the second step and both in the third; in the first step the first one's buffers grew.
    assert len(reruns) == 3
    anew = prefilled_and_read(model, kept, anew=True)
    assert len(reruns) == 3
    assert all(torch.equal(one, other) for one, other in zip(again, anew, strict=True))
    assert not torch.equal(again[0], again[1])


def prefilled_and_read(model: Any, kv_format: KVFormat, *, anew: bool = False) -> list[torch.Tensor]:
    """Hidden states of steps that fill a cache and read it; `anew`: none makes the calls of another again."""
    cache = KVCache(2, 2, 120, model.config.head_dim, kv_format, "cpu")
    results = []
    steps = ((20, 0, 0, []), (20, 30, 20, [(0, 20)]), (20, 60, 12, [(0, 8), (30, 34)]), (5, 90, 0, []))
    for rows, slot, position, read in steps:
        segments, at = [Segment(0, rows, slot, slot + rows, position)], 0
        for start, end in read:
            segments.append(Segment(0, rows, start, end, at))
            at += end - start
        ids = torch.arange(rows) + slot
        output = replace(
            SchedulerOutput.causal_rows(rows),
            position_ids=np.arange(position, position + rows, dtype=np.int64),
            slot_mapping=np.arange(slot, slot + rows, dtype=np.int64),
            segments=Segments.of(segments),
        )
        if anew:
            model.model.layers[0].workspace.moves += 1
        step = StepAttention(output, step_inputs(output, "cpu"), cache)
        places = torch.from_numpy(output.position_ids)[None]
        with torch.inference_mode():
            made = model.model(input_ids=ids[None], position_ids=places, use_cache=False, step=step)
        results.append(made.last_hidden_state)
    return results


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
    assert fuse_layers(model, torch.bfloat16) == 2
    got = hidden(model)
    assert got.dtype == torch.float32
    assert float((got - exact).square().mean()) < float((plain - exact).square().mean()) / 1.5


def test_what_is_not_known_stays_as_it_is() -> None:
    other = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert fuse_layers(other, torch.float32) == 0
    assert fuse_layers(LlamaForCausalLM(MODELS["Llama"][1]).half(), torch.float16) == 0
