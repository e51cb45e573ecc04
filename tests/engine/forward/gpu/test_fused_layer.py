"""Layers as a GPU has them, in Triton's interpreter, against transformers' own in torch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine.errors import UserError
from engine.forward.gpu import packed_linear
from engine.forward.gpu.attention import GpuStepAttention
from engine.forward.gpu.fused_layer import GpuLayer, PostNormLayer, swap_layers
from engine.forward.gpu.packed_linear import PackedLinear, pack_integers, stacked
from engine.forward.kv_cache import KVCache
from engine.forward.step_inputs import step_inputs
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.gpu.attention.kv_write import rope_write_kernel
from kernels.gpu.attention.merge_kernel import merge_kernel
from kernels.gpu.attention.prefix_attention_kernel import attend_kernel
from kernels.gpu.layer.add_normed import add_normed_kernel
from kernels.gpu.layer.gate import gate_kernel
from kernels.gpu.layer.rms_norm import rms_norm_kernel
from kernels.gpu.matmul import quantized_matmul
from kernels.gpu.matmul.quantized_matmul import matmul_tile
from kernels.gpu.matmul.quantized_weights import dequantized, quantize_weight
from kernels.kv_format import FLOAT32, KVFormat
from tests.engine.forward.cpu.test_fused_layer import MODELS as FUSED_MODELS
from tests.engine.forward.cpu.test_fused_layer import ROWS, SIZES, drawn, hidden

# What the CPU fuses, and more.
MODELS = FUSED_MODELS | {
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES)),
    "Qwen3 with a window": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    "Gemma": (GemmaForCausalLM, GemmaConfig(**SIZES)),
    "Gemma 2": (
        Gemma2ForCausalLM,
        Gemma2Config(**SIZES, sliding_window=7, query_pre_attn_scalar=30, attn_logit_softcapping=3.0),
    ),
    "Gemma 3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SIZES, sliding_window=7, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=30
        ),
    ),
    "Phi-3": (Phi3ForCausalLM, Phi3Config(**SIZES, pad_token_id=0)),
    "Phi-3 with a window, partly turned": (
        Phi3ForCausalLM,
        Phi3Config(
            **SIZES,
            pad_token_id=0,
            sliding_window=7,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.6},
        ),
    ),
}


POST_NORMS = ("Gemma 2", "Gemma 3")


def stepped(step: SchedulerOutput | int, head_dim: int = 20, kv_format: KVFormat = FLOAT32) -> GpuStepAttention:
    """Of a step, or of one sequence of so many rows."""
    step = SchedulerOutput.causal_rows(step) if isinstance(step, int) else step
    return GpuStepAttention(step, step_inputs(step, "cpu"), KVCache(2, 2, 0, head_dim, kv_format, "cpu"))


@pytest.mark.parametrize("asked", [range(ROWS), [0, 3]], ids=["all", "two"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_layers_that_it_replaces(name: str, asked: Any) -> None:
    """Biases, windows, caps, and every family that is known."""
    model = drawn(*MODELS[name])
    wanted = hidden(model)
    assert swap_layers(model)
    assert {type(layer) for layer in model.model.layers} == {PostNormLayer if name in POST_NORMS else GpuLayer}
    rows = torch.arange(ROWS)[None]
    step = stepped(replace(SchedulerOutput.causal_rows(ROWS), reads=Reads.samples(np.array(asked), np.array(asked))))
    with torch.inference_mode():
        got = model.model(input_ids=rows * 5, position_ids=rows, use_cache=False, step_attention=step).last_hidden_state
    assert float((got - wanted[..., list(asked), :]).abs().max()) < 2e-5


OWN_KERNELS = {
    "Llama": [
        "rms_norm_kernel",
        "rope_write_kernel",
        "attend_kernel",
        "merge_kernel",
        "rms_norm_kernel",
        "gate_kernel",
    ],
    "Gemma 2": [
        "rope_write_kernel",
        "attend_kernel",
        "merge_kernel",
        "add_normed_kernel",
        "gate_kernel",
        "add_normed_kernel",
    ],
}


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma", "Gemma 2", "Gemma 3", "Phi-3"])
def test_a_layer_is_ten_launches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of ours and products; all else that touches a tensor in a layer only looks at it in another shape.

    A step whose attention is not cut has no merge. The first layer of a family with norms behind attention and MLP has
    one more: nothing before it normed its input.
    """
    model = drawn(*MODELS[name])
    swap_layers(model)
    launched: list[str] = []
    for kernel in (
        rms_norm_kernel,
        add_normed_kernel,
        gate_kernel,
        rope_write_kernel,
        attend_kernel,
        merge_kernel,
    ):
        monkeypatch.setattr(kernel, "run", counting(kernel.run, launched))
    step = stepped(ROWS)
    states, angles = torch.randn(1, ROWS, model.config.hidden_size), model.model.rotary_emb
    positions = torch.arange(ROWS)[None]
    cos_sin = angles(states, positions, "full_attention") if name == "Gemma 3" else angles(states, positions)
    counts = []
    with torch.inference_mode():
        for layer in model.model.layers:
            layer(states.clone(), position_embeddings=cos_sin, step_attention=step)  # plans the step
            launched.clear()
            with ProductsAndPasses() as seen:
                states = layer(states, position_embeddings=cos_sin, step_attention=step)
            assert (seen.products, seen.passes) == (4, [])
            counts.append(len(launched) + seen.products)
    merges = launched.count("merge_kernel")
    assert counts == [10 + merges if name in POST_NORMS else 9 + merges, 9 + merges]
    wanted = OWN_KERNELS["Gemma 2" if name in POST_NORMS else "Llama"]
    assert launched == [one for one in wanted if one != "merge_kernel" or merges]


def counting(run: Any, launched: list[str]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        launched.append(run.__self__.fn.__name__)
        seen = ProductsAndPasses.current
        ProductsAndPasses.current = None  # the interpreter computes with torch
        try:
            return run(*args, **kwargs)
        finally:
            ProductsAndPasses.current = seen

    return counted


class ProductsAndPasses(TorchDispatchMode):
    """Counts products, and names what else reads or writes a tensor on the device."""

    current: "ProductsAndPasses | None" = None
    VIEWS = frozenset(
        [
            "view",
            "_unsafe_view",
            "t",
            "transpose",
            "select",
            "slice",
            "split",
            "split_with_sizes",
            "unbind",
            "unsqueeze",
            "permute",
            "alias",
            "detach",
            "empty",
            "expand",
            "as_strided",
            "_reshape_alias",
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.passes: list[str] = []

    def __enter__(self) -> "ProductsAndPasses":
        ProductsAndPasses.current = self
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        ProductsAndPasses.current = None
        super().__exit__(*raised)

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if ProductsAndPasses.current is self and name not in self.VIEWS:
            if name in ("mm", "addmm", "addmm_", "linear"):
                self.products += 1
            else:
                self.passes.append(name)
        return function(*args, **(kwargs or {}))


def test_what_is_not_known_stays_as_it_is() -> None:
    assert not swap_layers(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=30)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_layers_side_by_side_give_what_each_gives(bits: int, bias: bool) -> None:
    torch.manual_seed(0)
    layers: list[Any] = [nn.Linear(64, n, bias=bias).half().requires_grad_(False) for n in (32, 7, 16)]
    magnitudes = torch.rand(64) + 0.1 if bits == 8 else None
    layers = layers if bits == 16 else [PackedLinear.of(layer, bits, magnitudes) for layer in layers]
    rows = torch.randn(1, 5, 64).half()
    got = stacked(*layers)(rows)
    assert got.dtype == torch.float16
    assert float((got - torch.cat([layer(rows) for layer in layers], -1)).abs().max()) < 2e-3


def test_a_packed_layer_is_its_weights() -> None:
    """8 bits with smoothing included: what activations are multiplied by, weights are divided by."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48).requires_grad_(False)
    rows = torch.randn(9, 64) * torch.logspace(-1, 1, 64)
    for bits, limit in ((4, 1e-5), (8, 0.05)):
        packed = PackedLinear.of(linear, bits, rows.abs().amax(0) if bits == 8 else None)
        factors = torch.ones(64) if packed.factors is None else packed.factors
        want = (rows * factors) @ dequantized(packed.weight).t() + linear.bias
        assert float((packed(rows) - want).abs().max()) < limit * float(want.abs().max())


def test_no_rows_give_no_rows() -> None:
    """A step within a long prompt asks for none behind its last layer."""
    weight = quantize_weight(torch.randn(48, 64), 4)
    with_zeros = PackedLinear(weight, None, None, torch.ones_like(weight.scales))
    linear = nn.Linear(64, 48).requires_grad_(False)
    for layer in (with_zeros, PackedLinear.of(linear, 4), PackedLinear.of(linear, 8, torch.ones(64))):
        assert layer(torch.randn(1, 0, 64)).shape == (1, 0, 48)


def test_a_product_is_cut_for_the_device_that_its_rows_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's codes are packed before they are moved there."""
    packed, rows, tile, cut = PackedLinear.of(nn.Linear(256, 48), 4), torch.randn(3, 256), matmul_tile, []
    monkeypatch.setattr(packed_linear, "processors_of", lambda device: {rows.device: 2}[device])
    monkeypatch.setattr(quantized_matmul, "matmul_tile", lambda *sizes: cut.append(tile(*sizes)) or cut[-1])
    packed(rows)
    assert [made.SPLITS for made in cut] == [2]


@pytest.mark.parametrize(("quantization", "packed"), [("int8", 6), ("int4", 7)])
def test_which_layers_are_packed(quantization: Any, packed: int) -> None:
    """With 8 bits what comes back from an MLP stays."""
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
    assert pack_integers(model, quantization) == 2 * packed
    assert isinstance(model.model.layers[0].mlp.down_proj, PackedLinear) == (quantization == "int4")


def test_layers_that_no_group_divides_stay_and_none_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 96})).requires_grad_(False)
    assert pack_integers(model, "int4") == 2
    assert isinstance(model.model.layers[0].mlp.down_proj, PackedLinear)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    with pytest.raises(UserError, match="int4 needs layers of a multiple of 32 inputs"):
        pack_integers(LlamaForCausalLM(LlamaConfig(**SIZES)), "int4")
