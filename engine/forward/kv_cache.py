"""The KV of all layers, in slots: what block tables point into."""

import torch
from torch import Tensor

from kernels.kv_format import row_bytes


class KVCache:
    """One (kv_heads, slots, head_dim) tensor a layer for keys and one for values, and room for a step's own rows.

    In uint8 they are rows of `kernels.cpu.attention.byte_kv`, (kv_heads, slots, head_dim + 4).

    A slot range is contiguous within a head, so that attention reads it in place. Pages are touched, and so resident,
    only once they are written. `own` is one pair for all layers: each overwrites what the one before it left.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, num_slots: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        self.head_dim = head_dim
        shape = (num_kv_heads, num_slots, row_bytes(head_dim, dtype.itemsize) // dtype.itemsize)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._own = self._rows(0)

    @property
    def num_kv_heads(self) -> int:
        return self.keys[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    def of_layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values; `key`, `value` (kv_heads, rows, head_dim) are what is about to be written."""
        promised = (self.num_kv_heads, self.head_dim)
        assert key.shape[::2] == value.shape[::2] == promised, (key.shape, value.shape, promised)
        return self.keys[layer], self.values[layer]

    def own(self, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values, as they are kept, of at least `rows` rows; they last for a layer."""
        if self._own[0].shape[1] < rows:
            self._own = self._rows(rows)
        return self._own

    def _rows(self, count: int) -> tuple[Tensor, Tensor]:
        kv_heads, _, width = self.keys[0].shape
        keys, values = self.keys[0].new_empty(2, kv_heads, count, width)
        return keys, values
