"""Pending requests a section at a time: as many as are planned in memory at once, however many there are."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.machine.memory import machine_memory
from tasks.storage.duck import BATCH_ROWS, working_connection
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.parquet_stream import parquet_stream
from tasks.storage.statements import statement

# Planning takes about 100 MiB for as many.
SECTION_ROWS, SECTION_TOKENS = 2**15, 2**23
# A sort in M bytes merges the runs of M bytes that it has sorted, and holds some of each: M grows with the root of all.
# That is for short prompts; of long ones a sort takes more, which nobody can say before.
_SORT_MIB, _SORTED_BYTES = 96, 75e6


def read_sections(pending: Path) -> Iterator[pa.Table]:
    """Rows of `pending.parquet`: as they lie there if one section holds them all, else sorted by prompt.

    Sorted, prompts with a prefix in common follow each other, so that it is computed twice only where a section ends.
    The sort is DuckDB's, and spills beside the file.
    """
    with pq.ParquetFile(pending) as file:
        rows, sorted_bytes = file.metadata.num_rows, _bytes(file.metadata)
    first = next(_cut(pending), None)
    if first is None or first.num_rows == rows:
        yield from () if first is None else (first,)
        return
    del first
    ordered = pending.with_name("ordered.parquet")
    _sort(pending, ordered, int(_SORT_MIB * max(1, sorted_bytes / _SORTED_BYTES) ** 0.5))
    yield from _cut(ordered)
    ordered.unlink()


def _sort(pending: Path, ordered: Path, mebibytes: int) -> None:
    """In as much memory; where that is too little in twice as much, up to half of the machine's."""
    while True:
        try:
            _sort_in(f"{mebibytes}MiB", pending, ordered)
            return
        except (duckdb.Error, pa.ArrowException, OSError) as problem:
            # While rows are read it is Arrow's error, with DuckDB's words.
            if "Out of Memory Error" not in str(problem) or mebibytes * 2**20 > machine_memory() // 4:
                raise
        mebibytes *= 2
        ordered.unlink(missing_ok=True)


def _sort_in(memory_limit: str, pending: Path, ordered: Path) -> None:
    with working_connection(pending.parent, memory_limit=memory_limit) as connection:
        query = connection.sql(statement("steps/requests_by_prompt"), params={"requests": str(pending)})
        reader = query.to_arrow_reader(BATCH_ROWS)
        with parquet_sink(ordered, reader.schema) as sink:
            for batch in reader:
                sink.write(batch)


def _bytes(metadata: pq.FileMetaData) -> int:
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _cut(path: Path) -> Iterator[pa.Table]:
    """Each in one chunk a column."""
    held: list[pa.RecordBatch] = []
    rows = tokens = 0
    with parquet_stream(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            held.append(batch)
            rows += batch.num_rows
            tokens += pc.sum(pc.list_value_length(batch.column("prompt_token_ids"))).as_py()
            if rows >= SECTION_ROWS or tokens >= SECTION_TOKENS:
                section = pa.Table.from_batches(held).combine_chunks()
                held, rows, tokens = [], 0, 0
                yield section
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
