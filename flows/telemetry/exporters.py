"""OpenTelemetry's SDK, as its own environment variables (`OTEL_*`) configure it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from threading import Thread

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

NAME = "trunkline"
# At a run's end, within the time that it has after Ctrl-C: the exporters would try for a quarter of a minute.
SECONDS_TO_SEND = 2.0


@contextmanager
def exporting() -> Iterator[tuple[Tracer, Meter]]:
    """What is told within the context is sent in the background, and the rest at its end; a collector that is away
    costs the signals, never the run. Spans, or metrics, without an endpoint go nowhere.

    The providers are the run's own: another's in the process, as of Prefect, stay as they are.
    """
    named = Resource.create({"service.name": NAME, "service.version": _version()})
    resource = named.merge(OTELResourceDetector().detect())
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    if _has_endpoint("TRACES"):
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    readers = [PeriodicExportingMetricReader(OTLPMetricExporter())] if _has_endpoint("METRICS") else []
    metrics = MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)
    try:
        yield traces.get_tracer(NAME, _version()), metrics.get_meter(NAME, _version())
    finally:
        _within(SECONDS_TO_SEND, traces.shutdown, metrics.shutdown)


def _has_endpoint(signal: str) -> bool:
    """The exporters have one of their own, on this machine, where none is set."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def _within(seconds: float, *actions: Callable[[], None]) -> None:
    """Side by side; what takes longer is left to itself."""
    deadline = time.monotonic() + seconds
    threads = [Thread(target=action, name="otel-end", daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:
        return "unknown"
