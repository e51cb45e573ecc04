"""A run: what every step needs to know of it, and its life from the lock to the final record."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow as pa

from engine.config import EngineConfig
from engine.errors import TerminalError, UserError
from engine.failpoint import failpoint
from engine.file_lock import Holder
from engine.loop.step_budget import settled
from engine.machine.device import Device, device_not_here, resolve_device
from engine.machine.memory import memory_need, refuse_too_large
from engine.model.adapter_files import AdapterFiles
from engine.model.checkpoint import ModelFiles, lacks_chat_template, load_shape, resolve_model
from engine.model.model_shape import ModelShape, max_model_len, max_request_tokens
from engine.numerics import NUMERICS
from tasks.job.job import ScoringJob
from tasks.job.prompt import NO_CHAT_TEMPLATE, read_chat_template
from tasks.storage.commit import disk_errors
from tasks.storage.manifests import verify_manifests
from tasks.storage.open_folder import folder_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_adapters import job_adapters
from tasks.storage.run_end import ctrl_c_first, mark_interrupted, record_end
from tasks.storage.run_progress import RunProgress, write_progress
from tasks.storage.run_record import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    RunRecord,
    create_record,
    new_run_id,
    next_sequence,
    verify_records,
)
from tasks.storage.stop_request import RunStoppedError, forget_requests
from tasks.storage.stored_plan import verify_plans

# Counted up when stored plans or request hashes change their meaning: older plans are then not taken up again.
FORMAT = 1
# Keys of the job that say how a run meets faults, or what it costs, which no answer and no plan depends on.
_RUN_KEYS = {
    "checkpoint_seconds": True,
    "on_error": True,
    "max_error_rate": True,
    "max_engine_deaths": True,
    "price_per_hour": True,
    "runner": True,
    "dask_scheduler": True,
    "ray_address": True,
}


@dataclass(frozen=True, slots=True)
class Run:
    """Plain data, so that a step may run in another process. `device` is what `config` resolved to, `shape` what lies
    there: a rank's part where an engine has several. `chat_template` is the text of the job's own, `adapters` those
    that the job names. `holder` has the output folder; None for a plan alone. With `full`, what was scored before
    counts for nothing; with `retry_failed`, its errors do not.
    """

    folder: OutputFolder
    run_id: str
    sequence: int
    retry_failed: bool
    job: ScoringJob
    model: ModelFiles
    shape: ModelShape
    device: Device
    config: EngineConfig
    chat_template: str | None = None
    adapters: Mapping[str, AdapterFiles] = field(default_factory=dict)
    holder: Holder | None = None
    full: bool = False

    @property
    def root(self) -> Path:
        return self.folder.root

    @property
    def store(self) -> Path | None:
        """The scoring store that results are taken from and added to; None where the job names none."""
        return self.job.store_folder

    @property
    def max_tokens(self) -> int:
        """Tokens, prompt and answer, that one request may have."""
        config = self.config
        kv_format = self.device.kv_format(self.shape, config.quantization, config.kv_cache_dtype)
        return max_request_tokens(self.shape, config, kv_format)

    @property
    def decisive(self) -> list[int | str]:
        """What decides the answers to all of its requests alike: the model and how it is computed, in the words that
        names of requests are made of. What came later is said only where it is not as it was before.
        """
        config = self.config
        kv_format = self.device.kv_format(self.shape, config.quantization, config.kv_cache_dtype)
        later = {
            f"kv {kv_format.name}": kv_format.name != self.device.dtype,
            f"linear layers of {self.device.backend}": config.quantization != "none",
            f"determinism {config.determinism}": config.determinism != "default",
            f"numerics {NUMERICS}": NUMERICS != 1,
        }
        said = [word for word, is_said in later.items() if is_said]
        return [FORMAT, self.model.fingerprint, self.device.dtype, config.quantization, *said]

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides which requests there are and how they are planned, but the source's content."""
        job = self.job.model_dump(
            mode="json",
            exclude={
                "output": True,
                "store": True,
                "source": {"folder"},
                "engine": {"step_timeout", "workers"},
                **_RUN_KEYS,
            },
        )
        decisive = [FORMAT, job, self.model.fingerprint, self.device.dtype, self.device.label, self.max_tokens]
        decisive += [self.model.templates, self.chat_template]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def make_run(
    job: ScoringJob,
    folder: OutputFolder,
    sequence: int = 0,
    *,
    retry_failed: bool = False,
    full: bool = False,
    not_here: str | None = None,
) -> Run:
    """`not_here` names a GPU to plan for, in place of a device of this machine.

    Raises UserError for a model, an adapter or a device that is not there, or for more memory than it has.
    """
    model = resolve_model(job.model.path)
    chat_template = read_chat_template(job.prompt, job.source.folder)
    if job.prompt.uses_chat and chat_template is None and lacks_chat_template(model):
        raise UserError(NO_CHAT_TEMPLATE)
    wanted = job.engine_config()
    workers, ranks = job.workers_here, wanted.tensor_parallel
    device = resolve_device(wanted).shared_by(workers, ranks) if not_here is None else device_not_here(not_here, wanted)
    shape = load_shape(model, ranks)
    config = settled(model, shape, wanted, device)
    refuse_too_large(memory_need(model, shape, config, device), config, device, workers)
    run = Run(folder, new_run_id(sequence), sequence, retry_failed, job, model, shape, device, config, chat_template)
    if run.max_tokens < 2:
        raise UserError("engine.kv_cache_memory: holds no request of this model; give it more")
    if job.task.context_len > max_model_len(shape, config):
        raise UserError(f"task.context_len: {job.task.context_len} is more than the context that the model has")
    for key, part in (("task", job.task), ("sampling", job.sampling)):
        if (unknown := part.unknown_token(shape.vocab_size)) is not None:
            raise UserError(f"{key}.{unknown}")
    if (too_many := job.task.too_many_dimensions(shape.hidden_size)) is not None:
        raise UserError(f"task.{too_many}")
    if (no_grammar := job.sampling.bad_grammar()) is not None:
        raise UserError(f"sampling.{no_grammar}")
    return replace(run, full=full, adapters=job_adapters(job, model, shape, config, device))


Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def open_run(
    job: ScoringJob, retry_failed: bool = False, clock: Clock = utc_now, *, full: bool = False, wait: float = 0.0
) -> Iterator[Run]:
    """Takes the output folder, mends what a killed run left, and keeps the run's record, whose times are `clock`'s.

    Raises UserError where another run has the folder for more than `wait` seconds, or for a model or device that is not
    there.
    """
    # Beside an engine: what a step is done with goes back to the system, and not into a pool of Arrow's own.
    pa.set_memory_pool(pa.system_memory_pool())
    folder = folder_of(job)
    draft = make_run(job, folder, retry_failed=retry_failed, full=full)
    folder.create()
    with folder.locked(wait) as holder, disk_errors(folder.root):
        failpoint("run.locked")
        folder.sweep_staging()
        forget_requests(folder, holder)
        verify_records(folder)
        mark_interrupted(folder)
        verify_plans(folder)
        verify_manifests(folder)
        sequence = next_sequence(folder)
        run = replace(draft, sequence=sequence, run_id=new_run_id(sequence), holder=holder)
        create_record(folder, _new_record(run, holder, clock()))
        write_progress(folder, RunProgress(run.run_id, "starting", 0.0))
        failpoint("run.recorded")
        with ctrl_c_first(), _recorded_end(run, clock):
            yield run


@contextmanager
def _recorded_end(run: Run, clock: Clock) -> Iterator[None]:
    started = time.monotonic()

    def end(status: str, error: str | None) -> None:
        seconds = time.monotonic() - started
        record_end(run.folder, run.run_id, status, ended_at=_text(clock()), seconds=seconds, error=error)

    try:
        with ctrl_c_first():
            yield
    except BaseException as problem:
        if not isinstance(problem, Exception):
            run.folder.hurry()
        end(_status(problem), str(problem) if isinstance(problem, TerminalError) else type(problem).__name__)
        raise
    end(COMPLETED, None)
    run.folder.sweep_staging()


def _status(problem: BaseException) -> str:
    """What a run is that ends so."""
    if isinstance(problem, RunStoppedError):
        return STOPPED
    return FAILED if isinstance(problem, Exception) else INTERRUPTED


def _new_record(run: Run, holder: Holder, started: datetime) -> RunRecord:
    return RunRecord(
        sequence=run.sequence,
        run_id=run.run_id,
        status=RUNNING,
        holder=holder.token,
        model=run.model.name,
        model_fingerprint=run.model.fingerprint,
        retry_failed=run.retry_failed,
        full=run.full,
        version=_version(),
        started_at=_text(started),
        name=run.job.name,
        dtype=run.device.dtype,
        quantization=run.config.quantization,
        kv_cache_dtype=run.config.kv_cache_dtype,
        determinism=run.config.determinism,
        device=run.device.label,
        price_per_hour=run.job.price_per_hour,
    )


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


@cache
def _version() -> str:
    try:
        return version("trunkline")
    except PackageNotFoundError:
        return "unknown"
