"""Weights that a checkpoint holds in few bits, as they come from the hub: GPTQ, AWQ and compressed-tensors.

What is read is what the format says (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978): codes, a scale for each group of
inputs and output channel, and zero points. The model's own code runs on the weights that they stand for, so any device
serves such a checkpoint; a device with a kernel for them keeps the codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Where in a word AWQ puts the columns of eight, four bits each.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredLinear:
    """A layer's weight: `(codes - zeros) * scales`, with a row of scales and zeros for each group of inputs.

    codes (outputs, inputs) uint8, or float8_e4m3fn without zeros; scales (groups, outputs) float32; zeros (groups,
    outputs) uint8, or None. `group_of_input` (inputs,) int64 is given where groups are no runs of inputs.
    """

    bits: int
    codes: "Tensor"
    scales: "Tensor"
    zeros: "Tensor | None" = None
    group_of_input: "Tensor | None" = None

    def dense(self) -> "Tensor":
        """(outputs, inputs) in float32."""
        codes = self.codes.float().t()
        inputs, groups = len(codes), len(self.scales)
        if self.group_of_input is not None:
            zeros = self.zeros[self.group_of_input].float() if self.zeros is not None else 0.0
            by_input: Tensor = (codes - zeros) * self.scales[self.group_of_input]
            return by_input.t().contiguous()
        grouped = codes.view(groups, inputs // groups, -1)
        zeros = self.zeros[:, None].float() if self.zeros is not None else 0.0
        weight: Tensor = (grouped - zeros) * self.scales[:, None]
        return weight.view(inputs, -1).t().contiguous()


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """How a checkpoint's layers are read: `parts` are the names of a layer's tensors, of which each has its `key`."""

    name: str
    key: str
    parts: tuple[str, ...]
    read: "Callable[[Tensors], StoredLinear]"


def stored_format(config: Mapping[str, Any], kind: str) -> StoredFormat | None:
    """Of a config.json; None where weights are plain. Raises UserError, which begins with `kind`, for others."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not found:
        return None
    method = str(found.get("quant_method", ""))
    makers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}
    if method not in makers:
        raise UserError(f"{kind} has weights of {method or 'an unknown kind'}; served are {', '.join(sorted(makers))}")
    made = makers[method](found)
    if isinstance(made, str):
        raise UserError(f"{kind} has {method} weights {made}, which is not served")
    return made


def read_stored(folder: Path, found: StoredFormat) -> tuple[dict[str, "Tensor"], dict[str, StoredLinear]]:
    """All plain tensors of a folder's safetensors by name, and the packed layers by path."""
    from safetensors.torch import load_file

    plain: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        plain |= load_file(file)
    layers = sorted(name.removesuffix(f".{found.key}") for name in plain if name.endswith(f".{found.key}"))
    stored = {}
    for path in layers:
        parts = {part: plain.pop(name) for part in found.parts if (name := f"{path}.{part}") in plain}
        stored[path] = found.read(parts)
    return plain, stored


def _gptq(config: Mapping[str, Any]) -> StoredFormat | str:
    bits = int(config.get("bits", 4))
    if bits not in (4, 8):
        return f"of {bits} bits"
    # The first version of the format stores a zero point less one.
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def read(parts: Tensors) -> StoredLinear:
        codes = _unpacked(parts["qweight"].t(), bits).contiguous()
        zeros = (_unpacked(parts["qzeros"], bits) + less) & (2**bits - 1)
        scales = parts["scales"].float()
        return StoredLinear(bits, codes, scales, zeros, _groups(parts.get("g_idx"), codes.shape[1], len(scales)))

    return StoredFormat("gptq", "qweight", ("qweight", "qzeros", "scales", "g_idx"), read)


def _awq(config: Mapping[str, Any]) -> StoredFormat | str:
    if int(config.get("bits", config.get("w_bit", 4))) != 4:
        return f"of {config.get('bits')} bits"
    if str(config.get("version", "gemm")).lower() != "gemm":
        return f"in the layout {config['version']}"

    def read(parts: Tensors) -> StoredLinear:
        codes = _unpacked(parts["qweight"], 4, AWQ_ORDER).t().contiguous()
        return StoredLinear(4, codes, parts["scales"].float(), _unpacked(parts["qzeros"], 4, AWQ_ORDER))

    return StoredFormat("awq", "qweight", ("qweight", "qzeros", "scales"), read)


def _compressed_tensors(config: Mapping[str, Any]) -> StoredFormat | str:
    groups = list(dict(config.get("config_groups", {})).values())
    formats = {str(group.get("format") or config.get("format")) for group in groups}
    if len(groups) != 1:
        return f"in {len(groups)} groups of layers"
    weights, (layout,) = dict(groups[0]["weights"]), formats
    bits, is_float = int(weights["num_bits"]), weights.get("type") == "float"
    if layout == "pack-quantized" and bits in (4, 8) and not is_float:
        packed = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
        return StoredFormat("compressed-tensors", "weight_packed", packed, lambda parts: _pack_quantized(parts, bits))
    if layout in ("int-quantized", "float-quantized", "naive-quantized") and bits == 8:
        if weights.get("strategy") not in ("channel", "tensor"):
            return f"with scales by {weights.get('strategy')}"
        plain = ("weight", "weight_scale", "weight_zero_point", "input_scale")
        return StoredFormat("compressed-tensors", "weight_scale", plain, _plain_codes)
    return f"in the layout {layout} with {bits} bits"


def _pack_quantized(parts: Tensors, bits: int) -> StoredLinear:
    outputs, inputs = parts["weight_shape"].tolist()
    codes = _unpacked(parts["weight_packed"], bits)[:, :inputs].contiguous()
    scales = parts["weight_scale"].float().t().contiguous()
    middle = 2 ** (bits - 1)
    packed = parts.get("weight_zero_point")
    zeros = codes.new_full(scales.shape, middle) if packed is None else _unpacked(packed.t(), bits)[:, :outputs]
    return StoredLinear(bits, codes, scales, zeros, _groups(parts.get("weight_g_idx"), inputs, len(scales)))


def _plain_codes(parts: Tensors) -> StoredLinear:
    """Of 8 bits, a scale an output channel or one for all."""
    import torch

    codes = parts["weight"]
    scales = parts["weight_scale"].float().reshape(1, -1).expand(1, len(codes)).contiguous()
    if codes.dtype == torch.float8_e4m3fn:
        return StoredLinear(8, codes, scales)
    zeros = parts["weight_zero_point"].int() if "weight_zero_point" in parts else torch.zeros(1, dtype=torch.int32)
    zeros = (zeros.reshape(1, -1).expand(1, len(codes)) + 128).to(torch.uint8)
    return StoredLinear(8, (codes.int() + 128).to(torch.uint8), scales, zeros)


def _groups(given: "Tensor | None", inputs: int, groups: int) -> "Tensor | None":
    """None where groups are runs of inputs, as they are but for GPTQ in the order of activations."""
    import torch

    if given is None or bool((given == torch.arange(inputs) // (inputs // groups)).all()):
        return None
    return given.long()


def _unpacked(words: "Tensor", bits: int, order: tuple[int, ...] | None = None) -> "Tensor":
    """(rows, words) int32 to (rows, words * 32 / bits) uint8, the lowest bits first, or in `order` of each word."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (words[..., None] >> shifts & (2**bits - 1)).to(torch.uint8)
    if order is not None:
        codes = codes[..., torch.tensor(order).argsort()]
    flat: Tensor = codes.flatten(1)
    return flat
