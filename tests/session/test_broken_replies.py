"""Replies that break off or are garbled within their body fail at once, whichever parser aiohttp has."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter
from pathlib import Path
from typing import Final

import pytest
from aiohttp import http_parser

from aiofinetune import (
    ConnectionLost,
    CreateUncertain,
    FineTuneError,
    FineTuneRequest,
    ProtocolViolation,
    Retry,
    StreamInterrupted,
)
from tests.servers.rawserver import STREAM_HEAD, Handler, Received, chunk, event, knowing_file, talking_to

pytestmark = pytest.mark.fastforward

ONCE: Final = Retry(attempts=1, grace=0.01)
AT_ONCE: Final = 2.0
"""Seconds, of which a call has 60 for its reply and a stream 300 for its next byte."""
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
MODELS: Final = b'{"object": "list", "data": []}'
GARBAGE: Final = {
    "chunk size": b"zz\r\n",
    "negative chunk size": b"-5\r\nhello\r\n",
    "trailer": b"0\r\nb\x00d trailer\r\n\r\n",
    "plain text": b"upstream connect error\r\n",
    "another reply": b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
}
cases = pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
ends = pytest.mark.parametrize("closes", [True, False], ids=["closed", "left open"])
gaps = pytest.mark.parametrize("pauses", [True, False], ids=["apart", "together"])


@pytest.fixture(autouse=True, params=["C", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both of aiohttp's parsers: platforms without wheels have the one in Python."""
    if request.param == "Python":
        monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", http_parser.HttpResponseParserPy)
    return str(request.param)


def writing(*pieces: bytes, closes: bool | None = None, pauses: bool = False) -> Handler:
    """A handler that writes its pieces, with time between them for each to be read alone where it `pauses`.

    Then it closes the connection, or waits until the client does; None leaves it ready for the next request.
    """

    async def handler(request: Received, writer: StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            if pauses:
                await writer.drain()
                await asyncio.sleep(0.01)
        if closes:
            writer.close()
        elif closes is not None:
            await request.gone()

    return handler


@cases
@ends
@gaps
async def test_garbled_call(garbage: bytes, closes: bool, pauses: bool) -> None:
    """A call whose reply is garbled within the body fails at once."""
    handler = writing(HEAD + chunk(MODELS[:9]), garbage, closes=closes, pauses=pauses)
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(AT_ONCE):
        with pytest.raises((ConnectionLost, ProtocolViolation)):
            await session.list_models()


async def test_chunk_longer_than_its_size() -> None:
    """A chunk that goes on past its size fails a call by the connection's end at the latest."""
    handler = writing(HEAD + chunk(MODELS[:9]), b"2\r\nhello\r\n", closes=True)
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(AT_ONCE):
        with pytest.raises((ConnectionLost, ProtocolViolation)):
            await session.list_models()


@cases
async def test_garbled_create(garbage: bytes) -> None:
    """A create whose reply is garbled within the body may have made a job, and says so at once."""
    handler = writing(HEAD + chunk(b'{"object": "fine-tune"'), garbage, closes=True, pauses=True)
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(2 * AT_ONCE):
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(FineTuneRequest(training_file="file-1", model="ada"))


@cases
@ends
@gaps
async def test_garbled_stream(garbage: bytes, closes: bool, pauses: bool) -> None:
    """A stream that is garbled fails at once, after the events that came whole."""
    handler = writing(STREAM_HEAD + chunk(event("a")), garbage, closes=closes, pauses=pauses)
    said: list[str] = []
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(AT_ONCE):
        with pytest.raises((StreamInterrupted, ProtocolViolation)):
            async with session.stream_fine_tune_events("ft-1") as events:
                async for each in events:
                    said.append(each.message)  # noqa: PERF401  # what came before the failure counts
    # What comes in one piece with the garbage may be lost with the whole reply.
    assert said == ["a"] or not pauses


@cases
@pytest.mark.parametrize("to_path", [True, False], ids=["to a path", "to memory"])
async def test_garbled_download(garbage: bytes, to_path: bool, tmp_path: Path) -> None:
    """A download that is garbled fails at once, and leaves no part of the file."""
    handler = knowing_file(9000, writing(HEAD + chunk(b"x" * 5000), garbage, closes=False, pauses=True))
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(2 * AT_ONCE):
        with pytest.raises((ConnectionLost, ProtocolViolation)):
            await (session.download_file("file-1", tmp_path / "a") if to_path else session.download_file("file-1"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [b"100", b"99999999999"])
async def test_body_shorter_than_its_length(size: bytes) -> None:
    """A body that ends before its Content-Length is a lost connection, told at once."""
    handler = writing(b"HTTP/1.1 200 OK\r\nContent-Length: " + size + b"\r\n\r\n" + MODELS, closes=True, pauses=True)
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(AT_ONCE):
        with pytest.raises(ConnectionLost):
            await session.list_models()


@pytest.mark.parametrize(
    "extra", [b"\r\n", b"garbage", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", chunk(b"more")]
)
@gaps
async def test_bytes_after_the_end(extra: bytes, pauses: bool) -> None:
    """Bytes after a reply's end hold up neither its call nor the next one."""
    handler = writing(HEAD + chunk(MODELS) + chunk(b""), extra, pauses=pauses)
    async with talking_to(handler, retry=ONCE) as session, asyncio.timeout(2 * AT_ONCE):
        for number in range(2):
            try:
                assert await session.list_models() == ()
            except (ConnectionLost, ProtocolViolation):
                # They come with the reply, or with the next one.
                assert number > 0 or not pauses


async def test_two_readers_of_one_stream() -> None:
    """A second task that reads a stream gets an error that says so."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(event("a")))
        await request.gone()

    async with talking_to(handler, retry=ONCE) as session, session.stream_fine_tune_events("ft-1") as events:
        assert (await anext(events)).message == "a"
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        with pytest.raises(FineTuneError, match="one task at a time"):
            await anext(events)
        with pytest.raises(FineTuneError):
            await first
