"""What the store has for a run, committed in the run's own folder: a part with a manifest, as any other."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.failpoint import failpoint
from tasks.storage.commit import sha256_of
from tasks.storage.manifests import commit_manifest
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.parts import PART_SCHEMA
from tasks.storage.run import Run
from tasks.storage.shard_manifest import PartFile, ShardManifest
from tasks.storage.statements import statement
from tasks.storage.stored_plan import plan_id_of
from tasks.store.scoring_store import ScoringStore, Shelf, is_whole

# A manifest that is no shard's.
NO_SHARD = -1


@dataclass(frozen=True, slots=True)
class Found:
    """Rows `places` of a part of the store, rising, and for each how often it was tried and how many rows want it."""

    part: Path
    places: NDArray[np.int64]
    attempts: NDArray[np.int64]
    num_rows: NDArray[np.int64]


@dataclass(slots=True)
class Taken:
    """What was written so far: requests, and rows that have them."""

    requests: int = 0
    rows: int = 0


def take_results(run: Run, wanted: Path, connection: duckdb.DuckDBPyConnection) -> int:
    """Commits what the store has of the requests in `wanted`, a file of `steps/unanswered.sql`, as the run's own part.

    Returns how many those are. `connection` may read the store and `wanted`. A part whose bytes are not those that were
    committed is set aside and not taken from.
    """
    assert run.store is not None
    store = ScoringStore(run.store)
    if not store.exists:
        return 0
    started = time.monotonic()
    shard_id = hashlib.blake2b(run.run_id.encode(), digest_size=8).hexdigest()
    staged = run.folder.staged("taken.parquet")
    with store.used(), parquet_sink(staged, PART_SCHEMA) as sink:
        taken = Taken()
        for found in _find(store.shelf(run), wanted, connection):
            if is_whole(found.part):
                for batch in _read(found, run.run_id, shard_id).to_batches():
                    sink.write(batch)
                taken.requests += len(found.places)
                taken.rows += int(found.num_rows.sum())
    failpoint("store.taken")
    if not taken.requests:
        staged.unlink()
        return 0
    digest, size = sha256_of(staged), staged.stat().st_size
    part = PartFile(f"{shard_id}-{digest[:16]}.parquet", digest, taken.requests, size)
    run.folder.commit(staged, run.folder.parts / part.name)
    commit_manifest(run.folder, _describe(run, shard_id, part, taken, time.monotonic() - started))
    failpoint("store.committed")
    return taken.requests


def _find(shelf: Shelf, wanted: Path, connection: duckdb.DuckDBPyConnection) -> list[Found]:
    """A part at a time. A part that cannot even be searched is set aside, and the rest searched again."""
    try:
        return _search(shelf.parts(), wanted, connection)
    except duckdb.Error:
        if not shelf.set_damaged_aside():
            raise
        return _search(shelf.parts(), wanted, connection)


def _search(parts: Sequence[Path], wanted: Path, connection: duckdb.DuckDBPyConnection) -> list[Found]:
    """Names alone are read of the parts."""
    if not parts:
        return []
    values = {"parts": list(map(str, parts)), "wanted": str(wanted)}
    places = connection.sql(statement("steps/stored_results"), params=values).to_arrow_table()
    part, rows, attempts, num_rows = (column.to_numpy() for column in places.columns)
    bounds = np.flatnonzero(np.diff(part, prepend=-1, append=len(parts))).tolist()
    return [
        Found(parts[int(part[first])], rows[first:last], attempts[first:last], num_rows[first:last])
        for first, last in pairwise(bounds)
    ]


def _read(found: Found, run_id: str, shard_id: str) -> pa.Table:
    """The results as a part of the run has them. What an earlier version did not write is NULL."""
    table = pq.read_table(found.part).take(pa.array(found.places))
    rows = table.num_rows
    own = {
        "attempts": pa.array(found.attempts, pa.int32()),
        "run_id": pa.repeat(run_id, rows),
        "shard_id": pa.repeat(shard_id, rows),
    }
    columns = []
    for one in PART_SCHEMA:
        if one.name in own:
            columns.append(own[one.name])
        elif one.name in table.column_names:
            columns.append(table.column(one.name).cast(one.type))
        else:
            columns.append(pa.nulls(rows, one.type))
    return pa.table(columns, schema=PART_SCHEMA)


def _describe(run: Run, shard_id: str, part: PartFile, taken: Taken, seconds: float) -> ShardManifest:
    """No token of it was planned or computed by this run."""
    return ShardManifest(
        plan_id=plan_id_of(run.run_id),
        shard_id=shard_id,
        run_id=run.run_id,
        shard_index=NO_SHARD,
        fingerprint=run.fingerprint,
        files=(part,),
        requests=taken.requests,
        rows=taken.rows,
        errors=0,
        seconds=round(seconds, 3),
        prompt_tokens=0,
        row_prompt_tokens=0,
        planned_tokens=0,
        computed_prompt_tokens=0,
        generated_tokens=0,
        row_errors=0,
        from_store=taken.requests,
    )
