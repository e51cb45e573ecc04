"""A Parquet file written in pieces, with row groups of a size that reads well."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.storage.commit import open_private

_GROUP_ROWS = 16 * 1024
_GROUP_BYTES = 16 * 2**20


@dataclass(slots=True, eq=False)
class ParquetSink:
    """Gathers batches until they make a row group."""

    writer: pq.ParquetWriter
    waiting: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self.waiting.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes
        if self.rows >= _GROUP_ROWS or self.bytes >= _GROUP_BYTES:
            self.end_group()

    def end_group(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_batches(self.waiting), row_group_size=self.rows)
        self.waiting, self.rows, self.bytes = [], 0, 0


@contextmanager
def parquet_sink(path: Path, schema: pa.Schema) -> Iterator[ParquetSink]:
    """The file may be in the disk's cache alone: whoever keeps it syncs it, as all do that give a file its place."""
    with open_private(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        sink = ParquetSink(writer)
        yield sink
        sink.end_group()
