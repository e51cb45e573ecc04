"""The model as each Dask worker has it, which must be the run's."""

from dataclasses import dataclass
from pathlib import Path

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from engine.errors import UserError
from engine.model.checkpoint import EMBEDDED, ModelFiles, resolve_model

# To fetch an answer that is there.
SECONDS_TO_FETCH = 10.0


@dataclass(frozen=True, slots=True)
class AskedModel:
    """The model as the job names it and as it lies here; a worker's must have the same content."""

    path: str
    here: ModelFiles

    @property
    def there(self) -> str:
        """What a worker looks for: it may have another working directory."""
        return self.path if self.path == EMBEDDED else str(Path(self.path).expanduser().absolute())

    def ask(self, client: Client, address: str) -> "Future[ModelFiles]":
        """What the worker has there, once it has read all of it, which takes minutes where a model is large."""
        return client.submit(resolve_model, self.there, workers=[address], allow_other_workers=False, pure=False)

    def answer(self, told: "Future[ModelFiles]", address: str) -> ModelFiles | None:
        """The worker's model; None where the worker went meanwhile, so that it may be asked again.

        `told` is done. Raises UserError for another model, or where none can be read there.
        """
        if told.status == "error":
            problem = told.exception(timeout=SECONDS_TO_FETCH)
            if isinstance(problem, KilledWorker):
                return None
            raise UserError(f"{self._why_not(problem)} (on {address})")
        if told.status != "finished":
            return None
        try:
            model = told.result(timeout=SECONDS_TO_FETCH)
        except Exception:  # Dask has several for a worker that is gone
            return None
        if model.fingerprint != self.here.fingerprint:
            raise UserError(f"model.path: another model lies at {self.there} (on {address})")
        return model

    def _why_not(self, problem: BaseException) -> str:
        if isinstance(problem, UserError):
            return str(problem)
        if isinstance(problem, OSError):
            return f"model.path: {self.there} cannot be read: {problem.strerror or problem}"
        return f"runner: a Dask worker needs the run's environment: {type(problem).__name__}: {problem}"
