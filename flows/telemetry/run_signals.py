"""A run as spans and metrics."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from tasks.infer import ShardDone
from tasks.storage.run import Run
from tasks.workers import Computed

NANOSECONDS = 1_000_000_000


class RunSignals(AbstractContextManager["RunSignals"]):
    """One span for the run, below it one for each step and shard; metrics are read of the newest progress."""

    def __init__(self, run: Run, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._kv_bytes = run.config.kv_cache_memory
        self._about = {
            "gen_ai.request.model": run.model.name,
            "gen_ai.provider.name": "trunkline",
            "trunkline.job": run.job.name,
            "trunkline.run.id": run.run_id,
        }
        self._computed = Computed()
        self._rows, self._rows_done, self._speed, self._kv_share = 0, 0, 0.0, 0.0
        more = {"trunkline.device": run.device.label, "trunkline.dtype": run.device.dtype}
        self._run: Span = tracer.start_span("trunkline.run", kind=SpanKind.INTERNAL, attributes=self._about | more)
        self._context = trace.set_span_in_context(self._run)
        self._requests = meter.create_counter("trunkline.requests", "{request}", "Requests that ended, by shard")
        self._errors = meter.create_counter("trunkline.errors", "{request}", "Requests that ended as errors")
        self._steps = meter.create_histogram("trunkline.engine.step.duration", "s", "Mean of some steps")
        self._observe(meter)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        computed = self._computed
        self._run.set_attribute("gen_ai.usage.input_tokens", computed.prompt)
        self._run.set_attribute("gen_ai.usage.output_tokens", computed.decode)
        self._run.set_attribute("trunkline.rows", self._rows)
        _end(self._run, problem)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        span = self._tracer.start_span(f"trunkline.{name}", context=self._context)
        try:
            yield
        except BaseException as problem:
            _end(span, problem)
            raise
        _end(span, None)

    def shard(self, done: ShardDone) -> None:
        """Of one that was committed before there is nothing to tell."""
        if done.skipped:
            return
        now = time.time_ns()
        span = self._tracer.start_span(
            "trunkline.shard",
            context=self._context,
            start_time=now - int(done.seconds * NANOSECONDS),
            attributes={
                "trunkline.shard.id": done.shard_id,
                "trunkline.shard.requests": done.requests,
                "trunkline.shard.rows": done.rows,
                "trunkline.shard.errors": done.errors,
                "trunkline.shard.computed_tokens": done.computed_prompt_tokens,
                "gen_ai.usage.input_tokens": done.prompt_tokens,
                "gen_ai.usage.output_tokens": done.generated_tokens,
            },
        )
        span.end(now)
        self._requests.add(done.requests, self._about)
        self._errors.add(done.errors, self._about)

    def failed_shard(self, shard_id: str, error: Exception) -> None:
        span = self._tracer.start_span(
            "trunkline.shard", context=self._context, attributes={"trunkline.shard.id": shard_id}
        )
        _end(span, error)

    def progress(self, computed: Computed, rows: int, rows_done: int, tokens_per_second: float, engines: int) -> None:
        before, now = self._computed, computed
        if now.steps > before.steps:
            seconds = (now.busy_seconds - before.busy_seconds) / (now.steps - before.steps)
            self._steps.record(seconds, self._about)
        self._computed = computed
        self._rows, self._rows_done, self._speed = rows, rows_done, tokens_per_second
        self._kv_share = computed.kv_bytes / max(self._kv_bytes * engines, 1)

    def _observe(self, meter: Meter) -> None:
        def tokens(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(self._computed.prompt, self._about | {"gen_ai.token.type": "input"})
            yield Observation(self._computed.decode, self._about | {"gen_ai.token.type": "output"})

        def rows(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(self._rows_done, self._about)

        def speed(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(self._speed, self._about)

        def kv_share(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(self._kv_share, self._about)

        meter.create_observable_counter("trunkline.tokens", [tokens], "{token}", "Tokens that were computed")
        meter.create_observable_gauge("trunkline.rows.done", [rows], "{row}", "Rows that have an end")
        meter.create_observable_gauge("trunkline.throughput", [speed], "{token}/s", "Computed tokens a second")
        meter.create_observable_gauge("trunkline.kv_cache.utilization", [kv_share], "1", "KV cache in use")

    def __enter__(self) -> Self:
        return self


def _end(span: Span, problem: BaseException | None) -> None:
    """An error's words may quote a row: its type alone is told."""
    if problem is not None:
        span.set_attribute("error.type", type(problem).__name__)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
