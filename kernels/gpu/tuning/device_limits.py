"""What the devices hold, and which one is at hand."""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program and a processor hold: shared memory in bytes, 32-bit registers, warps of `warp_size` lanes."""

    shared_program: int
    shared_processor: int
    registers: int
    warps: int
    warp_size: int
    processors: int


# A100, H100 (SXM) and MI300X, by their vendors' documents. An AMD processor is a compute unit of four SIMDs, each with
# 512 vector registers a lane and eight waves at most.
LIMITS = {
    "sm_80": Limits(163 * 1024, 164 * 1024, 65536, 64, 32, 108),
    "sm_90": Limits(227 * 1024, 228 * 1024, 65536, 64, 32, 132),
    "gfx942": Limits(64 * 1024, 64 * 1024, 4 * 512 * 64, 32, 64, 304),
}


def architecture(device: torch.device) -> str:
    """`sm_80`, `sm_90`, `gfx942`, or what the driver says; `interpreter` for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    return _cuda_architecture(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _cuda_architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    name = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    return name if torch.version.hip else f"sm_{properties.major}{properties.minor}"


def processors_of(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # in the interpreter: so few that some tiles are cut and some are not
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
