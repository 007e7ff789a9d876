"""The connections of the embedded server, with limits on their number and on how long they may be idle.

aiohttp accepts every connection, and waits for a request as long as the connection is open. A client without the key
could therefore use up all descriptors of the process, which the application around the server needs too. Here the
number of connections is limited; at the limit, the connection that has been idle for longest is closed for a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from aiohttp.http_exceptions import HttpProcessingError

MAX_CONNECTIONS: Final = 8192

_OTHER_DESCRIPTORS: Final = 64
"""The least number of descriptors left for the database, the trainer and the application around the server."""

_BACKLOG: Final = 1024
"""The number of connections that may wait to be accepted; a thousand clients may connect at once."""

_ACCEPTED_AT_ONCE: Final = 16
"""The number of connections accepted before the event loop runs other tasks and closes connections."""

_ACCEPT_PAUSE: Final = 0.1
"""Seconds until the next attempt after the system could not accept a connection."""

_HEADER_TIMEOUT: Final = 10.0
"""Seconds from the first byte of a request to the end of its headers."""

_IDLE_TIMEOUT: Final = 75.0
"""Seconds that a connection may be idle; clients close idle connections earlier."""

_WRITE_TIMEOUT: Final = 60.0
"""Seconds within which a client must read some of what is written to it."""

_LOG_INTERVAL: Final = 60.0


class Connections:
    """Accepts connections for aiohttp's server, and closes idle ones to make room for new ones.

    Args:
        make_protocol: Returns the protocol that serves one connection.
        log: Logs that there are too many connections.
        tls: Encrypts the connections; None for plain ones.
    """

    def __init__(
        self, make_protocol: Callable[[], asyncio.Protocol], log: SeldomLog, tls: ssl.SSLContext | None = None
    ) -> None:
        self._make_protocol = make_protocol
        self._log = log
        self._tls = tls
        self._max = _max_connections()
        self._loop = asyncio.get_running_loop()
        self._sockets: Sequence[socket.socket] = ()
        self._resumptions: dict[socket.socket, asyncio.Handle] = {}
        self._arriving: set[asyncio.Task[object]] = set()
        self._open: set[Connection] = set()
        self._count = 0
        """The number of connections that are open or about to be."""
        self._waiting: dict[Connection, None] = {}
        """The idle connections; the one that has been idle for longest comes first."""

    def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Start to accept connections on listening sockets, which `close` closes."""
        self._sockets = sockets
        for listening in sockets:
            self._loop.add_reader(listening, self._accept, listening)

    async def close(self) -> None:
        """Stop accepting connections. Open connections stay open."""
        for handle in self._resumptions.values():
            handle.cancel()
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        if self._arriving:
            await asyncio.wait(self._arriving)

    # For a connection to call

    def note_open(self, connection: Connection) -> None:
        """Count a connection."""
        self._open.add(connection)
        self._waiting[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """Do not close a connection while its request is answered."""
        self._waiting.pop(connection, None)

    def note_waiting(self, connection: Connection) -> None:
        """Note that a connection is idle and may be closed."""
        if connection in self._open:
            self._waiting[connection] = None

    def note_closed(self, connection: Connection) -> None:
        """Stop counting a connection."""
        if connection in self._open:
            self._open.remove(connection)
            self._waiting.pop(connection, None)
            self._count -= 1

    # Accepting

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            self._take(accepted)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Try again later, because the system has no descriptor or no memory for another connection."""
        self._log.warning(
            "cannot accept a connection (%s); closing the one that has been idle for longest", error.strerror
        )
        self._close_oldest()
        self._loop.remove_reader(listening)
        self._resumptions[listening] = self._loop.call_later(
            _ACCEPT_PAUSE, self._loop.add_reader, listening, self._accept, listening
        )

    def _take(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        if self._count >= self._max:
            self._log.warning("there are %d connections; closing idle ones to accept new ones", self._max)
            if not self._close_oldest():
                with contextlib.suppress(OSError), accepted:
                    accepted.send(
                        _answer(503, "Service Unavailable", "The server has reached its limit of connections")
                    )
                return
        self._count += 1
        task = self._loop.create_task(self._serve(accepted))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self, self._make_protocol()),
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=_HEADER_TIMEOUT if self._tls else None,
            )
        except OSError:
            self._count -= 1
            accepted.close()

    def _close_oldest(self) -> bool:
        """Close the connection that has been idle for longest, and return whether there was one."""
        for connection in self._waiting:
            self.note_closed(connection)
            connection.close()
            return True
        return False


class Connection(asyncio.Protocol):
    """One connection, which passes its events on to aiohttp and enforces the timeouts.

    Args:
        all_connections: The connections of the server.
        inner: aiohttp's protocol for this connection.
    """

    def __init__(self, all_connections: Connections, inner: asyncio.Protocol) -> None:
        self._all = all_connections
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._has_served = False
        self._is_busy = False
        self._has_begun = False
        """Whether a byte of the next request has arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses of it.
        self._reading = self._loop.call_later(_IDLE_TIMEOUT, self.close)
        self._writing: asyncio.Handle | None = None
        self._all.note_open(self)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._reading.cancel()
        if self._writing is not None:
            self._writing.cancel()
        self._all.note_closed(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._is_busy and not self._has_begun:
            self._has_begun = True
            self._reading.cancel()
            self._reading = self._loop.call_later(_HEADER_TIMEOUT, self._give_up)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._writing = self._loop.call_later(_WRITE_TIMEOUT, self._transport.abort)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        if self._writing is not None:
            self._writing.cancel()
        self._inner.resume_writing()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Keep the connection open during the block, which answers a request."""
        self._is_busy = self._has_served = True
        self._reading.cancel()
        self._all.note_busy(self)
        try:
            yield
        finally:
            self._is_busy = self._has_begun = False
            if not self._transport.is_closing():
                self._reading = self._loop.call_later(_IDLE_TIMEOUT, self.close)
                self._all.note_waiting(self)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _give_up(self) -> None:
        if not self._has_served:
            self._transport.write(_answer(408, "Request Timeout", "The headers of the request did not arrive in time"))
        self.close()


def connection_of(transport: asyncio.BaseTransport | None) -> contextlib.AbstractContextManager[None]:
    """Return a context manager during which the connection of `transport` is busy."""
    protocol = None if transport is None else transport.get_protocol()
    return protocol.busy() if isinstance(protocol, Connection) else contextlib.nullcontext()


async def listen(host: str, port: int) -> Sequence[socket.socket]:
    """Return sockets that listen on each address of `host`.

    Raises:
        OSError: The host is unknown, or an address cannot be used.
        OverflowError: The port is not between 0 and 65535.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for family, _, _, _, address in dict.fromkeys(infos):
            # All addresses use the same port, even if the system chooses it.
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                listening = socket.create_server((address[0], chosen), family=family, backlog=_BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and (sockets or len(infos) > 1):
                    continue  # The host also has an address of a protocol that this machine does not use.
                # The words of `create_server` repeat the address.
                raise OSError(error.errno, os.strerror(error.errno or 0)) from error
            sockets.append(stack.enter_context(listening))
            listening.setblocking(False)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "this machine has none of the host's addresses")
        stack.pop_all()
    return sockets


class SeldomLog(logging.LoggerAdapter[logging.Logger]):
    """Logs each message at most once a minute, so that a client that misbehaves does not fill the disk.

    Args:
        logger: The logger to pass the messages to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self._said_at: dict[object, float] = {}

    # Any: as in the standard library.
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message, unless one with the same format was logged in the last minute."""
        now = time.monotonic()
        if level > logging.DEBUG:
            if now - self._said_at.get(msg, -_LOG_INTERVAL) < _LOG_INTERVAL:
                return
            self._said_at[msg] = now
        error = kwargs.get("exc_info")
        if level > logging.DEBUG and isinstance(error, HttpProcessingError):
            # A client sent something that is not HTTP. The traceback in aiohttp is of no use.
            super().log(logging.WARNING, f"{msg}: %s", *args, " ".join(str(error).split())[:200])
        else:
            super().log(level, msg, *args, **kwargs)


def new_request_id() -> str:
    """Return a new id for an answer."""
    return f"req-{secrets.token_hex(16)}"


def _max_connections() -> int:
    """Return the number of connections that the process has descriptors for.

    An upload or a download needs a second descriptor.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (limit - _OTHER_DESCRIPTORS) // 2))


def _answer(status: int, reason: str, message: str) -> bytes:
    """Return the bytes of an answer to a client whose request aiohttp has not read."""
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\nx-request-id: {new_request_id()}\r\n\r\n"
    ).encode() + body
