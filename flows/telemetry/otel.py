"""Spans and metrics of runs over OTLP, where an endpoint is set; nothing, and no import, where none is.

Names are those of OpenTelemetry's semantic conventions where they have one (`gen_ai.*`, `error.type`, `service.*`), and
`trunkline.*` otherwise. No attribute has text of a row, a prompt or an answer.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from engine.errors import UserError
from tasks.infer import ShardDone
from tasks.storage.run import Run
from tasks.workers import Computed

log = logging.getLogger(__name__)

# As the specification of the OTLP exporters has them.
ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


class Telemetry(Protocol):
    """What a run tells of itself while it goes on."""

    def step(self, name: str, /) -> AbstractContextManager[None]:
        """A step of the flow, as long as the context is open."""

    def progress(self, computed: Computed, rows: int, rows_done: int, tokens_per_second: float, engines: int) -> None:
        """How far the run is: what it computed so far, how many of its rows have an end, how fast it is now, on how
        many engines."""

    def shard(self, done: ShardDone) -> None:
        """A shard has ended now."""

    def failed_shard(self, shard_id: str, error: Exception) -> None:
        """A shard has failed for good."""


class Silent:
    """Nobody listens."""

    def step(self, _: str, /) -> AbstractContextManager[None]:
        return nullcontext()

    def progress(self, computed: Computed, rows: int, rows_done: int, tokens_per_second: float, engines: int) -> None:
        pass

    def shard(self, done: ShardDone) -> None:
        pass

    def failed_shard(self, shard_id: str, error: Exception) -> None:
        pass


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(environment.get(name) for name in ENDPOINTS)


@contextmanager
def run_telemetry(run: Run) -> Iterator[Telemetry]:
    """Raises UserError where an endpoint is set and what sends to it is not installed."""
    if not is_wanted():
        yield Silent()
        return
    try:
        from flows.telemetry.exporters import exporting
    except ImportError:
        said = "is set, and OpenTelemetry's exporter is not installed: pip install 'trunkline[otel]', or unset it"
        raise UserError(f"{next(name for name in ENDPOINTS if os.environ.get(name))} {said}") from None
    from flows.telemetry.run_signals import RunSignals

    with exporting() as (tracer, meter), RunSignals(run, tracer, meter) as signals:
        yield signals
