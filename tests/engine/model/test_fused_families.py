"""The table of families that fuse: transformers builds the layer that it names, and the device's own takes it."""

from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from engine.forward.cpu.fused_body import can_fuse
from engine.forward.gpu.fused_layer import swap_layers
from engine.model.fused_families import FUSED_FAMILIES, FusedFamily, family_of, fused_backends
from tests.engine.families import SERVED, SIZES

by_type = pytest.mark.parametrize("family", FUSED_FAMILIES, ids=lambda family: family.model_type)


def drawn(family: FusedFamily) -> Any:
    sizes = SIZES | {family.activation_key: family.activation, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **sizes)).requires_grad_(False)


@by_type
def test_its_layers_are_the_class_and_have_the_parts_that_it_names(family: FusedFamily) -> None:
    model = drawn(family)
    layer = model.model.layers[0]
    assert type(layer).__name__ == family.layer
    assert hasattr(layer.self_attn, "q_norm") == family.head_norms
    assert hasattr(layer, "pre_feedforward_layernorm") == family.post_norms
    assert hasattr(layer.self_attn, "qkv_proj") == hasattr(layer.mlp, "gate_up_proj") == family.packed
    zeros = bool((layer.input_layernorm.weight == 0).all())
    assert zeros == family.adds_one, "a norm that adds one begins at nothing"


@by_type
def test_a_backend_takes_it_where_the_table_says(family: FusedFamily) -> None:
    assert can_fuse(drawn(family)) == ("torch" in family.backends)
    assert swap_layers(drawn(family)) == ("triton" in family.backends)


def test_plans_count_on_what_the_table_says() -> None:
    assert fused_backends({"model_type": "llama"}) == ("torch", "triton")
    assert fused_backends({"model_type": "qwen3", "hidden_act": "silu"}) == ("triton",)
    assert fused_backends({"model_type": "llama", "hidden_act": "gelu"}) == ()
    assert fused_backends({"model_type": "gemma2"}) == ("triton",)
    assert fused_backends({"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"}) == ("triton",)
    assert fused_backends({"model_type": "gemma", "hidden_act": "gelu"}) == ()
    assert fused_backends({"model_type": "cohere"}) == ()


def test_no_other_family_that_is_served_has_a_layer_of_that_name() -> None:
    known = {family.model_type for family in FUSED_FAMILIES}
    others = [family.model_type for family in SERVED if family.model_type not in known]
    assert len(others) > 20
    classes = {type(AutoConfig.for_model(name)) for name in others}
    names = {AutoModelForCausalLM._model_mapping[one].__name__ for one in classes}
    fused = {family.layer.replace("DecoderLayer", "ForCausalLM") for family in FUSED_FAMILIES}
    assert {"LlamaForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM"} < fused
    assert not names & fused
    assert family_of(object(), "torch") is None
