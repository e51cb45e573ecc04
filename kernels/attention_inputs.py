"""The tensors that a layer's attention over shared prefixes reads."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AttentionInputs:
    """query (rows, heads, dim); the step's keys and values (rows, kv_heads, dim); the cache (blocks, page, kv_heads,
    dim), whose slot s is entry s % page of block s // page.

    Any strides, values as keys, but 1 for the last: a cache whose heads lie apart is a permuted view. The step's keys
    have the cache's dtype, so that a token's KV is the same number wherever it is read. In float8_e4m3fn keys and
    values have scales (kv_heads,), the factors that were divided out.
    """

    query: Tensor
    step_key: Tensor
    step_value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def __post_init__(self) -> None:
        dtypes = {tensor.dtype for tensor in self.keys_and_values}
        cache_strides = self.key_cache.stride(), self.value_cache.stride()
        assert all(tensor.stride(-1) == 1 for tensor in (self.query, *self.keys_and_values)), "dim is not innermost"
        assert self.step_key.stride() == self.step_value.stride(), (self.step_key.stride(), self.step_value.stride())
        assert cache_strides[0] == cache_strides[1], cache_strides
        assert len(dtypes) == 1, dtypes
        assert not self.is_fp8 or (self.key_scales is not None and self.value_scales is not None), "float8 has scales"

    @property
    def keys_and_values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.step_key, self.step_value, self.key_cache, self.value_cache

    @property
    def is_fp8(self) -> bool:
        return self.key_cache.dtype == torch.float8_e4m3fn
