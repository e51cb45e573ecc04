"""What OpenTelemetry gets of a run: in memory, over HTTP, and nothing where nobody asks for it."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from flows.score import score
from flows.telemetry.otel import ENDPOINTS, Silent, is_wanted, run_telemetry
from flows.workers import workers_from
from tasks.infer import ShardDone
from tasks.job.job_file import parse_job
from tasks.storage.run import open_run
from tasks.workers import Computed
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers

SECRET = "The parcel came late"


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENDPOINTS, "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


DONE = ShardDone(
    shard_id="ab",
    index=0,
    requests=5,
    rows=6,
    errors=1,
    prompt_tokens=50,
    computed_prompt_tokens=20,
    generated_tokens=7,
    seconds=2.5,
    skipped=False,
)
COMPUTED = Computed(2, 30, 4, 8, busy_seconds=1.0, limit_seconds=0.5, steps=4, kv_bytes=2**19)


class Memory:
    """OpenTelemetry's own exporters into memory."""

    def __init__(self) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        traces = TracerProvider()
        traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = traces.get_tracer("test")
        self.meter = MeterProvider(metric_readers=[self._reader]).get_meter("test")

    def metrics(self) -> dict[tuple[str, str | None], Any]:
        """Points by name and token type."""
        [resource] = self._reader.get_metrics_data().resource_metrics
        found = [one for scope in resource.scope_metrics for one in scope.metrics]
        return {
            (one.name, point.attributes.get("gen_ai.token.type")): point
            for one in found
            for point in one.data.data_points
        }

    def spans(self) -> dict[tuple[str, str | None], Any]:
        """By name and shard."""
        ended: Any = self._exporter.get_finished_spans()
        return {(span.name, span.attributes.get("trunkline.shard.id")): span for span in ended}


def tell(signals: Any) -> None:
    with signals.step("extract"):
        pass
    signals.shard(DONE)
    signals.shard(replace(DONE, skipped=True))
    signals.failed_shard("cd", RuntimeError(SECRET))
    signals.progress(COMPUTED, rows=9, rows_done=4, tokens_per_second=12.5, engines=1)


def test_a_run_in_memory(job_of: JobMaker) -> None:
    from flows.telemetry.run_signals import RunSignals

    memory = Memory()
    job = job_of([{"text": SECRET}], engine={"device": "cpu", "kv_cache_memory": "1MiB"})
    with open_run(job) as run:
        signals = RunSignals(run, memory.tracer, memory.meter)
        tell(signals)
        points = memory.metrics()
        signals.__exit__(None, ValueError(SECRET), None)
        model = run.model.name

    spans = memory.spans()
    assert set(spans) == {
        ("trunkline.run", None),
        ("trunkline.extract", None),
        ("trunkline.shard", "ab"),
        ("trunkline.shard", "cd"),
    }
    whole, done, failed = spans["trunkline.run", None], spans["trunkline.shard", "ab"], spans["trunkline.shard", "cd"]
    assert {span.parent.span_id for span in spans.values() if span.parent} == {whole.context.span_id}
    assert (done.end_time - done.start_time) / 1e9 == 2.5
    assert (done.attributes["gen_ai.usage.input_tokens"], done.attributes["gen_ai.usage.output_tokens"]) == (50, 7)
    assert (failed.attributes["error.type"], whole.attributes["error.type"]) == ("RuntimeError", "ValueError")
    assert whole.attributes["gen_ai.request.model"] == model
    assert (whole.attributes["gen_ai.usage.input_tokens"], whole.attributes["gen_ai.usage.output_tokens"]) == (34, 8)
    assert not [span for span in spans.values() if SECRET in span.to_json()]

    assert points.pop(("trunkline.engine.step.duration", None)).sum == 0.25
    assert {name: point.value for name, point in points.items()} == {
        ("trunkline.requests", None): 5,
        ("trunkline.errors", None): 1,
        ("trunkline.tokens", "input"): 34,
        ("trunkline.tokens", "output"): 8,
        ("trunkline.rows.done", None): 4,
        ("trunkline.throughput", None): 12.5,
        ("trunkline.kv_cache.utilization", None): 0.5,
    }


class Collector(BaseHTTPRequestHandler):
    """Keeps what is posted to it, by path."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.setdefault(self.path, []).append(body)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing of it on the terminal."""


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.bodies = {}  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("prefect_server")
def test_a_collector_gets_all_of_a_flow(
    small_job: dict[str, Any], collector: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    with workers_from(lambda _: nullcontext(FakeWorkers())):
        score(parse_job(small_job, "test"))
    bodies = collector.bodies  # type: ignore[attr-defined]
    assert set(bodies) == {"/v1/traces", "/v1/metrics"}
    asked = [ExportTraceServiceRequest.FromString(body) for body in bodies["/v1/traces"]]
    spans = [span for one in asked for sent in one.resource_spans for scope in sent.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == [
        "trunkline.deduplicate",
        "trunkline.extract",
        "trunkline.plan",
        "trunkline.publish",
        "trunkline.run",
        "trunkline.shard",
    ]
    assert len({span.trace_id for span in spans}) == 1
    assert SECRET.encode() not in b"".join(body for path in bodies.values() for body in path)


@pytest.mark.parametrize("signal", ["TRACES", "METRICS"])
def test_where_one_signal_has_an_endpoint_the_other_is_not_sent(
    signal: str, collector: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.telemetry import exporters

    other = {"TRACES": "OTLPMetricExporter", "METRICS": "OTLPSpanExporter"}[signal]
    monkeypatch.setattr(exporters, other, lambda: pytest.fail("it would send to a collector of this machine"))
    path = f"/v1/{signal.lower()}"
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", f"http://127.0.0.1:{collector.server_port}{path}")
    with exporters.exporting() as (tracer, meter):
        tracer.start_span("one").end()
        meter.create_counter("one").add(1)
    assert set(collector.bodies) == {path}  # type: ignore[attr-defined]


def test_a_collector_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.telemetry import exporters

    monkeypatch.setattr(exporters, "SECONDS_TO_SEND", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with exporters.exporting() as (tracer, meter):
        tracer.start_span("one").end()
        meter.create_counter("one").add(1)
        began = time.monotonic()
    assert time.monotonic() - began < 2


def test_nobody_asks_and_nothing_is_imported(job_of: JobMaker) -> None:
    with open_run(job_of([{"text": "a"}])) as run, run_telemetry(run) as telemetry:
        assert isinstance(telemetry, Silent)
    program = "import sys, flows.score; print([name for name in sys.modules if name.startswith('opentelemetry.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "opentelemetry.sdk" not in done.stdout
    assert "exporter" not in done.stdout


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_who_asks(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted


def test_an_endpoint_without_the_library_is_one_line(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "flows.telemetry.exporters", None)
    with (
        open_run(job_of([{"text": "a"}])) as run,
        pytest.raises(UserError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT is set, .* pip install 'trunkline\[otel\]'"),
        run_telemetry(run),
    ):
        pass


def test_pages_name_what_is_sent() -> None:
    page = (Path(__file__).parents[3] / "docs" / "observability.md").read_text()
    source = (Path(__file__).parents[3] / "flows" / "telemetry" / "run_signals.py").read_text()
    named = set(re.findall(r'"((?:trunkline|gen_ai)\.[\w.]+)"', source))
    assert named <= set(re.findall(r"`((?:trunkline|gen_ai)\.[\w.]+)`", page))
