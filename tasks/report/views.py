"""The views over everything committed: kept in `results.duckdb` for other programs, made anew for every query of ours.

In the database file names are relative, so that the folder can be moved. DuckDB looks for them in the working
directory first, hence our own connections take absolute names.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import duckdb

from engine.errors import UserError
from engine.failpoint import failpoint
from tasks.storage.commit import replace_file
from tasks.storage.duck import MEMORY_LIMIT, new_database, view_connection
from tasks.storage.file_mode import file_mode
from tasks.storage.manifests import part_files, read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.parts import newest_results
from tasks.storage.run_progress import read_progress
from tasks.storage.run_record import read_records, record_path
from tasks.storage.shard_manifest import ShardManifest
from tasks.storage.statements import literal, literals, statement
from tasks.storage.stored_plan import ROWS, plan_folder


def write_views(folder: OutputFolder, plan_id: str) -> None:
    """Puts a new `results.duckdb` in the place of the one before."""
    staged = folder.staged("results.duckdb")
    with new_database(staged, folder.root) as connection:
        # What it is read with later does not know whose lock the folder has then: a record is believed.
        for one in _statements(folder, plan_id, read_manifests(folder), "", "holder"):
            connection.execute(one)
    staged.chmod(file_mode())
    failpoint("publish.staged")
    replace_file(staged, folder.database)


def attach_statements(folder: OutputFolder) -> str:
    """SQL that opens the views in any DuckDB, from wherever it runs. Raises UserError where there are none to open."""
    if not folder.database.is_file():
        raise UserError(f"{folder.root}: holds no {folder.database.name}; name the output folder of a run")
    if "," in str(folder.root):
        raise UserError(f"{folder.root}: DuckDB's search path is split at commas; move the folder to a path without")
    return statement("views/attach", database=literal(str(folder.database)), folder=literal(str(folder.root)))


def open_views(
    folder: OutputFolder, plan_id: str, manifests: Sequence[ShardManifest], *, memory_limit: str = MEMORY_LIMIT
) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A locked connection on which the views of these shards are."""
    holder = folder.holder()
    alive = "NULL" if holder is None else literal(holder.token)
    statements = _statements(folder, plan_id, manifests, f"{folder.root}/", alive)
    return view_connection(statements, folder.root, memory_limit=memory_limit)


def _statements(
    folder: OutputFolder, plan_id: str, manifests: Sequence[ShardManifest], prefix: str, alive: str
) -> Iterator[str]:
    """File names come from the manifests, never from a glob. `alive` is SQL for the lock's holder, by its token."""
    found = _manifests([f"{prefix}manifests/{one.name}" for one in manifests])
    records = [record_path(folder, record).name for record in read_records(folder)]
    rows = (plan_folder(folder, plan_id) / ROWS).relative_to(folder.root)
    yield statement("views/detail")
    yield statement(
        "views/outcomes",
        rows=literal(f"{prefix}{rows}"),
        newest=newest_results([f"{prefix}{name}" for name in part_files(manifests)]),
        plan_run=literal(plan_id.replace("plan-", "run-")),
    )
    yield statement("views/results")
    yield statement("views/errors")
    yield statement(
        "views/runs",
        records=_records([f"{prefix}manifests/{name}" for name in records]),
        progress=_progress(folder, prefix),
        alive=alive,
    )
    yield statement("views/shares", manifests=found)
    yield statement("views/shards", manifests=found)
    yield statement("views/prefix_savings")


def _records(files: list[str]) -> str:
    return statement("views/records", records=literals(files)) if files else statement("views/no_records")


def _progress(folder: OutputFolder, prefix: str) -> str:
    if read_progress(folder) is None:
        return statement("views/no_progress")
    return statement("views/progress", progress=literal(f"{prefix}{folder.progress.name}"))


def _manifests(files: list[str]) -> str:
    return statement("views/manifests", manifests=literals(files)) if files else statement("views/no_manifests")
