"""How large a key or a value is in the cache."""

# Behind the bytes of a row in 8 bits: what one of its steps is worth.
SCALE_BYTES = 4
# Elements that a vector of bytes is made of.
CHUNK = 64


def row_bytes(dim: int, size: int) -> int:
    """Of a row of `dim` elements of `size` bytes; of 1 byte it has its scale with it."""
    return dim * size + (SCALE_BYTES if size == 1 else 0)
