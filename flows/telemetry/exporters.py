"""OpenTelemetry's SDK, as its own environment variables (`OTEL_*`) configure it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

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


@contextmanager
def exporting() -> Iterator[tuple[Tracer, Meter]]:
    """What is told within the context is sent in the background, and the rest at its end; a collector that is away
    costs the signals, never the run.

    The providers are the run's own: another's in the process, as of Prefect, stay as they are.
    """
    named = Resource.create({"service.name": NAME, "service.version": _version()})
    resource = named.merge(OTELResourceDetector().detect())
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    metrics = MeterProvider(resource=resource, metric_readers=[reader], shutdown_on_exit=False)
    try:
        yield traces.get_tracer(NAME, _version()), metrics.get_meter(NAME, _version())
    finally:
        traces.shutdown()
        metrics.shutdown()


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:
        return "unknown"
