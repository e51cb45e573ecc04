"""Rows to asks: the job's task and sampling, overlaid by what a row's cells say."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from engine.grammar.grammar import BAD_GRAMMAR
from tasks.job.job import ScoringJob
from tasks.job.job_file import faults_of
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.job.task_keys import TASK_KEYS
from tasks.request.ask import Ask
from tasks.source.cells import CellOrError, is_utf8
from tasks.source.row_error import BAD_SAMPLING, BAD_TASK, RowError
from tasks.source.source_rows import SourceBatch

_KEPT_ASKS = 4096

T = TypeVar("T", Task, Sampling)
Keys = Mapping[str, Any]


class AskReader:
    """Equal cells give one `Ask`, and asks of equal task cells one `Task`, so that each is checked and stored once."""

    def __init__(self, job: ScoringJob, vocab_size: int, hidden_size: int) -> None:
        """The sizes are the model's: a row may name a token, or dimensions, that it does not have."""
        self._task, self._sampling = job.task, job.sampling
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._tasks: dict[str, Task | RowError] = {}
        self._asks: dict[tuple[str, str], Ask | RowError] = {}

    def read(self, batch: SourceBatch) -> list[Ask | RowError]:
        """What each row asks; BAD_TASK and BAD_SAMPLING where a cell is none, BAD_GRAMMAR where its grammar is none."""
        if len(self._asks) > _KEPT_ASKS:
            self._asks.clear()
            self._tasks.clear()
        columns = (self._task.column, self._sampling.column)
        tasks, samplings = ([None] * batch.num_rows if name is None else batch.values(name) for name in columns)
        return [self._ask(task, sampling) for task, sampling in zip(tasks, samplings, strict=True)]

    def _ask(self, task_cell: CellOrError, sampling_cell: CellOrError) -> Ask | RowError:
        for cell in (task_cell, sampling_cell):
            if isinstance(cell, RowError):
                return cell
        key = (_key(task_cell), _key(sampling_cell))
        if key not in self._asks:
            task = self._tasks.get(key[0]) or parse_task(task_cell, self._task)
            self._tasks[key[0]] = task
            self._asks[key] = task if isinstance(task, RowError) else self._sampled(task, sampling_cell)
        return self._asks[key]

    def _sampled(self, task: Task, cell: CellOrError) -> Ask | RowError:
        keys = TASK_KEYS[task.type]
        sampling = parse_sampling(cell, keys.heeded(self._sampling))
        if isinstance(sampling, RowError):
            return sampling
        if keys.heeded(sampling) != sampling:
            return RowError(BAD_SAMPLING, f"sampling has no effect on type: {task.type}; leave it out")
        if (unknown := task.unknown_token(self._vocab_size)) is not None:
            return RowError(BAD_TASK, f"task.{unknown}")
        if (too_many := task.too_many_dimensions(self._hidden_size)) is not None:
            return RowError(BAD_TASK, f"task.{too_many}")
        if (unknown := sampling.unknown_token(self._vocab_size)) is not None:
            return RowError(BAD_SAMPLING, f"sampling.{unknown}")
        if (no_grammar := sampling.bad_grammar()) is not None:
            return RowError(BAD_GRAMMAR, f"sampling.{no_grammar}")
        return Ask(task, sampling)


def parse_task(cell: CellOrError, job: Task) -> Task | RowError:
    """A cell as a task: a type's name, or the keys of a `task:` mapping as JSON; NULL or empty: the job's."""
    if isinstance(cell, str) and cell.strip() and not cell.lstrip().startswith("{"):
        cell = {"type": cell.strip()}
    return _overlaid(cell, job, job.overlaid, "task", BAD_TASK)


def parse_sampling(cell: CellOrError, job: Sampling) -> Sampling | RowError:
    """A cell as sampling: the keys of a `sampling:` mapping as JSON; NULL or empty: the job's."""
    return _overlaid(cell, job, job.overlaid, "sampling", BAD_SAMPLING)


def _overlaid(cell: CellOrError, job: T, overlay: Callable[[Keys], T], name: str, error_type: str) -> T | RowError:
    keys = _keys(cell, name, error_type)
    if isinstance(keys, RowError):
        return keys
    if not keys and job.column is None:
        return job
    if not _is_clean(keys):
        return RowError(error_type, f"the row's {name} is not valid UTF-8, or holds a NUL character")
    named = next((key for key in keys if key == "column" or key.endswith("_column")), None)
    if named is not None:
        return RowError(error_type, f"{name}.{named}: a row cannot name a column; name it in the job")
    try:
        return overlay(keys)
    except ValueError as invalid:
        return RowError(error_type, "; ".join(faults_of(invalid, (name,))))


def _keys(cell: CellOrError, name: str, error_type: str) -> Keys | RowError:
    """What a cell says, key by key. A key that is NULL says nothing: a struct has its fields in every row."""
    if isinstance(cell, str) and cell.strip():
        try:
            cell = json.loads(cell, object_pairs_hook=_once)
        except (ValueError, RecursionError) as problem:
            said = f": {problem}" if isinstance(problem, _TwiceError) else " is not valid JSON"
            return RowError(error_type, f"the row's {name}{said}")
    if cell is None or cell == "" or (isinstance(cell, str) and not cell.strip()):
        return {}
    if not isinstance(cell, dict):
        return RowError(error_type, f"the row's {name} is not a JSON object of keys")
    return {str(key): value for key, value in cell.items() if value is not None}


class _TwiceError(ValueError):
    """A key that is there twice."""


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(f"key {key[:60]!r} twice")
        found[key] = value
    return found


def _is_clean(keys: Keys) -> bool:
    """Whether its texts can be stored: JSON may write half of a surrogate pair."""
    text = _key(dict(keys))
    return is_utf8(text) and "\\u0000" not in text


def _key(cell: CellOrError) -> str:
    """A text for each cell; a number of a query may be a decimal."""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
