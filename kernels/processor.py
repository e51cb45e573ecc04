"""What this processor can do, of what is compiled for it; asked without torch and numba, which take seconds to load."""

from llvmlite import binding

from kernels.kv_format import CHUNK

_FEATURES = binding.get_host_cpu_features()
WIDE_REGISTERS = bool(_FEATURES.get("avx512f", False))
NATIVE_BFLOAT16 = bool(_FEATURES.get("avx512bf16", False))
# Four products of bytes summed in one instruction; where there is none, 8 bits are left to torch.
NATIVE_BYTES = bool(_FEATURES.get("avx512vnni", False))


def takes_bytes(dim: int) -> bool:
    """Whether keys and values of `dim` elements may be in 8 bits here: it multiplies bytes, in whole vectors."""
    return NATIVE_BYTES and dim % CHUNK == 0
