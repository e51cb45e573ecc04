"""The KV of all layers, in slots: what block tables point into."""

import torch
from torch import Tensor

from engine.forward.kv_scales import KVScales
from kernels.kv_format import KVFormat


class KVCache:
    """One (kv_heads, slots, row width) tensor a layer for keys and one for values, and room for a step's own rows.

    `kv_format` says what a row is: of `head_dim` elements, or more where a scale lies behind them. `scales` belong to
    a format that has one a head.

    A slot range is contiguous within a head, so that attention reads it in place. Pages are touched, and so resident,
    only once they are written. `own` is one pair for all layers: each overwrites what the one before it left.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        num_slots: int,
        head_dim: int,
        kv_format: KVFormat,
        device: str,
        scales: KVScales | None = None,
    ) -> None:
        assert (scales is not None) == kv_format.has_head_scales, kv_format
        self.scales = scales
        self.head_dim = head_dim
        self.kv_format = kv_format
        shape, dtype = (num_kv_heads, num_slots, kv_format.row_width(head_dim)), getattr(torch, kv_format.dtype)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._own = self._rows(0)

    @property
    def num_kv_heads(self) -> int:
        return self.keys[0].shape[0]

    def scales_of(self, layer: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Of a layer's keys and values, (kv_heads,) each; none where the format has no such."""
        return (None, None) if self.scales is None else (self.scales.keys[layer], self.scales.values[layer])

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
