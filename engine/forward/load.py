"""Loads a model for serving, and refuses by name what the engine would compute wrongly."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import KVCacheDtype, Quantization
from engine.errors import UserError
from engine.forward.attention import NAME
from engine.forward.cpu.fused_body import can_fuse, fuse_body
from engine.forward.cpu.strict import hold_to_its_bits, one_thread, put_in_order, refuse_strict
from engine.forward.dealt_weights import dealing, keep_parts, taken_for
from engine.forward.kv_scales import KVScales, calibrate_kv_scales
from engine.forward.loaded_model import LoadedModel
from engine.forward.pack_linears import pack_linears
from engine.forward.probe import TOLERANCE, eager_logits, probe
from engine.forward.rank_group import RankGroup
from engine.machine.device import Device
from engine.model.architecture import refuse
from engine.model.checkpoint import ModelFiles, load_shape, weights_folder
from engine.model.linear_schemes import LinearScheme, linear_scheme
from engine.model.model_shape import ModelShape
from engine.model.stored_weights import StoredFormat, StoredLinear, read_stored, stored_format
from engine.stages import checkpoint, enter
from kernels.kv_format import kv_format_of

# Attention is called by name, though the class does not say so.
CALLED_BY_NAME = {"biogpt", "stablelm"}


def load_model(
    files: ModelFiles,
    device: Device,
    quantization: Quantization = "none",
    kv_cache_dtype: KVCacheDtype = "auto",
    *,
    strict: bool = False,
    group: RankGroup | None = None,
) -> LoadedModel:
    """Raises UserError where the architecture is not one that packed, prefix-shared attention computes rightly.

    `strict`: a row's logits are the same to the last bit in any step; a UserError where they cannot be. `group`: all of
    its ranks load the model at once, each its part.
    """
    if strict:
        refuse_strict(device)
    scheme = linear_scheme(quantization, device.backend)
    enter("loading the model")
    found = find_model(files, group)
    model, stored = read_weights(found, device, scheme, group)
    checkpoint()
    loses_bits = _loses_bits(model, device, scheme) or kv_cache_dtype != "auto"
    expected, tolerance = hold_to_its_own_code(model, found, device, scheme, loses_bits=loses_bits)
    checkpoint()
    scales = calibrate_kv_scales(model, found.shape) if kv_cache_dtype == "fp8" else None
    kept = keep_stored(model, stored, device, scheme)
    with one_thread() if strict else nullcontext():  # weights of fewer bits follow from products that torch makes
        loaded = pack(model, found.shape, device, scheme, scales, strict=strict, group=group)
    checkpoint()
    probe(loaded, expected, model, device, found.kind, max(tolerance, scheme.tolerance if kept else 0.0))
    if strict:
        hold_to_its_bits(loaded, found.kind)
    return loaded


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that can be served, before any weight is read. `kind` is what a message calls it."""

    kind: str
    folder: Path
    config: Any
    shape: ModelShape
    model_class: Any
    packed: StoredFormat | None = None


def find_model(files: ModelFiles, group: RankGroup | None = None) -> FoundModel:
    """First step. Raises UserError, by name, for an architecture that is not served."""
    shape, folder = load_shape(files, 1 if group is None else group.size), weights_folder(files)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind = f"model.path: {files.name} ({config.model_type})"
    refuse({**config.to_dict(), **vars(config)}, kind)
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    by_name = getattr(model_class, "_supports_attention_backend", False) or config.model_type in CALLED_BY_NAME
    if model_class is None or not by_name:
        raise UserError(f"{kind} takes no attention function by name, so it cannot be served")
    packed = stored_format(vars(config), kind)
    if packed is not None:
        del config.quantization_config  # transformers would look for a package that reads it
    return FoundModel(kind, folder, config, shape, model_class, packed)


def read_weights(
    found: FoundModel, device: Device, scheme: LinearScheme, group: RankGroup | None = None
) -> tuple[Any, dict[str, StoredLinear]]:
    """Second step: transformers' model on the device, in its dtype, or with all bits that fewer are then made of.

    Layers that the checkpoint packs have the weights that their codes stand for; the codes come too, by path.
    """
    dtype = getattr(torch, _exact_dtype(device) if scheme.weight_bits else device.dtype)
    plain, stored = ({}, {}) if found.packed is None else read_stored(found.folder, found.packed)
    weights = {f"{path}.weight": linear.dense().to(dtype) for path, linear in stored.items()}
    with nullcontext() if group is None else taken_for(device.name):
        model, info = found.model_class.from_pretrained(
            found.folder if found.packed is None else None,
            config=found.config,
            state_dict=plain | weights or None,
            dtype=dtype,
            attn_implementation=NAME,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **dealing(found.model_class, found.config, group),
        )
    if missing := info["missing_keys"]:  # transformers draws them
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise UserError(f"{found.kind} lacks {min(missing)}{more}: the checkpoint is not whole; get it again")
    if model.base_model is model:
        raise UserError(f"{found.kind} has no body apart from its head")
    if group is not None:
        keep_parts(model)
    _hold_rotation(model)
    return model.to(device.name).eval().requires_grad_(False), stored


def _hold_rotation(model: Any) -> None:
    """Dynamic RoPE turns by other angles only beyond the model's context, where no row of ours is. To look for one,
    each step would wait for a GPU, and a graph, which may read nothing back, could not be captured.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            module.rope_type = {layer: "default" if "dynamic" in kind else kind for layer, kind in kinds.items()}
        elif kinds is not None and "dynamic" in kinds:
            module.rope_type = "default"


def hold_to_its_own_code(
    model: Any, found: FoundModel, device: Device, scheme: LinearScheme, *, loses_bits: bool
) -> tuple[Tensor, float]:
    """Third step: the logits of the model's own code on the probe's tokens, and how far the packed model's may be.

    A model that is to lose bits is held to them tightly while it has them all; how much fewer bits then change is
    bounded by the scheme alone. Raises UserError where it gives other probabilities in packed rows.
    """
    if not loses_bits:
        return eager_logits(model, found.shape.vocab_size, device), TOLERANCE[device.dtype]
    exact = _exact_dtype(device)
    _round_parameters(model, getattr(torch, exact))
    expected = eager_logits(model, found.shape.vocab_size, device)
    whole = LoadedModel(model, found.shape, kv_format_of(exact))
    probe(whole, expected, model, device, found.kind, TOLERANCE[exact])
    return expected, scheme.tolerance


def keep_stored(model: Any, stored: dict[str, StoredLinear], device: Device, scheme: LinearScheme) -> int:
    """Puts a checkpoint's own codes in the place of weights, where the device has a kernel for them; returns how many.

    Another quantization that the job asks for is made of the weights.
    """
    if device.backend != "triton" or scheme.weight_bits or not stored:
        return 0
    from engine.forward.gpu.stored_linears import keep_codes  # where Triton is not installed, nothing asks for it

    return keep_codes(model, stored, device)


def pack(
    model: Any,
    shape: ModelShape,
    device: Device,
    scheme: LinearScheme,
    kv_scales: KVScales | None,
    *,
    strict: bool = False,
    group: RankGroup | None = None,
) -> LoadedModel:
    """Fourth step: linear layers as the scheme has them, then decoder layers of the device's own where all are known.

    The fifth is the probe's, of what this returns.
    """
    if scheme.weight_bits:
        pack_linears(model, scheme)
    elif _loses_bits(model, device, scheme):
        _round_parameters(model, getattr(torch, device.dtype))
    fused = _fuse(model, device, group)
    if strict:
        put_in_order(model)
    if fused != (device.backend in shape.fused_on):
        others = tuple(backend for backend in shape.fused_on if backend != device.backend)
        shape = replace(shape, fused_on=(*others, device.backend) if fused else others)
    kv_format = device.kv_format(shape, scheme.quantization, "auto" if kv_scales is None else "fp8")
    loaded = LoadedModel(model, shape, kv_format, kv_scales, strict=strict, group=group)
    loaded.waits_for_nothing = device.backend == "triton" and fused
    return loaded


def _exact_dtype(device: Device) -> str:
    """What fewer bits are made of: all that there are; on a GPU, where float32 may not fit, what it would hold."""
    return device.dtype if device.backend == "triton" else "float32"


def _loses_bits(model: Any, device: Device, scheme: LinearScheme) -> bool:
    """Whether linear layers get other weights than `_exact_dtype`'s; fused layers of a CPU round to bfloat16 apart."""
    return bool(scheme.weight_bits) or (device.backend == "torch" and device.dtype == "bfloat16" and can_fuse(model))


def _round_parameters(model: Any, dtype: torch.dtype) -> None:
    """In place, and no buffer: rotary frequencies in bfloat16 would turn the keys of a long prompt by other angles."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _fuse(model: Any, device: Device, group: RankGroup | None) -> bool:
    """Swaps the decoder layers for the device's own, in place, where all are known; returns whether they are.

    A GPU's own layers add what they make to the residual at once, without a sum over ranks: those keep transformers'.
    """
    if device.backend == "torch":
        return fuse_body(model, getattr(torch, device.dtype), group)
    if group is not None:
        return False
    from engine.forward.gpu.fused_layer import swap_layers  # where Triton is not installed, nothing asks for it

    return swap_layers(model)
