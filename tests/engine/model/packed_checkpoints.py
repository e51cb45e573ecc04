"""Checkpoints in the hub's packed formats, made of a plain one by the formats' definitions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
Layer = dict[str, Tensor]


def words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """(rows, codes) to (rows, words) int32, the lowest bits first; place i of a word holds code `order[i]` of it."""
    count = 32 // bits
    grouped = codes.long().view(len(codes), -1, count)
    grouped = grouped if order is None else grouped[..., list(order)]
    packed = (grouped << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def quantized(weight: Tensor, bits: int, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (outputs, inputs), scales and zeros (groups, outputs), codes from 0 on."""
    grouped = weight.float().view(len(weight), -1, group)
    most, middle = 2**bits - 1, 2 ** (bits - 1)
    if symmetric:
        scales = grouped.abs().amax(-1) / (middle - 1)
        zeros = torch.full_like(scales, middle)
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = (high - low) / most
        zeros = (-low / scales).round()
    scales = scales.half().float().clamp(min=1e-6)
    codes = (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, most)
    return codes.long().flatten(1), scales.t().contiguous(), zeros.t().long().contiguous()


def _gptq(weight: Tensor, permuted: bool = False) -> tuple[Layer, Tensor]:
    inputs = weight.shape[1]
    groups = torch.arange(inputs) // GROUP
    order = torch.randperm(inputs) if permuted else torch.arange(inputs)
    codes, scales, zeros = quantized(weight[:, order], 4, GROUP, symmetric=False)
    back = order.argsort()
    codes, groups = codes[:, back], groups[back]
    dense = ((codes.t() - zeros[groups]) * scales[groups]).t()
    less_one = (zeros - 1) & 15  # as the first version of the format stores them
    layer = {
        "qweight": words(codes, 4).t(),
        "qzeros": words(less_one, 4),
        "scales": scales.half(),
        "g_idx": groups.int(),
    }
    return layer, dense


def _awq(weight: Tensor) -> tuple[Layer, Tensor]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    codes, scales, zeros = quantized(weight, 4, GROUP, symmetric=False)
    layer = {"qweight": words(codes.t(), 4, order), "qzeros": words(zeros, 4, order), "scales": scales.half()}
    return layer, dense_of(codes, scales, zeros)


def _pack_quantized(weight: Tensor, bits: int, symmetric: bool) -> tuple[Layer, Tensor]:
    codes, scales, zeros = quantized(weight, bits, GROUP, symmetric=symmetric)
    layer = {
        "weight_packed": words(codes, bits),
        "weight_scale": scales.t(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        layer["weight_zero_point"] = words(zeros, bits).t()
    return layer, dense_of(codes, scales, zeros)


def _int_quantized(weight: Tensor) -> tuple[Layer, Tensor]:
    codes, scales, zeros = quantized(weight, 8, weight.shape[1], symmetric=True)
    layer = {"weight": (codes - 128).to(torch.int8), "weight_scale": scales.t()}
    return layer, dense_of(codes, scales, zeros)


def _float_quantized(weight: Tensor) -> tuple[Layer, Tensor]:
    scales = weight.float().abs().amax(1, keepdim=True) / 448
    codes = (weight / scales).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def dense_of(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    grouped = codes.view(len(codes), len(scales), -1).float()
    return ((grouped - zeros.t()[..., None]) * scales.t()[..., None]).flatten(1)


def _compressed(layout: str, bits: int, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", **weights}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], tuple[Layer, Tensor]]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}, _gptq),
    "gptq, in the order of activations": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        lambda weight: _gptq(weight, permuted=True),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, _awq),
    "w4a16": (_compressed("pack-quantized", 4, strategy="group"), lambda weight: _pack_quantized(weight, 4, True)),
    "w4a16, asymmetric": (
        _compressed("pack-quantized", 4, strategy="group", symmetric=False),
        lambda weight: _pack_quantized(weight, 4, False),
    ),
    "w8a16": (_compressed("pack-quantized", 8, strategy="group"), lambda weight: _pack_quantized(weight, 8, True)),
    "w8a8": (_compressed("int-quantized", 8, strategy="channel"), _int_quantized),
    "fp8": (_compressed("float-quantized", 8, strategy="channel", type="float"), _float_quantized),
}


def write(plain: Path, folder: Path, name: str) -> dict[str, Tensor]:
    """The plain checkpoint with its layers' weights packed; returns what each packed weight stands for."""
    quantization, pack = FORMATS[name]
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    tensors, dense = load_file(folder / "model.safetensors"), {}
    torch.manual_seed(0)
    for path in [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]:
        layer, dense[path] = pack(tensors.pop(f"{path}.weight"))
        tensors |= {f"{path}.{part}": tensor.contiguous() for part, tensor in layer.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return dense
