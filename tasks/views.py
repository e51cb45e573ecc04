"""The views over everything committed: kept in `results.duckdb` for other programs, made anew for every query of ours.

In the database file names are relative, so that the folder can be moved. DuckDB looks for them in the working
directory first, hence our own connections take absolute names.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import duckdb

from engine.errors import UserError
from tasks.commit import replace_file
from tasks.duck import view_connection
from tasks.failpoint import failpoint
from tasks.manifests import manifest_path, part_files, read_manifests
from tasks.output_folder import OutputFolder
from tasks.parts import newest_results
from tasks.run_record import read_records, record_path
from tasks.statements import literal, literals, statement
from tasks.stored_plan import ROWS, load_plan, plan_folder


def write_views(folder: OutputFolder, plan_id: str) -> None:
    """Puts a new `results.duckdb` in the place of the one before."""
    staged = folder.staged("results.duckdb")
    connection = duckdb.connect(str(staged), config={"file_search_path": str(folder.root)})
    try:
        for one in _statements(folder, plan_id, ""):
            connection.execute(one)
    finally:
        connection.close()
    staged.chmod(0o600)
    failpoint("publish.staged")
    replace_file(staged, folder.database)


def open_views(folder: OutputFolder, plan_id: str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A locked connection on which the views are."""
    return view_connection(_statements(folder, plan_id, f"{folder.root}/"), folder.root)


def published_plan(folder: OutputFolder) -> str:
    """The plan whose rows the newest publication shows. Raises UserError where nothing is published."""
    for record in reversed(read_records(folder)):
        if record.published_plan is not None and plan_folder(folder, record.published_plan).is_dir():
            return record.published_plan
    raise UserError(f"{folder.root}: holds no results; name the output folder of a run")


def _statements(folder: OutputFolder, plan_id: str, prefix: str) -> Iterator[str]:
    """File names come from the manifests, never from a glob."""
    manifests = read_manifests(folder)
    shards = [manifest_path(folder, one.plan_id, one.shard_id).name for one in manifests]
    records = [record_path(folder, record).name for record in read_records(folder)]
    rows = (plan_folder(folder, plan_id) / ROWS).relative_to(folder.root)
    yield statement("detail")
    yield statement(
        "outcomes",
        rows=literal(f"{prefix}{rows}"),
        newest=newest_results([f"{prefix}{name}" for name in part_files(manifests)]),
        plan_run=literal(load_plan(folder, plan_id).run_id),
    )
    yield statement("results")
    yield statement("errors")
    yield statement("runs", records=literals([f"{prefix}manifests/{name}" for name in records]))
    yield statement("shards", manifests=_shards([f"{prefix}manifests/{name}" for name in shards]))
    yield statement("prefix_savings")


def _shards(files: list[str]) -> str:
    return statement("manifests", manifests=literals(files)) if files else statement("no_manifests")
