"""The adapter that each row runs with."""

from engine.model.adapter_config import BAD_ADAPTER, AdapterError
from tasks.source.cells import is_utf8, text_of
from tasks.source.row_error import BAD_VALUE, RowError
from tasks.source.source_rows import SourceBatch
from tasks.storage.run import Run
from tasks.storage.run_adapters import find_adapter

Named = str | RowError | None


class AdapterReader:
    """A row names an adapter of `model.adapters`, or a folder; where it does neither it has `model.adapter`.

    What comes out is what requests call the adapter (`AdapterFiles.name`), None for the model's own weights. A cell
    that is no text is the row's BAD_VALUE; an adapter that cannot run is its BAD_ADAPTER.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._column = run.job.model.adapter_column
        one = run.job.model.adapter
        self._default = None if one is None else run.adapters[one].name
        self._found: dict[str, str | RowError] = {name: files.name for name, files in run.adapters.items()}

    def read(self, batch: SourceBatch) -> list[Named]:
        if self._column is None:
            return [self._default] * batch.num_rows
        return [self._of_cell(value, self._column) for value in batch.values(self._column)]

    def _of_cell(self, value: object, column: str) -> Named:
        if isinstance(value, RowError):
            return RowError(value.type, f"column {column!r}: {value.message}")
        if isinstance(value, list | dict):
            return RowError(BAD_VALUE, f"column {column!r}: an adapter is named by one text")
        name = "" if value is None else text_of(value)
        if not is_utf8(name) or "\x00" in name:
            return RowError(BAD_VALUE, f"column {column!r}: the adapter's name is not valid UTF-8")
        if not name:
            return self._default
        if name not in self._found:
            self._found[name] = self._look(name, column)
        return self._found[name]

    def _look(self, name: str, column: str) -> str | RowError:
        run = self._run
        try:
            return find_adapter(name, run.job.source.folder, run.model, run.shape, run.config, run.device).name
        except AdapterError as problem:
            known = f"; model.adapters has {', '.join(sorted(run.adapters))[:100]}" if run.adapters else ""
            return RowError(BAD_ADAPTER, f"column {column!r}: {name[:100]!r} {problem}{known}")
