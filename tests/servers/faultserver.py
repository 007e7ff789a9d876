"""A fine-tunes service that keeps its books right and breaks its replies as told. Plain asyncio, raw bytes.

`FaultServer` puts a `Service` on a socket and plays a `Fault` in chosen exchanges. What the service holds is the ground
truth that a test compares with what the client reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

import attrs

from tests.servers.rawserver import all_accepted
from tests.servers.service import DONE, Reply, Request, Service, sse


@attrs.frozen
class Exchange:
    """One request under way, for a fault to spoil."""

    server: FaultServer
    request: Request
    """Without its body where the fault comes before that is read."""
    reply: Reply
    """What a right service would send; an empty one where the fault keeps the service from being asked."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send bytes, of the reply or in its place."""
        self.writer.write(data)
        await self.writer.drain()

    async def reset(self) -> None:
        """Break the connection, as a machine does that was switched off and on."""
        # Let the bytes that were sent go first; the client may be gone already.
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.writer.transport.abort()

    async def close(self) -> None:
        """End the connection in good order."""
        self.writer.close()

    async def hold(self) -> None:
        """Say no more until the client leaves."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass
        self.writer.close()


@attrs.frozen
class Fault:
    """Something that goes wrong in one exchange.

    Args:
        play: Sends what is sent, and breaks what breaks.
        reads: How much of the request is read first: ``"nothing"``, its ``"head"``, or ``"all"``.
        has_effect: Whether the service does what it is asked.
    """

    play: Callable[[Exchange], Awaitable[None]]
    reads: str = "all"
    has_effect: bool = True


class FaultServer:
    """A `Service` on a free port of this machine, and what goes wrong on the way to it and back.

    Args:
        service: Whose books it keeps, and whose dialect it speaks.
        listens: Whether to listen from the start; until `listen` is called, connections are refused.
    """

    def __init__(self, service: Service | None = None, *, listens: bool = True) -> None:
        self.service = service or Service()
        self.seen: list[Request] = []
        self.connections: set[asyncio.Task[None]] = set()
        self.failures: list[Exception] = []
        self.elsewhere = ""
        """The URL of another origin, for redirects."""
        self._once: dict[str, deque[Fault]] = {}
        self._always: dict[str, Fault] = {}
        self._listens = listens
        self._starting: list[asyncio.Task[asyncio.Server]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    async def __aenter__(self) -> Self:
        # Bound, but not listening: nobody else gets the port, and connections are refused.
        self._socket = socket.create_server(("127.0.0.1", 0)) if self._listens else socket.socket()
        if self._listens:
            self._start()
        else:
            self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for starting in self._starting:
            server = await starting
            await all_accepted(server.sockets[0].getsockname()[1])
            server.close()
        self._socket.close()
        under_way = list(self.connections)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        if self.failures and error is None:
            raise self.failures[0]

    def listen(self) -> None:
        """Take connections from now on."""
        if not self._listens:
            self._listens = True
            self._socket.listen(100)
            self._start()

    def _start(self) -> None:
        self._starting.append(asyncio.create_task(asyncio.start_server(self._connected, sock=self._socket)))

    def fail(self, endpoint: str, *faults: Fault) -> None:
        """Play these faults in the next exchanges of an endpoint, one each; "" stands for the next connections."""
        self._once.setdefault(endpoint, deque()).extend(faults)

    def fail_always(self, endpoint: str, fault: Fault) -> None:
        """Play a fault in every exchange of an endpoint; "" stands for every connection."""
        self._always[endpoint] = fault

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._once.clear()
        self._always.clear()

    def asked(self) -> list[str]:
        """The endpoints that were called, in order."""
        return [request.endpoint[0] for request in self.seen]

    async def left(self) -> None:
        """Wait until no client is connected any more."""
        async with asyncio.timeout(10):
            await self._idle.wait()

    def _take(self, endpoint: str) -> Fault | None:
        if self._once.get(endpoint):
            return self._once[endpoint].popleft()
        return self._always.get(endpoint)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        self._idle.clear()
        # Small pieces go at once, as asyncio sees to only for sockets of its own making.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as failure:  # noqa: BLE001  # raised where the server is left
            self.failures.append(failure)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self.connections.discard(task)
            if not self.connections:
                self._idle.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nothing = Reply(0, b"")
        fault = self._take("")
        if fault is not None and fault.reads == "nothing":
            return await fault.play(Exchange(self, Request("", "", {}), nothing, reader, writer))
        while not writer.is_closing() and (request := await _read_head(reader)):
            fault = fault or self._take(request.endpoint[0])
            if fault is not None and fault.reads == "head":
                self.seen.append(request)
                return await fault.play(Exchange(self, request, nothing, reader, writer))
            request = attrs.evolve(request, body=await _read_body(request.headers, reader))
            self.seen.append(request)
            reply = self.service.answer(request) if fault is None or fault.has_effect else nothing
            exchange = Exchange(self, request, reply, reader, writer)
            if fault is not None:
                await fault.play(exchange)
            elif request.endpoint[0] == "stream_fine_tune_events" and reply.status == 200:
                await self.stream(exchange)
            else:
                await exchange.send(reply.raw)
            fault = None
        return None

    async def stream(self, exchange: Exchange, cut_at: int | None = None) -> None:
        """Stream a job's events as they happen; with `cut_at`, only so many bytes of them."""
        (job_id,) = exchange.request.endpoint[1]
        await exchange.send(exchange.reply.head(("Transfer-Encoding", "chunked")))
        told = sent = 0
        is_done = False
        gone = asyncio.create_task(exchange.reader.read(1))
        try:
            while not is_done:
                news = self.service.news()
                is_done = self.service.is_over(job_id)
                events = self.service.events[job_id]
                data = b"".join(map(sse, events[told:])) + (DONE if is_done else b"")
                told = len(events)
                if cut_at is not None:
                    data = data[: cut_at - sent]
                if data:
                    sent += len(data)
                    await exchange.send(chunk(data))
                if sent == cut_at:
                    return
                if not is_done:
                    waiting = asyncio.create_task(news.wait())
                    await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    if gone.done():
                        raise ConnectionResetError
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        await exchange.send(chunk(b""))


async def _read_head(reader: asyncio.StreamReader) -> Request | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _version = first.split()
    fields = (line.partition(":") for line in lines)
    return Request(method, target, {name.lower(): value.strip() for name, _, value in fields}, raw_head=raw)


async def _read_body(headers: Mapping[str, str], reader: asyncio.StreamReader) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(pieces)


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)
