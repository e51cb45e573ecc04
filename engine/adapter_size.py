"""What an adapter takes: plain data, which plans count with."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """`params` multiply each token that runs with the adapter; `blocks` of the KV cache's memory hold them, `num_bytes`
    in all.
    """

    params: int
    blocks: int
    num_bytes: int


# By what requests call the adapter.
AdapterSizes = Mapping[str, AdapterSize]
NO_ADAPTERS: AdapterSizes = MappingProxyType({})
NOTHING = AdapterSize(0, 0, 0)


def size_of(adapters: AdapterSizes, adapter: str | None) -> AdapterSize:
    """Nothing for none, and for one that is not there."""
    return NOTHING if adapter is None else adapters.get(adapter, NOTHING)
