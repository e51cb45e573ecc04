"""New requests and those that are unanswered, read beside each other a batch at a time."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks.deduplicate as deduplicate
from tasks.extract import NEW_REQUESTS, REQUEST_SCHEMA

UNANSWERED = pa.schema([("first_row", pa.int64()), ("num_rows", pa.int64()), ("attempts", pa.int32())])


@given(
    rows=st.sets(st.integers(0, 60)), of_them=st.sets(st.integers(0, 60)), cut=st.integers(1, 7), size=st.integers(1, 7)
)
def test_the_unanswered_are_written_in_the_sources_order(
    rows: set[int], of_them: set[int], cut: int, size: int
) -> None:
    wanted = sorted(rows & of_them)
    requests = [dict.fromkeys(REQUEST_SCHEMA.names) | {"row_index": row, "max_tokens": row} for row in sorted(rows)]
    unanswered = [{"first_row": row, "num_rows": 2 * row, "attempts": 3 * row} for row in wanted]
    batches = pa.Table.from_pylist(unanswered, UNANSWERED).to_batches(cut)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplicate, "BATCH_ROWS", size)
        pq.write_table(pa.Table.from_pylist(requests, REQUEST_SCHEMA), Path(name) / NEW_REQUESTS)
        reader = pa.RecordBatchReader.from_batches(UNANSWERED, batches)
        assert deduplicate.write_pending(reader, Path(name)) == len(wanted)
        pending = pq.read_table(Path(name) / deduplicate.PENDING)
    assert pending.schema.equals(deduplicate.PENDING_SCHEMA)
    found = pending.select(["max_tokens", "num_rows", "attempts"]).to_pylist()
    assert found == [{"max_tokens": row, "num_rows": 2 * row, "attempts": 3 * row} for row in wanted]
