"""The calls of a worker to the server. Each is repeated until the server answers, for as long as an outage may last."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
from yarl import URL

from aiofinetune import structuring
from aiofinetune._secret import Secret
from aiofinetune.errors import ConnectFailed, ProtocolViolation

MAX_OUTAGE: Final = 600.0
"""Seconds without an answer after which a worker gives up. The server may be restarted, and the network cut."""

_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=40)
"""The server answers a request that waits after 20 seconds."""

_LONGEST_PAUSE: Final = 2.0

_INTERVAL: Final = 60.0
"""Seconds between two lines of the log about one outage."""

_log = logging.getLogger(__name__)

_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504, 507})


class AttemptOver(Exception):
    """The attempt is over, or its token is not valid."""


class Refusal(Exception):
    """The server refuses a request.

    Args:
        status: The HTTP status of the answer.
        message: The server's words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Passing(Exception):
    """The server could not be reached, or cannot answer now."""


class _Outage:
    """What the log says of a server that does not answer: at once, then once a minute, and when it is over.

    Args:
        url: The server's URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._since: float | None = None
        self._told_at = 0.0

    def note(self, failure: Exception, now: float) -> None:
        """Note that the server did not answer."""
        if self._since is None:
            self._since = now
        elif now - self._told_at < _INTERVAL:
            return
        self._told_at = now
        minutes = max(1, round((MAX_OUTAGE - (now - self._since)) / 60))
        _log.warning("cannot reach %s: %s; trying for %d min", self._url, failure, minutes)

    def end(self) -> None:
        """Note that the server answered."""
        if self._since is not None:
            self._since = None
            _log.warning("%s can be reached again", self._url)


class Calls:
    """Calls a server.

    Args:
        http: The session to send the requests with.
        url: The URL below which the paths are.
        token: The token to send.
        runner: What this process calls itself, in 32 hexadecimal digits.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, token: Secret, runner: str) -> None:
        self._http = http
        self._url = url
        self._outage = _Outage(url)
        self._headers = {"Authorization": Secret(f"Bearer {token}"), "Aiofinetune-Runner": runner}

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """Call, and return the JSON of the answer; None if it has none. See `call`."""

        async def read(response: aiohttp.ClientResponse) -> Any:
            return structuring.loads(body) if (body := await response.read()) else None

        return await self.call(method, path, read, **options)

    # Any: JSON, and the arguments of aiohttp.
    async def call(
        self,
        method: str,
        path: str,
        read: Callable[[aiohttp.ClientResponse], Any],
        *,
        body: Callable[[], Any] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> Any:
        """Call until the server answers, and return what `read` makes of the answer.

        Args:
            method: The HTTP method.
            path: The path below the URL.
            read: Reads the answer. If the connection breaks meanwhile, everything is repeated.
            body: Returns the body of a request; it is called for each one.
            params: The query.
            headers: Returns further headers of a request; it is called for each one.

        Raises:
            AttemptOver: The attempt is over.
            Refusal: The server refuses the request.
            ConnectFailed: The server has not answered for `MAX_OUTAGE` seconds, or its certificate is not valid.
        """
        asked_at, failures = time.monotonic(), 0
        while True:
            try:
                answer = await self.once(method, path, read, body=body and body(), params=params, headers=headers())
            except (AttemptOver, Refusal):
                self._outage.end()
                raise
            except Passing as failure:
                if time.monotonic() - asked_at > MAX_OUTAGE:
                    message = f"the server at {self._url} has not answered for {MAX_OUTAGE:g} s: {failure}"
                    raise ConnectFailed(message) from failure
                self._outage.note(failure, time.monotonic())
            else:
                self._outage.end()
                return answer
            failures += 1
            # Jitter, so that many workers do not all return at once.
            pause = min(_LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10))
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # not a secret

    # Any: as above.
    async def once(
        self,
        method: str,
        path: str,
        read: Callable[[aiohttp.ClientResponse], Any],
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Call once. See `call`.

        Raises:
            Passing: The server could not be reached, or cannot answer now.
        """
        try:
            async with self._http.request(
                method,
                URL(self._url + path, encoded=True),
                params=params,
                data=body,
                headers={**self._headers, **(headers or {})},
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                if response.status in _PASSING:
                    raise Passing(f"status {response.status}")
                await _check(response)
                return await read(response)
        except aiohttp.ClientConnectorCertificateError as error:
            raise ConnectFailed(f"the certificate of {self._url} is not valid: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Passing(str(error) or type(error).__name__) from error


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status in (401, 410):
        raise AttemptOver
    if response.status >= 300:
        raise Refusal(response.status, _message(await response.read()) or f"status {response.status}")


def _message(body: bytes) -> str | None:
    """Return the message of an error in the API's envelope; None if it has another form."""
    try:
        match structuring.loads(body):
            case {"error": {"message": str(message)}}:
                return message
    except (ValueError, ProtocolViolation):
        pass
    return None
