"""Answers SQL about an output folder, on a connection that can read that folder and nothing else."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.report.published import open_published
from tasks.report.views import THIS, open_for_queries
from tasks.storage.arrow_columns import arrow_columns
from tasks.storage.duck import BATCH_ROWS, MEMORY
from tasks.storage.interruptible import batches_of, ctrl_c, interruptible
from tasks.storage.open_folder import open_folder
from tasks.storage.output_folder import OutputFolder
from tasks.storage.statements import message_of, single_select

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}", re.ASCII)
# What DuckDB, or our own views, call something else by.
_TAKEN = {THIS, MEMORY, "system", "temp", "main", "detail", "information_schema", "pg_catalog"}


class QueryResult(AbstractContextManager["QueryResult"]):
    """Rows as they come: read `batches` or `table` once, inside the context.

    `warning` is a line for the user where rows are missing that should be there.
    """

    warning: str | None = None

    def __init__(self, folder: OutputFolder, sql: str, others: Mapping[str, OutputFolder]) -> None:
        published = open_published(folder)
        beside = {name: open_published(other) for name, other in others.items()}
        self._connecting = open_for_queries(published, beside)
        self._opened = {MEMORY: published, **beside}
        self._sql = sql

    def __enter__(self) -> Self:
        with _in_one_line():
            self._connection = self._connecting.__enter__()
            try:
                self.warning = self._warning()
                self._reader = interruptible(self._connection, self._start)
            except BaseException:
                self._connecting.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.interrupt()  # whoever leaves before the last row does not wait for it
        self._reader.close()
        self._connecting.__exit__(None, None, None)

    def _warning(self) -> str | None:
        found = [folder.warning(self._connection, name) for name, folder in self._opened.items()]
        return "; ".join(filter(None, found)) or None

    def _start(self) -> pa.RecordBatchReader:
        return arrow_columns(self._connection.sql(self._sql)).to_arrow_reader(BATCH_ROWS)

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.schema.names)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Raises UserError for what goes wrong while rows are computed, such as a cast."""
        with _in_one_line():
            yield from batches_of(self._connection, self._reader)

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self.batches(), self.schema)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Raises UserError for what DuckDB says; Ctrl-C stays what it is."""
    try:
        with ctrl_c():
            yield
    except (duckdb.Error, pa.ArrowException, OSError) as problem:
        raise UserError(f"sql: {message_of(problem)}") from None


def query(folder: str | Path, sql: str, *, others: Mapping[str, str | Path] | None = None) -> QueryResult:
    """One SELECT over the views of an output folder, a path or a URL; those of `others` are `NAME.results` and so on.

    Raises UserError for a folder without results, a name that cannot be one, and for anything but one SELECT statement.
    """
    for name in others or {}:
        if not _NAME.fullmatch(name) or name.lower() in _TAKEN:
            raise UserError(f"--with {name}: is no name for a folder; take letters, digits and _, such as other")
    select = single_select(sql, "sql")
    beside = {name: open_folder(other).look() for name, other in (others or {}).items()}
    return QueryResult(open_folder(folder).look(), select, beside)
