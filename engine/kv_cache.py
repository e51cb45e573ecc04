"""The KV of all layers, in slots: what block tables point into."""

import torch
from torch import Tensor


class KVCache:
    """One (kv_heads, slots, head_dim) tensor a layer for keys and one for values.

    A slot range is contiguous within a head, so that attention reads it in place. Pages are touched, and so
    resident, only once they are written.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, num_slots: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (num_kv_heads, num_slots, head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    def write(self, layer: int, slots: slice | Tensor, keys: Tensor, values: Tensor) -> None:
        self.keys[layer][:, slots] = keys
        self.values[layer][:, slots] = values
