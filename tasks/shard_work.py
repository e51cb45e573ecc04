"""A stored plan's shard as the engine wants it, read without the rest of the plan."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.plan import PrefixNode, Shard, ShardWork
from tasks.plan import NODE_FIELDS
from tasks.request.ask import parse_ask
from tasks.request.requests import to_requests
from tasks.storage.parts import StoredRequest
from tasks.storage.run import Run
from tasks.storage.stored_plan import NODES, REQUESTS, plan_folder


def read_shard(run: Run, plan_id: str, shard: Shard) -> pa.RecordBatch:
    """The shard's rows of `requests.parquet`, in execution order."""
    with pq.ParquetFile(plan_folder(run.folder, plan_id) / REQUESTS) as file:
        batches = file.read_row_group(shard.index).combine_chunks().to_batches()
    assert len(batches) == 1, len(batches)
    num_requests = len(batches[0].column("nodes").values)
    assert num_requests == shard.last - shard.first, (num_requests, shard)
    return batches[0]


def to_work(run: Run, plan_id: str, layout_id: str, shard: Shard, rows: pa.RecordBatch) -> ShardWork:
    """The requests of all rows, a row's one after the other."""
    node_of = tuple(rows.column("nodes").values.to_pylist())
    requests = tuple(chain.from_iterable(to_requests(rows)))
    adapter_of = {node: request.adapter for node, request in zip(node_of, requests, strict=True)}
    nodes = _nodes_above(plan_folder(run.folder, plan_id) / NODES, adapter_of)
    return ShardWork(layout_id, shard.index, shard.shard_id, nodes, requests, node_of)


def stored_requests(rows: pa.RecordBatch) -> list[StoredRequest]:
    names = ("request_hash", "ask", "label_texts", "attempts")
    columns = [rows.column(name).to_pylist() for name in names]
    lengths = pc.list_value_length(rows.column("prompt_token_ids")).to_pylist()
    return [
        StoredRequest(name, parse_ask(ask).task.type, ask, tuple(texts), prompt_tokens, attempts)
        for name, ask, texts, attempts, prompt_tokens in zip(*columns, lengths, strict=True)
    ]


def _nodes_above(path: Path, adapter_of: Mapping[int, str | None]) -> tuple[PrefixNode, ...]:
    """Every node on the way from a root to one of `adapter_of`, parents first; all on a way have its end's adapter."""
    firsts = _first_nodes(path)

    def fields(node: int) -> list[int]:
        group = int(np.searchsorted(firsts, node, side="right")) - 1
        found: list[int] = _read_group(path, group)[node - firsts[group]].tolist()
        return found

    above: dict[int, PrefixNode] = {}
    for end, adapter in sorted(adapter_of.items()):
        node = end
        while node >= 0 and node not in above:
            parent, start, last, num_requests = fields(node)
            above[node] = PrefixNode(node, parent, start, last, num_requests, adapter)
            node = parent
    return tuple(above[node] for node in sorted(above))


@lru_cache(maxsize=4)
def _first_nodes(path: Path) -> NDArray[np.int64]:
    """The first node of each row group, of which a section of the plan has its own; plans never change."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    return np.cumsum([0, *sizes[:-1]])


@lru_cache(maxsize=4)
def _read_group(path: Path, group: int) -> NDArray[np.int64]:
    """[nodes, fields] of one row group: shards that run at once are of the same section, or of two that follow."""
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(group)
    return np.stack([table.column(name).to_numpy() for name in NODE_FIELDS], axis=1)
