"""A model's sizes, from its configuration alone: what planning needs, without weights."""

from dataclasses import dataclass

from engine.config import EngineConfig
from kernels.backend import Backend
from kernels.kv_format import KVFormat


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder-only model. `experts_per_token` and `intermediate_size` describe what one token runs.

    `fused_on`: the backends whose fused layer computes its layers (`engine.model.fused_families`).
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    experts_per_token: int = 1
    fused_on: tuple[Backend, ...] = ()

    @property
    def matmul_params(self) -> int:
        """Weights that multiply each token: attention's four projections and a gated MLP, the head not counted."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size * self.experts_per_token
        return self.num_layers * (attention + mlp)

    @property
    def head_params(self) -> int:
        """Weights that multiply each row whose logits are asked for."""
        return self.hidden_size * self.vocab_size

    def kv_bytes_per_token(self, kv_format: KVFormat) -> int:
        return 2 * self.num_layers * self.num_kv_heads * kv_format.row_bytes(self.head_dim)


def num_kv_blocks(shape: ModelShape, config: EngineConfig, kv_format: KVFormat) -> int:
    """Whole blocks that `kv_cache_memory` holds."""
    return config.kv_cache_memory // (shape.kv_bytes_per_token(kv_format) * config.block_size)


def max_model_len(shape: ModelShape, config: EngineConfig) -> int:
    return min(shape.max_model_len, config.max_model_len or shape.max_model_len)


def max_request_tokens(shape: ModelShape, config: EngineConfig, kv_format: KVFormat) -> int:
    """Tokens (prompt and answer) that one request may have: the context's limit, or what the KV budget holds.

    Two blocks are kept back, because a request's prefix and its own part begin on blocks of their own.
    """
    held = (num_kv_blocks(shape, config, kv_format) - 2) * config.block_size
    return max(min(max_model_len(shape, config), held), 0)
