"""What a run committed, given to the store."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.failpoint import failpoint
from tasks.request.ask import parse_ask
from tasks.request.task_types import task_type_of
from tasks.storage.commit import open_private, sha256_of
from tasks.storage.parts import StoredRequest
from tasks.storage.run import Run
from tasks.storage.shard_manifest import PartFile
from tasks.store.scoring_store import ScoringStore

log = logging.getLogger(__name__)


def share_results(run: Run, asked: Sequence[StoredRequest], results: pa.Table, part: PartFile) -> None:
    """Adds a committed part's results, a row of `results` for each of `asked`, to the job's store if it has one.

    Errors are left out, for another try may answer, and so are texts that are drawn afresh for each row. A store that
    cannot be written to costs later runs their time, and this one nothing: it is logged.
    """
    if run.store is None:
        return
    store = ScoringStore(run.store)
    good = [
        status == "ok" and not _is_drawn_afresh(one.ask)
        for status, one in zip(results.column("status").to_pylist(), asked, strict=True)
    ]
    failpoint("store.sharing")
    try:
        with store.used():
            if all(good):
                store.add(run, run.folder.parts / part.name, part.sha256)
            elif any(good):
                _add_some(store, run, results.filter(pa.array(good)))
    except OSError as problem:
        log.warning("store: %s cannot be written to (%s); results are in the output folder alone", store.root, problem)
    failpoint("store.shared")


def _is_drawn_afresh(text: str) -> bool:
    ask = parse_ask(text)
    return task_type_of(ask.task).is_drawn_afresh(ask)


def _add_some(store: ScoringStore, run: Run, results: pa.Table) -> None:
    staged: Path = store.staged()
    with open_private(staged) as file:
        pq.write_table(results, file, compression="zstd")
    store.add(run, staged, sha256_of(staged))
    staged.unlink()
