"""How far a job's answers move in the precision that it chose: a sample scored in full precision and in that one."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.device import resolve_device
from engine.machine.device_turn import turn_of
from engine.model.checkpoint import ModelFiles
from engine.request import Request, RequestOutput
from engine.stages import hear_stages
from tasks.deduplicate import PENDING, find_pending
from tasks.extract import extract_rows
from tasks.job.job import ScoringJob
from tasks.request.ask import Ask, parse_ask
from tasks.request.requests import to_requests
from tasks.request.task_type import TaskType
from tasks.request.task_types import task_type_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, make_run


@dataclass(frozen=True, slots=True)
class Difference:
    """Of absolute differences the mean and the most; NaN where nothing was left to compare."""

    mean: float
    most: float

    @classmethod
    def of(cls, found: NDArray[np.float64]) -> "Difference":
        return cls(float(found.mean()), float(found.max())) if len(found) else cls(math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Drift:
    """`requests` were scored in both precisions, `failed` ended as an error in at least one and are not compared.

    `moved` has the differences by what they are of, as the task types compare answers; `same` the parts of the rows,
    or tokens, that stayed the same, by name, behind their type's where there are several.
    """

    full: str
    chosen: str
    requests: int
    failed: int
    moved: Mapping[str, Difference]
    same: Mapping[str, float]


def measure_drift(job: ScoringJob, rows: int, tell: Callable[[str], None] = lambda _: None) -> Drift:
    """Scores `rows` unique requests, spread over the whole table, on two engines, one after the other.

    Nothing is written to the job's output folder, and answers that it holds are not used. Generated text is greedy
    whatever the job samples. `tell` hears what is being done, in a few words.

    Raises UserError where both precisions are the same, or no request is left.
    """
    if rows < 1:
        raise UserError(f"--rows {rows}: ask for at least one")
    chosen = job.engine_config()
    full = full_precision(chosen)
    tell("reading rows")
    with tempfile.TemporaryDirectory(prefix="trunkline-") as scratch:
        folder = OutputFolder(Path(scratch))
        folder.create()
        run = make_run(job.model_copy(update={"store": None}), folder)
        sample = _sample(run, rows)
    requests = [request for request, _ in sample]
    before, after = (_score(run.model, config, requests, tell) for config in (full, chosen))
    types = {request.request_id: task_type for request, task_type in sample}
    return compare(types, _precision(full), _precision(chosen), before, after)


def full_precision(chosen: EngineConfig) -> EngineConfig:
    """Not quantised, and float32 on the CPU; on a GPU in the job's dtype.

    Raises UserError where that is what is chosen already.
    """
    on_cpu = resolve_device(chosen).name == "cpu"
    full = replace(chosen, quantization="none", kv_cache_dtype="auto", dtype="float32" if on_cpu else chosen.dtype)
    if _precision(full) == _precision(chosen):
        raise UserError(
            f"model.quantization: the job runs in full precision ({_precision(full)}); "
            "choose another with --set model.quantization=int8 or --set model.dtype=bfloat16"
        )
    return full


def compare(
    types: Mapping[str, TaskType],
    full: str,
    chosen: str,
    before: Sequence[RequestOutput],
    after: Sequence[RequestOutput],
) -> Drift:
    """`before` and `after` hold outputs of the same requests, whose types are by id; each type compares its own.

    Raises UserError where none ended well in both.
    """
    others = {output.request_id: output for output in after}
    pairs = [(one, others[one.request_id]) for one in before]
    good = [pair for pair in pairs if not any(output.finish_reason == "error" for output in pair)]
    if not good:
        raise UserError("none of the sample's rows could be scored in both precisions")
    by_type: dict[TaskType, list[tuple[RequestOutput, RequestOutput]]] = defaultdict(list)
    for pair in good:
        by_type[types[pair[0].request_id]].append(pair)
    moved = {task_type.name: task_type.compare(own) for task_type, own in by_type.items()}
    measures: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for one in moved.values():
        measures[one.measure].append(one.differences)
    same = {
        name if len(moved) == 1 else f"{task}: {name}": share
        for task, one in moved.items()
        for name, share in one.same.items()
    }
    differences = {measure: Difference.of(np.concatenate(found)) for measure, found in measures.items()}
    return Drift(full, chosen, len(good), len(pairs) - len(good), differences, same)


def _sample(run: Run, rows: int) -> list[tuple[Request, TaskType]]:
    found = find_pending(run, extract_rows(run), run.folder)
    pending = pq.read_table(found.folder / PENDING)
    if not pending.num_rows:
        raise UserError("source: no row of the table can be scored")
    count = min(rows, pending.num_rows)
    chosen = pending.take(pa.array([place * pending.num_rows // count for place in range(count)]))
    types = [task_type_of(parse_ask(text).task) for text in chosen.column("ask").to_pylist()]
    asked = [row for batch in chosen.to_batches() for row in to_requests(batch, _ask_to_compare)]
    return [(request, task_type) for row, task_type in zip(asked, types, strict=True) for request in row]


def _ask_to_compare(text: str) -> Ask:
    ask = parse_ask(text)
    return task_type_of(ask.task).ask_to_compare(ask)


def _score(
    model: ModelFiles, config: EngineConfig, requests: list[Request], tell: Callable[[str], None]
) -> list[RequestOutput]:
    from engine.loop.batch import plan_requests, run_plan
    from engine.loop.build import start_engine

    precision = _precision(config)
    with hear_stages(lambda stage: tell(f"{precision}: {stage}")):
        engine = start_engine(model, config, turn=turn_of(resolve_device(config), ranks=config.tensor_parallel))
        try:
            engine.wait_until_loaded()
            tell(f"{precision}: scoring {len(requests):,} rows")
            return run_plan(engine, plan_requests(engine, requests), requests)
        finally:
            engine.close()


def _precision(config: EngineConfig) -> str:
    dtype = resolve_device(config).dtype
    weights = dtype if config.quantization == "none" else f"{config.quantization} over {dtype}"
    return weights if config.kv_cache_dtype == "auto" else f"{weights}, {config.kv_cache_dtype} KV"
