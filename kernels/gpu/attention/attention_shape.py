"""The heads of a model's attention, and the tiles that hold them."""

from dataclasses import dataclass

from kernels.gpu.tuning.attention_config import AttentionConfig


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What all steps of a model have in common; `page` is the cache's block size in tokens, `width` the bytes of a
    number that is multiplied.
    """

    heads: int
    kv_heads: int
    dim: int
    page: int
    width: int = 2

    @property
    def room(self) -> int:
        """Dimensions of 16 bits that take as much of a processor's memory as a head: tiles are chosen by them."""
        return self.dim * self.width // 2

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def slices(self) -> int:
        """Programs a KV head: more than one where its query heads are too many for one tile."""
        return -(-self.group // 64)

    @property
    def slice_heads(self) -> int:
        return -(-self.group // self.slices)

    @property
    def tiles(self) -> tuple[int, int]:
        """Dimensions of a tile, and of a second one where both make up the head (80, 96, 192): else 0, and masked."""
        return dim_tiles(self.dim)

    @property
    def block_dim(self) -> int:
        return max(_power_of_two(self.dim), 16)

    def small_rows(self, config: AttentionConfig) -> int:
        """A tile holds all heads of its slice, so some are higher than the table says."""
        return max(config.small, _power_of_two(self.slice_heads))

    def large_rows(self, config: AttentionConfig) -> int:
        return max(config.large, self.small_rows(config))


def dim_tiles(dim: int) -> tuple[int, int]:
    """Matrix units take 16 dimensions at least, and tiles are powers of two."""
    first = _power_of_two(dim + 1) // 2
    rest = dim - first
    return (first, rest) if rest >= 16 and rest == _power_of_two(rest) else (max(_power_of_two(dim), 16), 0)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
