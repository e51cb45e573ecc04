"""How far a job's answers move in the precision that it chose: a sample scored in full precision and in that one."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
from tasks.plan import to_requests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, make_run


@dataclass(frozen=True, slots=True)
class Drift:
    """`requests` were scored in both precisions, `failed` ended as an error in at least one and are not compared.

    Absolute log-probability differences are between labels' log-likelihoods, or between generated tokens as far as
    both runs' are the same. `label_agreement` is None for `generate`, the shares of rows with the same tokens
    and of the full-precision run's tokens before the first difference are None for `choice`.
    """

    full: str
    chosen: str
    requests: int
    failed: int
    mean_difference: float
    max_difference: float
    label_agreement: float | None = None
    same_rows: float | None = None
    same_tokens: float | None = None


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
        run = make_run(job, folder)
        requests = _sample(run, rows)
    before, after = (_score(run.model, config, requests, tell) for config in (full, chosen))
    return compare(_precision(full), _precision(chosen), before, after)


def full_precision(chosen: EngineConfig) -> EngineConfig:
    """Not quantised, and float32 on the CPU; on a GPU in the job's dtype.

    Raises UserError where that is what is chosen already.
    """
    on_cpu = resolve_device(chosen).name == "cpu"
    full = replace(chosen, quantization="none", dtype="float32" if on_cpu else chosen.dtype)
    if _precision(full) == _precision(chosen):
        raise UserError(
            f"model.quantization: the job runs in full precision ({_precision(full)}); "
            "choose another with --set model.quantization=int8 or --set model.dtype=bfloat16"
        )
    return full


def compare(full: str, chosen: str, before: Sequence[RequestOutput], after: Sequence[RequestOutput]) -> Drift:
    """`before` and `after` hold outputs of the same requests. Raises UserError where none ended well in both."""
    others = {output.request_id: output for output in after}
    pairs = [(one, others[one.request_id]) for one in before]
    good = [pair for pair in pairs if not any(output.finish_reason == "error" for output in pair)]
    if not good:
        raise UserError("none of the sample's rows could be scored in both precisions")
    failed = len(pairs) - len(good)
    if good[0][0].label_scores is not None:
        return _compare_labels(full, chosen, good, failed)
    return _compare_tokens(full, chosen, good, failed)


def _compare_labels(full: str, chosen: str, pairs: Sequence[tuple[RequestOutput, RequestOutput]], failed: int) -> Drift:
    scores = [[np.array([score.logprob for score in one.label_scores or ()]) for one in pair] for pair in pairs]
    differences = np.concatenate([np.abs(before - after) for before, after in scores])
    agreed = [int(np.argmax(before)) == int(np.argmax(after)) for before, after in scores]
    return Drift(
        full,
        chosen,
        len(pairs),
        failed,
        float(differences.mean()),
        float(differences.max()),
        label_agreement=float(np.mean(agreed)),
    )


def _compare_tokens(full: str, chosen: str, pairs: Sequence[tuple[RequestOutput, RequestOutput]], failed: int) -> Drift:
    common = [_common_tokens(*pair) for pair in pairs]
    differences = np.array(
        [
            abs(one.logprob - other.logprob)
            for (before, after), count in zip(pairs, common, strict=True)
            for one, other in zip((before.logprobs or ())[:count], (after.logprobs or ())[:count], strict=True)
        ]
    )
    return Drift(
        full,
        chosen,
        len(pairs),
        failed,
        # No token in common leaves nothing to compare.
        float(differences.mean()) if len(differences) else float("nan"),
        float(differences.max()) if len(differences) else float("nan"),
        same_rows=float(np.mean([before.token_ids == after.token_ids for before, after in pairs])),
        same_tokens=sum(common) / sum(len(before.token_ids) for before, _ in pairs),
    )


def _common_tokens(before: RequestOutput, after: RequestOutput) -> int:
    shortest = min(len(before.token_ids), len(after.token_ids))
    return next((i for i in range(shortest) if before.token_ids[i] != after.token_ids[i]), shortest)


def _sample(run: Run, rows: int) -> list[Request]:
    found = find_pending(run, extract_rows(run), run.folder)
    pending = pq.read_table(found.folder / PENDING)
    if not pending.num_rows:
        raise UserError("source: no row of the table can be scored")
    count = min(rows, pending.num_rows)
    chosen = pending.take(pa.array([place * pending.num_rows // count for place in range(count)]))
    is_choice = run.job.task.type == "choice"
    params = run.job.sampling.params() if is_choice else replace(run.job.sampling.params(), temperature=0.0, logprobs=0)
    batches = chosen.combine_chunks().to_batches()
    return [request for batch in batches for request in to_requests(batch, params, is_choice=is_choice)]


def _score(
    model: ModelFiles, config: EngineConfig, requests: list[Request], tell: Callable[[str], None]
) -> list[RequestOutput]:
    from engine.loop.batch import plan_requests, run_plan
    from engine.loop.build import start_engine

    precision = _precision(config)
    with hear_stages(lambda stage: tell(f"{precision}: {stage}")):
        engine = start_engine(model, config, turn=turn_of(resolve_device(config)))
        try:
            engine.wait_until_loaded()
            tell(f"{precision}: scoring {len(requests):,} rows")
            return run_plan(engine, plan_requests(engine, requests), requests)
        finally:
            engine.close()


def _precision(config: EngineConfig) -> str:
    dtype = resolve_device(config).dtype
    return dtype if config.quantization == "none" else f"{config.quantization} over {dtype}"
