"""DuckDB connections, each allowed no more than its use needs, from its first statement on.

Every connection that the project opens is made here. It reads files below the folders that it is given, and spills into
one of its own; it loads and fetches no extension, attaches no other database, and none of this can be changed any more.
A link below those folders that leads elsewhere is not followed. Whether a statement only reads is asked of its text, by
`tasks.storage.statements.single_select`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from tasks.storage.interruptible import ctrl_c
from tasks.storage.statements import identifier, statement

MEMORY_LIMIT = "2GB"
# The joins of a run, beside all else that a run holds; more is spilled.
WORKING_MEMORY_LIMIT = "512MB"
SPILL_LIMIT = "200GB"
BATCH_ROWS = 4096

# DuckDB's own name of the database of a connection that has no file.
MEMORY = "memory"

# Before a file is opened: one that looks like another database's makes DuckDB fetch the extension that reads it.
_FROM_THE_START: dict[str, str | bool | int | float | list[str]] = {
    "allow_community_extensions": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a name in a query is no variable of ours
}


@contextmanager
def working_connection(
    spill: Path, *others: Path, memory_limit: str | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """In memory, for the joins of a run: reads files below `spill` and `others`; what does not fit is spilled there.

    It has one thread, that of whoever calls, so that Ctrl-C ends what is under way.
    """
    limit = memory_limit or WORKING_MEMORY_LIMIT
    with ctrl_c(), closing(_connect(":memory:", spill / "spill", memory_limit=limit)) as connection:
        _lock(connection, spill, *others)
        yield connection


@dataclass(frozen=True, slots=True)
class FolderViews:
    """The statements that make the views over the files of a folder."""

    folder: Path
    statements: Sequence[str]


@contextmanager
def view_connection(
    own: FolderViews, others: Mapping[str, FolderViews] | None = None, *, memory_limit: str | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """In memory with `own` views, and those of `others` in databases of their names; no other folder can be read."""
    others = others or {}
    with (
        ctrl_c(),
        TemporaryDirectory(prefix="trunkline-sql-") as spill,
        closing(_connect(":memory:", Path(spill), memory_limit=memory_limit)) as connection,
    ):
        for name in others:
            connection.execute(statement("views/attach_memory", database=identifier(name)))
        _lock(connection, own.folder, *(other.folder for other in others.values()))
        for name, views in {**others, MEMORY: own}.items():
            connection.execute(statement("views/use", database=identifier(name)))
            for one in views.statements:
                connection.execute(one)
        yield connection


@contextmanager
def database_connection(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Somebody's database, read-only; its views may read files that lie beside it, and nothing else."""
    with (
        ctrl_c(),
        TemporaryDirectory(prefix="trunkline-source-") as spill,
        closing(_connect(str(database), Path(spill), read_only=True)) as connection,
    ):
        _lock(connection, database.parent)
        yield connection


@contextmanager
def new_database(database: Path, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A file to put views of our own into, whose relative names start at `folder`, where DuckDB allows no folder."""
    connection = _connect(str(database), database.parent / "spill", file_search_path=str(folder))
    with closing(connection):
        yield connection


def _connect(
    database: str, spill: Path, *, read_only: bool = False, memory_limit: str | None = None, **config: str
) -> duckdb.DuckDBPyConnection:
    """Of one thread where memory is scarce: each needs a share of it, however little there is to do."""
    few = {"memory_limit": MEMORY_LIMIT} if memory_limit is None else {"memory_limit": memory_limit, "threads": "1"}
    limits = {"temp_directory": str(spill)} | few
    connection = duckdb.connect(database, read_only=read_only, config=_FROM_THE_START | limits | config)
    # DuckDB 2.0.0 shows this limit where a connection begins with it, and does not keep it.
    connection.execute("SET max_temp_directory_size = $size", {"size": SPILL_LIMIT})
    return connection


def _lock(connection: duckdb.DuckDBPyConnection, *folders: Path) -> None:
    """From here on: no file outside `folders`, no extension, no other database, and no way to change that."""
    connection.execute("SET allowed_directories = $folders", {"folders": list(map(str, folders))})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
