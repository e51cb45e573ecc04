"""Packs a model's linear layers as a scheme of `engine.model.linear_schemes` says."""

from collections.abc import Callable
from typing import Any

from engine.config import Quantization
from engine.forward.cpu.int8_linear import quantize_linears
from engine.model.linear_schemes import LinearScheme
from kernels.backend import Backend


def _gpu_int8(model: Any) -> int:
    from engine.forward.gpu.packed_linear import pack_integers  # where Triton is not installed, nothing asks for these

    return pack_integers(model, "int8")


def _gpu_int4(model: Any) -> int:
    from engine.forward.gpu.packed_linear import pack_integers

    return pack_integers(model, "int4")


def _gpu_fp8(model: Any) -> int:
    from engine.forward.gpu.fp8_linear import round_linears_to_fp8

    return round_linears_to_fp8(model)


# Replaces the layers in place and returns how many.
PACKERS: dict[tuple[Quantization, Backend], Callable[[Any], int]] = {
    ("none", "torch"): lambda _: 0,
    ("none", "triton"): lambda _: 0,
    ("int8", "torch"): quantize_linears,
    ("int8", "triton"): _gpu_int8,
    ("int4", "triton"): _gpu_int4,
    ("fp8", "triton"): _gpu_fp8,
}


def pack_linears(model: Any, scheme: LinearScheme) -> int:
    """Replaces the linear layers that the scheme packs, in place; returns how many.

    Raises UserError for a model that has none of them.
    """
    return PACKERS[scheme.quantization, scheme.backend](model)
