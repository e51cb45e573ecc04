"""A key's or value's size in the cache, and where 8 bits serve: for planning, which loads neither torch nor numba."""

from llvmlite import binding

# Behind the bytes of a row in 8 bits: what one of its steps is worth.
SCALE_BYTES = 4
# Elements that a vector of bytes is made of.
CHUNK = 64
# Four products of bytes summed in one instruction; where there is none, 8 bits are left to torch.
NATIVE_BYTES = bool(binding.get_host_cpu_features().get("avx512vnni", False))


def takes_bytes(dim: int) -> bool:
    """Whether this processor multiplies bytes, and `dim` elements are whole vectors of them."""
    return NATIVE_BYTES and dim % CHUNK == 0


def row_bytes(dim: int, size: int) -> int:
    """Of a row of `dim` elements of `size` bytes; of 1 byte it has its scale with it."""
    return dim * size + (SCALE_BYTES if size == 1 else 0)
