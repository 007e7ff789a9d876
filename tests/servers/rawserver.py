"""A server that answers with the bytes a test tells it to, however wrong they are. Plain asyncio on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import attrs

from aiofinetune import FineTuneSession
from aiofinetune._http.transport import Timeout
from aiofinetune.retry import Retry

KEY: Final = "sk-secret-4f1c9a7e"
"""The key that the tests' sessions send, and that nothing but the service may ever see."""

FAST: Final = Retry(base=0.001, cap=1, grace=0.01)
"""Retries that lose no time."""

JOB: Final = {
    "id": "ft-1",
    "object": "fine-tune",
    "model": "ada",
    "created_at": 1614807352,
    "status": "running",
    "training_files": [{"id": "file-1"}],
}


@attrs.frozen
class Received:
    """One request as it came in, parsed just far enough.

    Args:
        method: The HTTP method.
        target: What the request line asks for, percent-encoded, query included.
        headers: By lower-case name.
        body: Its bytes, out of whatever coding; empty where the server was told not to read it.
        reader: The rest of the connection.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    reader: asyncio.StreamReader

    async def read_body(self) -> bytes:
        """Read the body, where the server was told not to."""
        return await _read_body(self.headers, self.reader)

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


Handler: TypeAlias = Callable[[Received, asyncio.StreamWriter], Awaitable[object]]


@asynccontextmanager
async def serve(handler: Handler, *, reads_body: bool = True, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve until the block is left; give the base URL of the API. What fails in a handler fails the block.

    Args:
        handler: Is called with each request and the connection to write to. It may close or abort that.
        reads_body: Whether to read a request's body before the handler is called.
        tls: Makes it an https server.
    """
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
    failures: list[Exception] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing() and (request := await _read_request(reader, reads_body=reads_body)):
                await handler(request, writer)
                if not writer.is_closing():
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as failure:  # noqa: BLE001  # raised where the block ends
            failures.append(failure)
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        tasks[task] = writer
        task.add_done_callback(tasks.pop)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=2048, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/v1"
    finally:
        await all_accepted(port)
        server.close()
        under_way = dict(tasks)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for writer in under_way.values():
            with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
                await writer.wait_closed()
        await server.wait_closed()
    if failures:
        raise failures[0]


async def all_accepted(port: int) -> None:
    """Wait until a server has taken every connection that was made to it so far.

    One that asyncio is just taking when its server is closed is lost, and its socket never closed. They are taken in
    turn, so that none is left once this one's end is seen.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write_eof()
        await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _read_request(reader: asyncio.StreamReader, *, reads_body: bool) -> Received | None:
    line = await reader.readline()
    if not line:
        return None
    method, target, _version = line.decode("ascii").split()
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        assert name.lower() not in headers, f"sent twice: {name}"
        headers[name.lower()] = value.strip()
    body = await _read_body(headers, reader) if reads_body else b""
    return Received(method, target, headers, body, reader)


async def _read_body(headers: Mapping[str, str], reader: asyncio.StreamReader) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(pieces)


def reply(status: int = 200, body: bytes | object = b"", **headers: str) -> bytes:
    """One HTTP reply, whole; a body that is not bytes is sent as JSON. Underscores in header names stand for dashes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-length": str(len(data))}
    fields |= {name.lower().replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Word", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + data


STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(message: str) -> bytes:
    """One event of a job's stream."""
    return b"data: %b\n\n" % json.dumps({"object": "fine-tune-event", "message": message}).encode()


def answering(*replies: bytes, seen: list[Received] | None = None) -> Handler:
    """A handler that gives these replies one after another, and the last one from then on; requests go to `seen`."""
    left = list(replies)

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:  # handlers may wait
        if seen is not None:
            seen.append(request)
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return handler


def knowing_file(size: int, handler: Handler) -> Handler:
    """A handler that knows every file, of so many bytes, and leaves all other requests to `handler`."""

    async def knowing(request: Received, writer: asyncio.StreamWriter) -> None:
        is_file = request.target.startswith("/v1/files/") and not request.target.endswith("/content")
        if is_file and request.method == "GET":
            writer.write(reply(body={"id": "file-1", "bytes": size}))
        else:
            await handler(request, writer)

    return knowing


def session_for(base_url: str, *, retry: Retry = FAST, timeout: Timeout = Timeout()) -> FineTuneSession:
    """A session with the tests' key, which tries again at once."""
    return FineTuneSession(KEY, base_url=base_url, retry=retry, timeout=timeout)


@asynccontextmanager
async def talking_to(
    handler: Handler,
    *,
    retry: Retry = FAST,
    timeout: Timeout = Timeout(),  # noqa: ASYNC109  # the session's
    reads_body: bool = True,
) -> AsyncIterator[FineTuneSession]:
    """A session with a server that answers as `handler` does."""
    async with serve(handler, reads_body=reads_body) as url, session_for(url, retry=retry, timeout=timeout) as session:
        yield session


def targets(seen: Sequence[Received]) -> list[str]:
    """The request lines that came in."""
    return [f"{request.method} {request.target}" for request in seen]
