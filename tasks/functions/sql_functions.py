"""`ai_complete`, `ai_classify`, `ai_filter`, `ai_score`, `ai_embed` and `ai_similarity` in a DuckDB connection.

DuckDB calls a function on 2,048 rows at a time and waits for their values, so that a plain query is planned as many
tables, one a call. The method `sql` plans a query as one table: it runs the query without computing anything, to see
which calls there are, computes them all, and runs the query again, until a run has found every value.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any, Self
from uuid import uuid4

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from engine.errors import UserError
from engine.model.checkpoint import lacks_chat_template, resolve_model
from tasks.functions.answers import Answer, Answerer, Call
from tasks.functions.functions import FUNCTIONS, TEXT, TEXTS, VECTOR, Function
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.storage.duck import BATCH_ROWS
from tasks.storage.statements import identifier, message_of, single_select, statement
from tasks.workers import Computed

# A function's value may be another's argument, or decide which rows another sees: each such depth is a run more.
MOST_RUNS = 32
# Answers of plain queries that are kept for equal calls to come, the latest.
KEPT_ANSWERS = 8192
SQL_TYPES = {TEXT: "VARCHAR", TEXTS: "VARCHAR[]", VECTOR: "FLOAT[]", pa.bool_(): "BOOLEAN", pa.float64(): "DOUBLE"}
# The last parameter of every function: the name of the query that the method `sql` runs, NULL in any other.
_QUERY = "trunkline_query"


def sql_functions(
    connection: duckdb.DuckDBPyConnection,
    model: str | Mapping[str, Any] = "embedded",
    engine: Mapping[str, Any] | None = None,
) -> "SqlFunctions":
    """Gives a connection the functions, over an engine that is loaded when this returns.

    `model` is a job's `model.path`, or its whole `model` part; `engine` is the part of that name. Raises UserError for
    what a run would refuse, and for a connection that has the functions already.
    """
    shared = {
        "name": "sql",
        "source": {"parquet": "arguments"},
        "model": {"path": model} if isinstance(model, str) else dict(model),
        "engine": dict(engine or {}),
    }
    return SqlFunctions(connection, Answerer(_jobs(shared)))


def _jobs(shared: Mapping[str, Any]) -> dict[Function, ScoringJob]:
    plain = parse_job(FUNCTIONS[0].job(shared, chat=False), "sql_functions")
    if plain.model.adapter_column is not None:
        raise UserError("sql_functions: model.adapter_column: a call has no such column; take model.adapter")
    if plain.engine.workers > 1:
        raise UserError("sql_functions: engine.workers: a connection has one engine; leave it out")
    chat = not lacks_chat_template(resolve_model(plain.model.path))
    return {function: parse_job(function.job(shared, chat=chat), "sql_functions") for function in FUNCTIONS}


class _Calls:
    """The calls of one query: the answers that are `known`, and those that are `missing`, by what they ask."""

    def __init__(self, known: Mapping[bytes, Answer]) -> None:
        self.known = dict(known)
        self.missing: dict[bytes, Call] = {}

    def read(self, answerer: Answerer, function: Function, rows: Mapping[bytes, tuple[Any, ...]]) -> None:
        """Has the arguments of new calls read: what cannot be computed is known then."""
        new = {key: row for key, row in rows.items() if key not in self.known and key not in self.missing}
        for key, one in zip(new, answerer.read(function, list(new.values())) if new else (), strict=True):
            if isinstance(one, Call):
                self.missing[key] = one
            else:
                self.known[key] = one

    def compute(self, answerer: Answerer) -> None:
        missing, self.missing = self.missing, {}
        self.known.update(zip(missing, answerer.answer(list(missing.values())), strict=True))


class SqlFunctions:
    """The functions of one connection; as a context they and their engine end with it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, answerer: Answerer) -> None:
        """Owns `answerer`."""
        self._connection = connection
        self._answerer = answerer
        self._queries: dict[str, _Calls] = {}
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()
        self._lock = threading.Lock()  # DuckDB calls from all of its threads
        self._functions: list[str] = []
        self._macros: list[str] = []
        try:
            self._register()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the functions away and frees the model; what has not been fetched of a query by then fails."""
        with suppress(duckdb.Error):  # a connection that was closed has lost them
            for macro in reversed(self._macros):
                self._connection.execute(statement("functions/drop", macro=identifier(macro)))
            for function in self._functions:
                self._connection.remove_function(function)
        self._answerer.close()

    def sql(self, query: str, params: object = None) -> duckdb.DuckDBPyRelation:
        """The rows of one SELECT, whose calls are planned as one table: equal ones once, shared prefixes once.

        The rows are held in memory, and so are the tokens of all calls. Raises UserError for anything but one SELECT,
        for what DuckDB refuses, and for a query that asks something new each time it runs.
        """
        single_select(query, "sql")
        with self._running() as calls:
            for _ in range(MOST_RUNS):
                rows = self._run(query, params, calls)
                if rows is not None:
                    return self._connection.from_arrow(rows)
                calls.compute(self._answerer)
        raise UserError(
            f"sql: asked something new each of the {MOST_RUNS} times it ran; put what random() or a sample gives in a "
            "table first"
        )

    @property
    def computed(self) -> Computed:
        """All that the engine has computed so far."""
        return self._answerer.computed

    @contextmanager
    def _running(self) -> Iterator[_Calls]:
        """Functions that the connection calls meanwhile compute nothing, and are of the calls given."""
        name = uuid4().hex
        calls = self._queries[name] = _Calls({})
        try:
            self._connection.execute(statement("functions/set_query"), {"query": name})
            yield calls
        finally:
            del self._queries[name]
            self._connection.execute(statement("functions/reset_query"))

    def _run(self, query: str, params: object, calls: _Calls) -> pa.Table | None:
        """The query's rows; None where a call's value was missing, so that they are none of its own."""
        batches: list[pa.RecordBatch] = []
        try:
            reader = self._connection.sql(query, params=params).to_arrow_reader(BATCH_ROWS)
            for batch in reader:
                if calls.missing:
                    batches.clear()
                else:
                    batches.append(batch)
        except duckdb.Error as problem:
            if not calls.missing:  # else a value that is not there may be what it failed on
                raise UserError(f"sql: {message_of(problem)}") from None
        return None if calls.missing else pa.Table.from_batches(batches, reader.schema)

    def _register(self) -> None:
        # A database's functions are those of all connections to it, but macros and variables are each one's own.
        own = uuid4().hex
        for function in FUNCTIONS:
            name = f"trunkline_{function.name}_{own}"
            arguments = [SQL_TYPES[kind] for kind in function.parameters.values()]
            returned = f"STRUCT(value {SQL_TYPES[function.returns]}, error VARCHAR)"
            made = self._implementation(function)
            self._connection.create_function(
                name,
                made,
                [*arguments, "VARCHAR"],
                returned,
                type=PythonUDFType.ARROW,
                null_handling=FunctionNullHandling.SPECIAL,
            )
            self._functions.append(name)
            for path in function.statements:
                self._create(path, name)

    def _create(self, path: str, function: str) -> None:
        macro = path.rpartition("/")[2]
        try:
            self._connection.execute(statement(path, function=identifier(function)))
        except duckdb.CatalogException:
            raise UserError(f"sql_functions: the connection has {macro} already; close what made it first") from None
        self._macros.append(macro)

    def _implementation(self, function: Function) -> Callable[..., pa.Array]:
        """What DuckDB calls with a column a parameter."""

        def call(*columns: pa.ChunkedArray) -> pa.Array:
            *arguments, query = columns
            rows = list(zip(*(column.to_pylist() for column in arguments), strict=True))
            answers = self._answers(function, rows, query[0].as_py() if rows else None)
            values = pa.array([answer.value for answer in answers], function.returns)
            errors = pa.array([answer.error for answer in answers], pa.string())
            return pa.StructArray.from_arrays([values, errors], ["value", "error"])

        # DuckDB takes the number of parameters from here.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = (*function.parameters, _QUERY)
        call.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        return call

    def _answers(self, function: Function, rows: Sequence[tuple[Any, ...]], query: str | None) -> list[Answer]:
        keys = [None if None in row[: function.num_required] else _key(function, row) for row in rows]
        asked = {key: row for key, row in zip(keys, rows, strict=True) if key is not None}
        calls = self._queries.get(query) if query is not None else None
        if calls is None:
            with self._lock:
                calls = _Calls({key: self._kept[key] for key in asked if key in self._kept})
            calls.read(self._answerer, function, asked)
            calls.compute(self._answerer)
            self._keep(calls.known)
        else:
            calls.read(self._answerer, function, asked)
        return [Answer() if key is None else calls.known.get(key, Answer()) for key in keys]

    def _keep(self, answers: Mapping[bytes, Answer]) -> None:
        with self._lock:
            for key, answer in answers.items():
                self._kept[key] = answer
                self._kept.move_to_end(key)
            while len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)


def _key(function: Function, row: tuple[Any, ...]) -> bytes:
    """A digest of what a call asks."""
    return blake2b(repr((function.name, row)).encode(), digest_size=16).digest()
