"""The views over everything committed: kept in `results.duckdb` for other programs, made anew for every query of ours.

In the database file names are relative, so that the folder can be moved. DuckDB looks for them in the working
directory first, hence our own connections take absolute names.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import duckdb

from engine.errors import UserError
from engine.failpoint import failpoint
from tasks.report.published import PublishedFolder
from tasks.storage.duck import FolderViews, new_database, view_connection
from tasks.storage.file_mode import file_mode
from tasks.storage.manifests import part_files, read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.parts import all_results, newest_results
from tasks.storage.run_progress import read_progress
from tasks.storage.run_record import read_records, record_path
from tasks.storage.shard_manifest import ShardManifest
from tasks.storage.statements import identifier, literal, literals, statement
from tasks.storage.stored_plan import ROWS, plan_folder

# What `compare_runs` calls the folder that is asked; others have the names that they are opened under.
THIS = "this"


def write_views(folder: OutputFolder, plan_id: str) -> None:
    """Puts a new `results.duckdb` in the place of the one before."""
    staged = folder.staged("results.duckdb")
    with new_database(staged, folder.root) as connection:
        connection.begin()  # the disk is waited for once, not for each of two hundred comments
        # What it is read with later does not know whose lock the folder has then: a record is believed.
        for one in _statements(folder, plan_id, read_manifests(folder), "", "holder"):
            connection.execute(one)
        connection.commit()
    staged.chmod(file_mode())
    failpoint("publish.staged")
    folder.replace(staged, folder.database)


def attach_statements(folder: OutputFolder) -> str:
    """SQL that opens the views in any DuckDB, from wherever it runs. Raises UserError where there are none to open."""
    if not folder.database.is_file():
        raise UserError(f"{folder}: holds no {folder.database.name}; name the output folder of a run")
    if "," in str(folder.root):
        raise UserError(f"{folder.root}: DuckDB's search path is split at commas; move the folder to a path without")
    return statement("views/attach", database=literal(str(folder.database)), folder=literal(str(folder.root)))


def open_views(
    folder: OutputFolder,
    plan_id: str,
    manifests: Sequence[ShardManifest],
    *,
    memory_limit: str | None = None,
) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A locked connection for statements of our own: the views of these shards, without what explains or compares."""
    views = _views(folder, plan_id, manifests, f"{folder.root}/", _alive(folder))
    return view_connection(FolderViews(folder.root, tuple(views)), memory_limit=memory_limit)


def open_for_queries(
    published: PublishedFolder, others: Mapping[str, PublishedFolder]
) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A locked connection for anybody's statements; the views of `others` are in databases of their names."""
    beside = {name: FolderViews(other.folder.root, tuple(_of_folder(other, name))) for name, other in others.items()}
    own = FolderViews(published.folder.root, tuple(_of_folder(published, THIS, tuple(beside))))
    return view_connection(own, beside)


def _of_folder(of: PublishedFolder, name: str, beside: Sequence[str] = ()) -> Iterator[str]:
    return _statements(of.folder, of.plan_id, of.manifests, f"{of.folder.root}/", _alive(of.folder), name, beside)


def _alive(folder: OutputFolder) -> str:
    holder = folder.holder()
    return "NULL" if holder is None else literal(holder.token)


def _statements(
    folder: OutputFolder,
    plan_id: str,
    manifests: Sequence[ShardManifest],
    prefix: str,
    alive: str,
    name: str = THIS,
    beside: Sequence[str] = (),
) -> Iterator[str]:
    """The views, what compares them, and what they mean.

    The folder is called `name`; the views of those `beside` it are in databases of these names.
    """
    yield from _views(folder, plan_id, manifests, prefix, alive)
    yield statement("views/throughput")
    yield statement("views/label_counts")
    rows, parts = _read_from(folder, plan_id, manifests, prefix)
    yield from _comparisons(rows, all_results(parts), name, beside)
    yield statement("views/dictionary")
    yield statement("views/comments")
    for view in ("results", "errors"):
        yield statement("views/outcome_comments", view=view)


def _read_from(
    folder: OutputFolder, plan_id: str, manifests: Sequence[ShardManifest], prefix: str
) -> tuple[str, list[str]]:
    """The plan's rows, in SQL, and the parts."""
    rows = (plan_folder(folder, plan_id) / ROWS).relative_to(folder.root)
    return literal(f"{prefix}{rows}"), [f"{prefix}{part}" for part in part_files(manifests)]


def _views(
    folder: OutputFolder, plan_id: str, manifests: Sequence[ShardManifest], prefix: str, alive: str
) -> Iterator[str]:
    """File names come from the manifests, never from a glob. `alive` is SQL for the lock's holder, by its token."""
    found = _manifests([f"{prefix}manifests/{one.name}" for one in manifests])
    records = [record_path(folder, record).name for record in read_records(folder)]
    rows, parts = _read_from(folder, plan_id, manifests, prefix)
    yield statement("views/detail")
    yield statement(
        "views/outcomes",
        rows=rows,
        newest=newest_results(parts),
        plan_run=literal(plan_id.replace("plan-", "run-")),
    )
    yield statement("views/results")
    yield statement("views/errors")
    yield statement(
        "views/runs",
        records=_records([f"{prefix}manifests/{record}" for record in records]),
        progress=_progress(folder, prefix),
        alive=alive,
    )
    yield statement("views/shares", manifests=found)
    yield statement("views/shards", manifests=found)
    yield statement("views/prefix_savings")


def _comparisons(rows: str, parts: str, name: str, beside: Sequence[str]) -> Iterator[str]:
    """What sets one run's answers beside another's."""
    yield statement("views/answers", folder=literal(name), rows=rows, parts=parts)
    yield statement("views/names", folder=literal(name))
    databases = ["", *(f"{identifier(other)}." for other in beside)]
    yield statement("views/all_answers", tables=literals([f"{database}detail.answers" for database in databases]))
    yield statement("views/all_names", tables=literals([f"{database}detail.names" for database in databases]))
    yield statement("macros/answers_of")
    yield statement("macros/compare_runs")
    yield statement("macros/agreement")


def _records(files: list[str]) -> str:
    return statement("views/records", records=literals(files)) if files else statement("views/no_records")


def _progress(folder: OutputFolder, prefix: str) -> str:
    if read_progress(folder) is None:
        return statement("views/no_progress")
    return statement("views/progress", progress=literal(f"{prefix}{folder.progress.name}"))


def _manifests(files: list[str]) -> str:
    return statement("views/manifests", manifests=literals(files)) if files else statement("views/no_manifests")
