"""How keys and values are kept: what a cache is planned with, allocated by, and what kernels choose by."""

from dataclasses import dataclass

# Behind the bytes of a row of `INT8_ROWS`: what one of its steps is worth.
SCALE_BYTES = 4
# Elements that a vector of bytes is made of.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class KVFormat:
    """`dtype` is torch's name of an element of `itemsize` bytes; no two formats have one dtype.

    `row_scale_bytes` lie behind the elements of every row. `has_head_scales`: an element is a number over the scale of
    its layer and KV head, which the cache holds apart. `hadamard`: queries and keys go through a Hadamard transform
    before they are rounded, which spreads the few large elements over all.
    """

    name: str
    dtype: str
    itemsize: int
    purpose: str
    row_scale_bytes: int = 0
    has_head_scales: bool = False
    hadamard: bool = False

    def row_bytes(self, dim: int) -> int:
        """Bytes of a key, or of a value, of `dim` elements."""
        return dim * self.itemsize + self.row_scale_bytes

    def row_width(self, dim: int) -> int:
        """Elements that a tensor of `dtype` has for a row: its scale counts as elements too."""
        return self.row_bytes(dim) // self.itemsize


FLOAT32 = KVFormat("float32", "float32", 4, "a model in float32")
BFLOAT16 = KVFormat("bfloat16", "bfloat16", 2, "a model in bfloat16")
FLOAT16 = KVFormat("float16", "float16", 2, "a model in float16")
# `kernels.cpu.attention.byte_kv` makes and reads its rows.
INT8_ROWS = KVFormat(
    "int8 rows", "uint8", 1, "int8 over bfloat16 on a CPU that multiplies bytes", SCALE_BYTES, hadamard=True
)
# `kernels.gpu.attention.kv_write` makes it, `kernels.gpu.attention.prefix_attention` reads it.
FP8 = KVFormat("fp8", "float8_e4m3fn", 1, "kv_cache_dtype: fp8 on a GPU", has_head_scales=True)

KV_FORMATS = (FLOAT32, BFLOAT16, FLOAT16, INT8_ROWS, FP8)
_BY_DTYPE = {kv_format.dtype: kv_format for kv_format in KV_FORMATS}


def kv_format_of(dtype: object) -> KVFormat:
    """The format of a cache of `dtype`, torch's or its name."""
    return _BY_DTYPE[str(dtype).removeprefix("torch.")]
