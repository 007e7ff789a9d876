"""Neither keys nor data are in the log or in traces, wherever a service echoes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from aiofinetune import Batch, FineTuneError, FineTuneRequest, FineTuneSession, Retry
from aiofinetune.batch import BatchStopped
from tests.servers.rawserver import KEY, STREAM_HEAD, Received, chunk, reply, talking_to
from tests.session.calls import ECHO

PROMPT = "the private words of a prompt"

ECHOES = [
    *(raw.replace(KEY.encode(), f"{KEY} {PROMPT}".encode()) for raw in ECHO),
    reply(429, {"error": {"message": PROMPT, "type": PROMPT, "param": PROMPT, "code": PROMPT}}, Retry_After="0"),
    reply(429, {"error": {"message": PROMPT, "type": "insufficient_quota", "code": "insufficient_quota"}}),
    reply(503, PROMPT.encode(), X_Request_ID=PROMPT, Retry_After="0"),
    reply(200, {"id": "ft-1", "status": PROMPT, "model": [PROMPT], "created_at": PROMPT}),
    reply(200, {"id": "ft-1", "status": [PROMPT]}),
    reply(200, {"data": [{"id": "ft-1", "status": "running", "training_files": PROMPT}], "has_more": True}),
    reply(200, {"id": "ft-1", "status": "failed", "events": [{"message": PROMPT}], "error": {"message": PROMPT}}),
    STREAM_HEAD + chunk(f'data: {{"error": {{"message": "{PROMPT}"}}}}\n\n'.encode()),
]
RETRY = Retry(attempts=3, base=0.02, cap=0.02, grace=0.01, deadline=0.2)


async def stream(session: FineTuneSession) -> None:
    async with session.stream_fine_tune_events("ft-1") as events:
        async for _ in events:
            pass


async def batch(session: FineTuneSession) -> None:
    request = FineTuneRequest(training_file="file-1", model="ada", suffix="x")
    # A job of which nothing else is heard is followed for ever.
    with contextlib.suppress(BatchStopped, TimeoutError):
        async with (
            asyncio.timeout(0.5),
            Batch(session, [request] * 3, poll_interval=0.05, outage=0.1) as batch,
        ):
            await batch.run()


CALLS: dict[str, Callable[[FineTuneSession], Awaitable[object]]] = {
    "list": lambda session: session.list_fine_tunes(),
    "create": lambda session: session.create_fine_tune(FineTuneRequest(training_file="file-1", model="ada")),
    "upload": lambda session: session.upload_file(PROMPT.encode(), filename=f"{PROMPT}.jsonl"),
    "completion": lambda session: session.create_completion("ada", PROMPT),
    "stream": stream,
    "wait": lambda session: session.wait("ft-1", timeout=0.2),
    "batch": batch,
}


@pytest.fixture
def spans() -> Iterator[Callable[[], str]]:
    """Everything that traces hold, as text; empty where OpenTelemetry's SDK is not installed."""
    try:
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # an extra
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415
    except ImportError:
        yield str
        return
    from aiofinetune import telemetry  # noqa: PLC0415

    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.instrument(tracer_provider=tracers)
    yield lambda: "".join(span.to_json() for span in exporter.get_finished_spans())
    telemetry.uninstrument()


@pytest.mark.fastforward
@pytest.mark.parametrize("kind", CALLS)
async def test_neither_keys_nor_data_are_told(
    kind: str, caplog: pytest.LogCaptureFixture, spans: Callable[[], str]
) -> None:
    """A service that echoes the key and a prompt, wherever it does, gets them into no record and no span."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    for raw in ECHOES:

        async def handler(_request: Received, writer: asyncio.StreamWriter, raw: bytes = raw) -> None:
            writer.write(raw)
            writer.close()

        caplog.clear()
        async with talking_to(handler, retry=RETRY) as session:
            with contextlib.suppress(FineTuneError):
                await CALLS[kind](session)
        told = [str(vars(each)) + each.getMessage() for each in caplog.records if each.name.startswith("aiofinetune")]
        assert told
        for words in (KEY, PROMPT, PROMPT.replace(" ", "%20")):
            assert not [each for each in told if words in each]
            assert words not in spans()


async def test_a_file_of_a_private_name_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does the name of a file get there, from a batch whose upload fails."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    path = tmp_path / f"{PROMPT}.jsonl"
    path.write_text('{"prompt": "wren ->", "completion": " bird"}\n')

    async def handler(_request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(500, PROMPT.encode()))
        writer.close()

    async with talking_to(handler, retry=RETRY) as session:
        request = FineTuneRequest(training_file=str(path), model="ada")
        async with Batch(session, [request], poll_interval=0.01) as batch:
            (outcome,) = await batch.run()
    assert outcome.status == "rejected"
    assert not [each for each in caplog.records if PROMPT in str(vars(each)) + each.getMessage()]
