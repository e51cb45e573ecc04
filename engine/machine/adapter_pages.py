"""How an adapter's weights lie in the KV cache's memory: sizes and places, worked out before any weight is read.

A page is what one block holds of the keys, or of the values, of one head in one layer: contiguous memory. A block is a
page of each head's keys and values in every layer, and an adapter's weights of a layer lie in that layer's pages.
A matrix is a list of lines, a page as many as fit into it whole; so blocks may lie anywhere in the pool, and nothing is
lost to gaps between adapters of different ranks (S-LoRA, arXiv 2311.03285, section 5, pages of a hidden state's size).
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from engine.adapter_size import AdapterSize
from engine.config import EngineConfig
from engine.machine.device import Device
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import AdapterFiles, AdapterTarget
from engine.model.model_shape import ModelShape, num_kv_blocks
from kernels.processor import PROCESSOR

# Ranks are filled up to a multiple: whole vectors on a processor, the least that matrix units take on a GPU.
RANK_MULTIPLE = 16
GPU_COLUMNS = 64
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class AdapterPages:
    """Pages of `words` numbers of `dtype`, `per_block` of them in a block in each of `num_layers`.

    B's lines are of `columns` outputs: for each such panel of outputs, a line a rank.
    """

    dtype: str
    words: int
    per_block: int
    num_layers: int
    columns: int

    @classmethod
    def of(cls, shape: ModelShape, config: EngineConfig, device: Device) -> "AdapterPages":
        """Pages of no words where a block's memory cannot be seen as numbers of the adapters' dtype."""
        on_cpu = device.backend == "torch"
        kv_format = device.kv_format(shape, config.quantization, config.kv_cache_dtype)
        num_bytes = config.block_size * kv_format.row_bytes(shape.head_dim)
        itemsize = 4 if on_cpu else device.dtype_bytes
        return cls(
            dtype="float32" if on_cpu else device.dtype,
            words=0 if num_bytes % itemsize else num_bytes // itemsize,
            per_block=2 * shape.num_kv_heads,
            num_layers=shape.num_layers,
            columns=3 * PROCESSOR.lanes if on_cpu else GPU_COLUMNS,
        )

    @staticmethod
    def padded_rank(rank: int) -> int:
        return -(rank // -RANK_MULTIPLE) * RANK_MULTIPLE

    def panels(self, outputs: int) -> int:
        """Of a layer's outputs, wherever in a panel the first of them lies."""
        return -((outputs + self.columns - 1) // -self.columns)

    def layer_of(self, path: str) -> int:
        """The layer in whose pages a target's weights lie; what is in no layer lies in the first one's."""
        found = _LAYER.search(path)
        return int(found[1]) % self.num_layers if found else 0

    def pages_of(self, target: AdapterTarget) -> tuple[int, int]:
        """Of A and of B. Raises AdapterError where a page holds no whole line."""
        rank = self.padded_rank(target.rank)
        for width in (rank, self.columns):
            if width > self.words:
                raise AdapterError(f"has a rank of {target.rank}, too much for a block; enlarge engine.block_size")
        return (
            -(target.inputs // -(self.words // rank)),
            -(self.panels(target.outputs) * rank // -(self.words // self.columns)),
        )

    def blocks(self, adapter: AdapterFiles) -> int:
        """As many as its fullest layer needs."""
        pages: dict[int, int] = defaultdict(int)
        for target in adapter.targets:
            pages[self.layer_of(target.path)] += sum(self.pages_of(target))
        return -(max(pages.values()) // -self.per_block)


def size_in_cache(adapter: AdapterFiles, shape: ModelShape, config: EngineConfig, device: Device) -> AdapterSize:
    """Raises AdapterError where the KV budget does not hold it with the least request beside it."""
    pages = AdapterPages.of(shape, config, device)
    kv_format = device.kv_format(shape, config.quantization, config.kv_cache_dtype)
    blocks, held = pages.blocks(adapter), num_kv_blocks(shape, config, kv_format)
    num_bytes = blocks * config.block_size * shape.kv_bytes_per_token(kv_format)
    if blocks + 2 > held:
        raise AdapterError(
            f"takes {num_bytes / 2**20:,.1f} MiB of a KV budget of {config.kv_cache_memory / 2**20:,.1f} MiB; "
            "enlarge engine.kv_cache_memory"
        )
    return AdapterSize(adapter.params, blocks, num_bytes)
