"""Where a job's rows come from, and which of their columns the results carry."""

import codecs
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from tasks.job.job_part import FilePath, Name, Part, exactly_one

ROW_COLUMN = "row_index"
RESULT_COLUMNS = (
    "custom_id",
    ROW_COLUMN,
    "status",
    "task",
    "generated_text",
    "reasoning",
    "parsed",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cumulative_logprob",
    "logprobs",
    "outputs",
    "prompt_logprobs",
    "label",
    "label_norm",
    "label_probs",
    "label_logprobs",
    "missing_mass",
    "score",
    "scores",
    "logprob",
    "is_greedy",
    "perplexity",
    "min_margin",
    "embedding",
    "error_type",
    "error_message",
    "attempts",
    "run_id",
    "request_hash",
)


def _as_mapping(value: object) -> object:
    """`keep` may be a list of columns, or a mapping from a column to its name in the results."""
    if not isinstance(value, dict):
        if not isinstance(value, list | tuple) or any(not isinstance(column, str) for column in value):
            raise ValueError("is a list of column names, or a mapping of column to result column")
        if len(set(value)) != len(value):
            raise ValueError("names a column twice")
        return {column: column for column in value}
    return value


def _no_clash(keep: dict[str, str]) -> dict[str, str]:
    taken = {*RESULT_COLUMNS}
    for column, name in keep.items():
        if name.lower() in taken:
            raise ValueError(
                f"{name!r} is a column that the results have already; give it another name: {{{column}: my_{name}}}"
            )
        taken.add(name.lower())
    return keep


def _delimiter(text: str) -> str:
    """YAML takes `'\\t'` in single quotes for two characters."""
    text = "\t" if text == r"\t" else text
    if len(text) != 1 or text in '"\r\n':
        raise ValueError("is one character, such as ; or \\t, and neither a quote nor a line's end")
    return text


def _encoding(name: str) -> str:
    try:
        if "a".encode(name).decode(name) == "a":
            return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        pass
    raise ValueError(f"{name!r:.60} is no text encoding that Python knows; cp1252 and utf-16 are two")


Delimiter = Annotated[str, AfterValidator(_delimiter)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Kept = Annotated[
    dict[Name, Name],
    BeforeValidator(_as_mapping, json_schema_input_type=list[Name] | dict[Name, Name]),
    AfterValidator(_no_clash),
]


class DuckDBSource(Part):
    """A DuckDB database, opened read-only, and one SELECT on it."""

    database: FilePath = Field(description="The database's file. Views in it may read files that lie beside it.")
    query: Name = Field(description="One SELECT; its rows are the source's.")


class Source(Part):
    """Where the rows come from. Exactly one of `parquet`, `csv`, `jsonl` (globs) and `duckdb`."""

    parquet: FilePath | None = Field(
        default=None, description="Parquet files: a path, or a glob such as `data/*.parquet`."
    )
    csv: FilePath | None = Field(default=None, description="CSV files with a header, `.gz` too: a path or a glob.")
    jsonl: FilePath | None = Field(
        default=None, description="Files of a JSON object a line, `.gz` too: a path or a glob."
    )
    duckdb: DuckDBSource | None = None
    folder: FilePath | None = Field(
        default=None,
        description="Where relative paths start that lead nowhere from the working directory: the job file's folder.",
    )
    delimiter: Delimiter | None = Field(default=None, description="Of CSV; found in the file where it is not said.")
    encoding: Encoding | None = Field(default=None, description="Of CSV and JSONL; UTF-8 or a byte order mark's.")
    id: Name | None = Field(default=None, description="A unique column; the row's position where there is none.")
    keep: Kept = Field(
        default={}, description="Columns that the results carry: a list, or a mapping to the name they get."
    )

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        yield from exactly_one(given, ("parquet", "csv", "jsonl", "duckdb"))
        if given.get("delimiter") is not None and given.get("csv") is None:
            yield "delimiter belongs to csv"
        if given.get("encoding") is not None and given.get("csv") is None and given.get("jsonl") is None:
            yield "encoding belongs to csv and jsonl"

    @property
    def kind(self) -> str:
        return next(kind for kind in ("parquet", "csv", "jsonl", "duckdb") if getattr(self, kind) is not None)
