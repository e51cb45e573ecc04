"""Answers to calls of SQL functions: the rows of a run without a source or an output folder, on one engine."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.loop.plan_cost import plan_cost
from engine.model.tokenizer import load_tokenizer
from engine.planning.planner import make_plan, shard_work
from engine.request import RequestOutput
from tasks.functions.functions import Function
from tasks.in_process import InProcess
from tasks.job.job import ScoringJob
from tasks.request.prompts import prompt_columns
from tasks.request.requests import NewRequest, RequestBuilder, row_requests
from tasks.request.task_types import task_type_of
from tasks.sections import SECTION_ROWS
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import make_run
from tasks.storage.run_adapters import adapter_sizes
from tasks.workers import Computed


@dataclass(frozen=True, slots=True)
class Answer:
    """A call's value, or the error of one that has none; neither where an argument is NULL."""

    value: object = None
    error: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call that can be answered."""

    function: Function
    request: NewRequest


class Answerer:
    """Builds calls' requests, and has them computed by `workers`. All of it may be called from any thread."""

    def __init__(self, jobs: Mapping[Function, ScoringJob]) -> None:
        """Waits for the model. `jobs` differ in what each function asks. Raises UserError as a run would."""
        nowhere = OutputFolder(Path())
        self._runs = {function: make_run(job, nowhere) for function, job in jobs.items()}
        run = next(iter(self._runs.values()))
        tokenizer = load_tokenizer(run.model)
        self._builders = {
            function: RequestBuilder(one, prompt_columns(one.job.prompt, tuple(function.parameters)), tokenizer)
            for function, one in self._runs.items()
        }
        self._building = threading.Lock()
        self._workers = InProcess(run.model, run.config)
        try:
            self._config = self._workers.config()
        except BaseException:
            self._workers.close()
            raise
        self._shape, self._device = run.shape, run.device
        self._cost = plan_cost(run.model, run.shape, run.config, run.device)

    @property
    def computed(self) -> Computed:
        return self._workers.totals()

    def close(self) -> None:
        self._workers.close()

    def read(self, function: Function, rows: Sequence[tuple[Any, ...]]) -> list[Call | Answer]:
        """What to compute for each row's arguments; an answer where there is nothing to compute."""
        names = list(function.parameters)
        columns = [
            pa.array(values, function.parameters[name])
            for name, values in zip(names, zip(*rows, strict=True), strict=True)
        ]
        batch = SourceBatch(0, pa.record_batch(columns, names))
        with self._building:
            built = self._builders[function].build(batch, batch.custom_ids(None))
        return [_failed(one.type, one.message) if isinstance(one, RowError) else Call(function, one) for one in built]

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """All of them as one table: equal requests once, shared prefixes once."""
        unique = {call.request.request_hash: call.request for call in calls}
        # As `read_sections` cuts a table that is too long to be planned at once.
        ordered = sorted(unique.values(), key=lambda one: one.asked.prompt_token_ids.astype(">u4").tobytes())
        outputs: dict[str, Sequence[RequestOutput]] = {}
        for first in range(0, len(ordered), SECTION_ROWS):
            outputs |= self._compute(ordered[first : first + SECTION_ROWS])
        return [_answer(call, outputs[call.request.request_hash]) for call in calls]

    def _compute(self, section: Sequence[NewRequest]) -> dict[str, Sequence[RequestOutput]]:
        """Each request's outputs, by its name."""
        rows = [row_requests(one.request_hash, one.asked, one.ask) for one in section]
        requests = [request for row in rows for request in row]
        adapters = adapter_sizes([request.adapter for request in requests], self._shape, self._config, self._device)
        sizes = [len(row) for row in rows]
        plan = make_plan(requests, self._config, self._cost, row_sizes=sizes, adapters=adapters)
        futures = [self._workers.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
        made = {output.request_id: output for future in futures for output in future.result()}
        return {
            one.request_hash: [made[request.request_id] for request in row]
            for one, row in zip(section, rows, strict=True)
        }


def _answer(call: Call, outputs: Sequence[RequestOutput]) -> Answer:
    failed = next((output for output in outputs if output.finish_reason == "error"), None)
    if failed is not None:
        return _failed(failed.error_type or "ERROR", failed.error_message or "")
    ask, asked = call.request.ask, call.request.asked
    return Answer(call.function.value(task_type_of(ask.task).result(ask, asked.label_texts, outputs)))


def _failed(error_type: str, message: str) -> Answer:
    return Answer(error=f"{error_type}: {message}")
