"""A checkpoint's own codes on a GPU: GPTQ's, AWQ's and compressed-tensors' through the kernels for 4 and FP8 bits."""

from typing import Any

import torch
from torch import nn

from engine.forward.gpu.fp8_linear import MULTIPLE, Fp8Linear
from engine.forward.gpu.packed_linear import PackedLinear
from engine.machine.device import Device, can_run
from engine.model.linear_schemes import linear_scheme
from engine.model.stored_weights import StoredLinear
from kernels.gpu.matmul.quantized_weights import GROUPS, pack_codes


def keep_codes(model: Any, stored: dict[str, StoredLinear], device: Device) -> int:
    """Puts the codes of `stored`, by path, in the place of their dense layers; returns how many found a kernel.

    The others keep the weights that their codes stand for: 8 bits with zero points, groups that are no runs of inputs
    or no power of two, FP8 on a GPU without it.
    """
    kept = 0
    for path, linear in stored.items():
        dense = model.get_submodule(path)
        made = _packed(linear, dense) if linear.bits == 4 else _fp8(linear, dense, device)
        if made is not None:
            model.set_submodule(path, made.to(device.name))
            kept += 1
    return kept


def _packed(linear: StoredLinear, dense: nn.Linear) -> PackedLinear | None:
    group = dense.in_features // len(linear.scales)
    # A channel's one scale is that of all its groups.
    repeats = group // GROUPS[0] if group % GROUPS[0] == 0 else 1
    if linear.group_of_input is not None or group // repeats not in GROUPS or linear.zeros is None:
        return None
    scales = linear.scales.repeat_interleave(repeats, 0)
    offsets = (8 - linear.zeros.float().repeat_interleave(repeats, 0)) * scales
    bias = None if dense.bias is None else dense.bias.detach()
    return PackedLinear(pack_codes(linear.codes, scales), bias, None, offsets if bool(offsets.any()) else None)


def _fp8(linear: StoredLinear, dense: nn.Linear, device: Device) -> Fp8Linear | None:
    fits = dense.in_features % MULTIPLE == 0 and dense.out_features % MULTIPLE == 0
    is_fp8 = linear.codes.dtype == torch.float8_e4m3fn
    if not (is_fp8 and fits and can_run(device, linear_scheme("fp8", "triton"))):
        return None
    bias = None if dense.bias is None else dense.bias.detach()
    return Fp8Linear(linear.codes, linear.scales, bias)
