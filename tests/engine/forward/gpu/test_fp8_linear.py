"""FP8 layers, on the CPU's products of the same formats."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import engine.forward.attention
from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward.gpu.fp8_linear import Fp8Linear, round_linears_to_fp8
from engine.forward.gpu.fused_layer import GpuLayer, swap_layers
from engine.forward.gpu.packed_linear import stacked
from engine.machine.device import resolve_device
from kernels.gpu.layer.e4m3 import e4m3_rows_reference
from kernels.kv_format import BFLOAT16
from tests.engine.forward.cpu.test_fused_layer import SIZES, hidden
from tests.engine.forward.gpu.test_fused_layer import ROWS, stepped
from tests.kernels.conftest import wide_sums  # noqa: F401  # bfloat16 products in the interpreter

WIDE = SIZES | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def linear(outputs: int, *, bias: bool) -> nn.Linear:
    return nn.Linear(64, outputs, bias=bias).bfloat16().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_its_codes(bias: bool) -> None:
    """Products of what activations and weights are rounded to, exactly but for bfloat16's own rounding."""
    torch.manual_seed(0)
    plain, rows = linear(48, bias=bias), torch.randn(2, 9, 64).bfloat16() * 30
    layer = Fp8Linear.of(plain)
    codes, scales = e4m3_rows_reference(rows.view(-1, 64))
    want = (codes.float() * scales) @ (layer.codes.float() * layer.scales.t()).t()
    want = want.bfloat16() + plain.bias if bias else want.bfloat16()
    got = layer(rows)
    assert (got.shape, got.dtype) == ((2, 9, 48), torch.bfloat16)
    assert float((got.view(-1, 48).float() - want.float()).abs().max()) <= 2**-6 * float(want.abs().max())
    whole = plain(rows).view(-1, 48).float()
    assert float((got.view(-1, 48).float() - whole).norm() / whole.norm()) < 0.06


def test_layers_side_by_side_give_what_each_gives() -> None:
    torch.manual_seed(0)
    layers = [Fp8Linear.of(linear(n, bias=True)) for n in (32, 16, 16)]
    rows = torch.randn(5, 64).bfloat16()
    assert torch.equal(stacked(*layers)(rows), torch.cat([layer(rows) for layer in layers], -1))


@pytest.mark.usefixtures("wide_sums")
@pytest.mark.parametrize(
    ("model_class", "config", "rounded"),
    [(LlamaForCausalLM, LlamaConfig, 14), (Gemma2ForCausalLM, Gemma2Config, 14), (Phi3ForCausalLM, Phi3Config, 8)],
)
def test_swapped_layers_run_on_eight_bits(model_class: Any, config: Any, rounded: int) -> None:
    """All of them, as transformers' own layers do on the same products, and near what whole weights give."""
    torch.manual_seed(0)
    sizes = WIDE | {"head_dim": 16, "pad_token_id": 0}
    model: Any = model_class(config(**sizes)).bfloat16().eval().requires_grad_(False)
    model.set_attn_implementation(engine.forward.attention.NAME)
    whole = hidden(model, kv_format=BFLOAT16).float()
    assert round_linears_to_fp8(model) == rounded
    wanted = hidden(model, kv_format=BFLOAT16).float()
    assert swap_layers(model)
    layer = model.model.layers[0]
    assert isinstance(layer, GpuLayer)
    assert all(isinstance(made, Fp8Linear) for made in (layer.qkv, layer.gate_up, layer.out, layer.down))
    rows = torch.arange(ROWS)[None]
    with torch.inference_mode():
        got = model.model(
            input_ids=rows * 5, position_ids=rows, use_cache=False, step_attention=stepped(ROWS, 16, BFLOAT16)
        )
    same, near = (float((got.last_hidden_state.float() - other).norm() / other.norm()) for other in (wanted, whole))
    assert same < 0.2, "the interpreter cuts bfloat16 off, which moves some codes by a step, 6 %"
    assert 1e-3 < near < 0.3


def test_sides_that_no_block_divides_stay_and_none_is_refused() -> None:
    odd = LlamaForCausalLM(LlamaConfig(**WIDE | {"head_dim": 16, "intermediate_size": 100})).requires_grad_(False)
    assert round_linears_to_fp8(odd) == 8
    with pytest.raises(UserError, match="fp8 needs layers of a multiple of 16"):
        round_linears_to_fp8(LlamaForCausalLM(LlamaConfig(**SIZES)))


def test_a_cpu_has_none() -> None:
    with pytest.raises(UserError, match="fp8 is for GPUs alone; take int8"):
        resolve_device(EngineConfig(device="cpu", quantization="fp8"))
