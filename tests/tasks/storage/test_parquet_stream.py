"""What is held of a file that is read a batch at a time."""

from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.storage.parquet_stream import parquet_stream

GROUPS, GROUP_ROWS = 64, 2**17


def test_a_file_is_not_held_while_it_is_read(tmp_path: Path) -> None:
    """64 row groups of a MiB, of numbers that no encoding makes smaller."""
    path = tmp_path / "numbers.parquet"
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("number", pa.int64())]), compression=None, use_dictionary=False) as writer:
        for _ in range(GROUPS):
            writer.write_table(pa.table({"number": draw.integers(0, 2**62, GROUP_ROWS)}), GROUP_ROWS)
    size = path.stat().st_size
    assert size > GROUPS * 2**20
    process, rows = psutil.Process(), 0
    with parquet_stream(path) as file:
        for batch in file.iter_batches(4096):
            if not rows:
                before = process.memory_info().rss
            rows += batch.num_rows
        assert process.memory_info().rss - before < size / 4
    assert rows == GROUPS * GROUP_ROWS
