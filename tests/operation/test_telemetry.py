"""Traces and metrics, as OpenTelemetry's SDK receives them."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from aiofinetune import FineTuneSession, Retry, _observe, telemetry
from aiofinetune.batch import Batch
from aiofinetune.errors import BadRequest, ConfigurationError, ConnectFailed
from tests.batch.runs import POLL, entries, outcomes_of
from tests.servers.batchserver import BatchServer
from tests.servers.batchserver import talking_to as talking_to_batch
from tests.servers.rawserver import JOB, KEY, STREAM_HEAD, Received, answering, chunk, event, reply, talking_to
from tests.session.calls import REQUEST, create

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")

BUSY = reply(429, {"error": {"message": "slow down"}}, Retry_After="0", X_Request_ID="req-1")


@attrs.frozen
class Exported:
    """What the SDK received."""

    # Any: the SDK's own classes, which the development environment need not have.
    exporter: Any
    reader: Any

    @property
    def spans(self) -> list[Any]:
        """The spans that have ended."""
        return list(self.exporter.get_finished_spans())

    def metrics(self) -> dict[str, float]:
        """The metrics: the sum of each counter, and the count of each histogram."""
        data = self.reader.get_metrics_data()
        found = [each for one in data.resource_metrics for scope in one.scope_metrics for each in scope.metrics]
        return {each.name: sum(map(_value, each.data.data_points)) for each in found}


def _value(point: Any) -> float:  # Any: as above
    value: float = point.count if hasattr(point, "count") else point.value
    return value


@pytest.fixture
def exported() -> Iterator[Exported]:
    """Telemetry that is on during the test."""
    metrics = importlib.import_module("opentelemetry.sdk.metrics")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    memory = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    read = importlib.import_module("opentelemetry.sdk.metrics.export")
    exporter, reader = memory.InMemorySpanExporter(), read.InMemoryMetricReader()
    tracers = sdk.TracerProvider()
    tracers.add_span_processor(export.SimpleSpanProcessor(exporter))
    telemetry.instrument(tracer_provider=tracers, meter_provider=metrics.MeterProvider([reader]))
    yield Exported(exporter, reader)
    telemetry.uninstrument()


async def test_a_call_is_a_span_by_the_conventions(exported: Exported) -> None:
    """A create that is throttled and tried again is one client span with the path template, and an event a retry."""
    async with talking_to(answering(BUSY, reply(body=JOB, X_Request_ID="req-2"))) as session:
        await create(session)
        port = int(session.base_url.split(":")[2].partition("/")[0])
    (span,) = exported.spans
    assert (span.name, span.kind.name, span.status.status_code.name) == ("POST /v1/fine-tunes", "CLIENT", "UNSET")
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "url.template": "/v1/fine-tunes",
        "url.full": f"http://127.0.0.1:{port}/v1/fine-tunes",
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
        "aiofinetune.request_id": "req-2",
    }
    (retry,) = span.events
    assert (retry.name, retry.attributes["error.type"]) == ("retry", "RateLimited")
    counts = exported.metrics()
    assert counts["http.client.request.duration"] == 1
    assert (counts["aiofinetune.retries"], counts["aiofinetune.throttled"]) == (1, 1)


async def test_a_failed_call_names_its_error_and_nothing_secret(exported: Exported) -> None:
    """A refused call's span has the status as its error type; what the service says, and the key, are not in it."""
    refusal = reply(400, {"error": {"message": f"secret data {KEY}"}}, X_Request_ID=KEY)
    async with talking_to(answering(refusal)) as session:
        with pytest.raises(BadRequest):
            await create(session)
    (span,) = exported.spans
    assert (span.status.status_code.name, span.attributes["error.type"]) == ("ERROR", "400")
    assert KEY not in span.to_json()
    assert "secret" not in span.to_json()
    assert REQUEST.training_file not in span.to_json()


async def test_a_call_without_a_reply_has_a_url_and_an_error(exported: Exported) -> None:
    """Where nothing listens, the span has the required attributes, no status, and the class of the error."""
    async with talking_to(answering(b"")) as session:
        base_url = session.base_url
    async with FineTuneSession(KEY, base_url=base_url, retry=Retry(attempts=1)) as session:
        with pytest.raises(ConnectFailed):
            await session.retrieve_fine_tune("ft-1")
    (span,) = exported.spans
    assert span.name == "GET /v1/fine-tunes/{id}"
    assert span.attributes["url.full"] == f"{base_url}/fine-tunes/ft-1"
    assert span.attributes["error.type"] == "ConnectFailed"
    assert "http.response.status_code" not in span.attributes


async def test_a_stream_is_counted_while_open_and_reconnects_are_events(exported: Exported) -> None:
    """An open event stream is active until it is closed, and a break of it is an event of the program's own span."""
    pieces = [chunk(event("a")), chunk(event("a")) + chunk(b"data: [DONE]\n\n") + chunk(b"")]

    async def handler(_request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + pieces.pop(0))
        writer.close()

    tracer = sdk.TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("mine") as mine:
        async with talking_to(handler) as session, session.stream_fine_tune_events("ft-1") as events:
            assert exported.metrics()["aiofinetune.active_streams"] == 1
            assert [each.message async for each in events] == ["a"]
    assert [each.name for each in mine.events] == ["reconnect"]
    assert {span.parent.span_id for span in exported.spans} == {mine.context.span_id}
    counts = exported.metrics()
    assert (counts["aiofinetune.active_streams"], counts["aiofinetune.reconnects"]) == (0, 1)


async def test_a_job_of_a_batch_is_a_span_over_its_calls(exported: Exported) -> None:
    """Each entry of a batch has one span with its label, its job's id and its end, above the calls for it."""
    server = BatchServer()
    async with talking_to_batch(server) as session:
        await outcomes_of(Batch(session, entries(server, 2), poll_interval=POLL))
    jobs = {span.attributes["aiofinetune.label"]: span for span in exported.spans if span.name == "aiofinetune.job"}
    assert set(jobs) == {"job-1", "job-2"}
    assert {span.attributes["aiofinetune.status"] for span in jobs.values()} == {"succeeded"}
    assert all("aiofinetune.job.id" in span.attributes for span in jobs.values())
    creates = [span for span in exported.spans if span.name == "POST /v1/fine-tunes"]
    assert {span.parent.span_id for span in creates} == {span.context.span_id for span in jobs.values()}
    assert exported.metrics()["aiofinetune.active_jobs"] == 0


async def test_nothing_is_recorded_after_it_is_turned_off(exported: Exported) -> None:
    """After `uninstrument`, a call makes no span; on twice is an error that says so."""
    with pytest.raises(ConfigurationError, match="uninstrument"):
        telemetry.instrument()
    telemetry.uninstrument()
    async with talking_to(answering(reply(body=JOB))) as session:
        await create(session)
    assert exported.spans == []
    assert _observe.observer is None
