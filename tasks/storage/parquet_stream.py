"""Parquet files that are read a batch at a time."""

from pathlib import Path

import pyarrow.parquet as pq


def parquet_stream(path: Path) -> pq.ParquetFile:
    """A file of which `iter_batches` holds a row group at a time.

    As pyarrow opens files by itself, it reads ahead, and keeps the bytes of all that it has read until the last batch
    was taken: a table as large as its file.
    """
    return pq.ParquetFile(path, pre_buffer=False)
