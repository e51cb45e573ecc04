"""A batch as a job: where its table and its results lie, and what the job asks."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from shutil import rmtree
from typing import Any

from engine.errors import UserError
from engine.file_lock import HeldError, hold
from engine.model.checkpoint import resolve_model
from tasks.batch.request_table import write_table
from tasks.job.job import ScoringJob
from tasks.job.job_file import override, parse_job
from tasks.storage.file_mode import make_folder

KEPT = ("line", "batch_id", "reply", "fault")


@dataclass(frozen=True, slots=True)
class BatchRun:
    """`out` and `errors` are written last; all that the run keeps lies in `folder`, beside `out`."""

    source: Path
    out: Path
    errors: Path
    model: str

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def table(self) -> Path:
        return self.folder / "requests.parquet"

    @property
    def model_name(self) -> str:
        """What responses call the model of a request that names none."""
        return resolve_model(self.model).name

    def check(self) -> None:
        """Raises UserError where a file would be written over another of them, or into a folder that is not there."""
        if not self.source.is_file():
            raise UserError(f"{self.source}: no such file")
        names = {"--output": self.out, "--errors": self.errors}
        for option, path in names.items():
            if not path.parent.is_dir():
                raise UserError(f"{option}: no folder {path.parent}")
            if path.is_dir():
                raise UserError(f"{option}: {path} is a folder; name a file")
        if len({path.resolve() for path in (self.source, *names.values())}) < 3:
            raise UserError("batch: the input, --output and --errors are three files")

    def job(self, settings: Mapping[str, object]) -> ScoringJob:
        """`settings` are dotted keys of a job, such as `engine.kv_cache_memory`, and their values."""
        content: dict[str, Any] = {
            "name": re.sub(r"[^A-Za-z0-9._-]", "-", f"batch-{self.out.stem}")[:100],
            "source": {"parquet": escape(str(self.table.absolute())), "id": "row", "keep": list(KEPT)},
            "prompt": {"body": "prompt"},
            "task": {"type": "generate", "column": "task"},
            "sampling": {"column": "sampling"},
            "model": {"path": self.model},
            "output": str(self.folder.absolute() / "results"),
        }
        for key, value in settings.items():
            if key.partition(".")[0] not in ("engine", "model", "shard_seconds", "prompt"):
                raise UserError(f"--set {key}: a batch takes keys of engine, model and prompt, and shard_seconds")
            override(content, key, value)
        return parse_job(content, "batch")

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Holds the folder, with the table in it. Raises UserError where another batch has it."""
        make_folder(self.folder)
        try:
            with hold(self.folder / ".lock"):
                for staging in self.folder.glob("staging-*"):  # what a killed run left
                    rmtree(staging)
                write_table(self.source, self.table, {self.model, self.model_name})
                yield
        except HeldError as held:
            raise UserError(f"--output: {self.folder} is in use by {held}; wait, or end it") from None
