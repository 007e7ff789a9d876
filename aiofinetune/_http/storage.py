"""Put the bytes of a file at a URL that the service names, usually of another origin. The key never goes there."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from aiofinetune._http.caller import Caller
from aiofinetune._http.transport import Transport
from aiofinetune._http.upload_body import Form, Progress, sent
from aiofinetune._http.upload_source import Content
from aiofinetune._secret import Secret, without_secret
from aiofinetune._urls import is_private, is_private_address, storage_url
from aiofinetune.dialects._error_replies import error_of
from aiofinetune.dialects._requests import HEADERS, Endpoint, Reply, Request
from aiofinetune.errors import APIError, AuthenticationFailed, FineTuneError, ProtocolViolation

_PUT: Final = Endpoint("PUT", "the storage", bytes)
"""What the log calls a PUT: the URL itself is for nobody else to see."""
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 307, 308)
"""The redirects that keep a PUT a PUT (RFC 9110, section 15.4)."""


class Storage:
    """Puts contents at presigned URLs.

    It has connections of its own, never those of an aiohttp session that was passed in, whose default headers may hold
    a key.

    Args:
        caller: Makes the calls of the session.
        may_be_private: Whether the service is in a private network, so that its storage may be in one too.
    """

    def __init__(self, caller: Caller, *, may_be_private: bool) -> None:
        self._caller = caller
        self._may_be_private = may_be_private

    def target(self, url: str, location: str) -> str:
        """Return the checked URL that a reply leads to; see `storage_url`.

        Raises:
            ProtocolViolation: The bytes must not be sent there, or it contains the key.
        """
        if any(secret in text for secret in self._caller.secrets for text in (location, unquote(location))):
            raise ProtocolViolation(
                "the service sent the upload to a URL that contains the key, which was not followed"
            )
        return storage_url(url, location, self._caller.base_url, may_be_private=self._may_be_private)

    async def put(
        self,
        url: str,
        content: Callable[[], Awaitable[Content]],
        progress: Progress | None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Put a content at a checked URL, again if it fails, and return the storage's reply.

        Args:
            url: The URL.
            content: Returns the content, at its first piece, for each attempt.
            progress: Called with the number of bytes sent so far and the total.
            headers: The headers to send.
        """

        async def attempt() -> Reply:
            return await self._put(url, content, progress, headers or {})

        return await self._caller.retrying(_PUT, attempt)

    async def _put(
        self,
        url: str,
        content: Callable[[], Awaitable[Content]],
        progress: Progress | None,
        headers: Mapping[str, str],
    ) -> Reply:
        for _ in range(_MAX_REDIRECTS + 1):
            reply = await self._put_once(url, await content(), progress, headers)
            if reply.status < 300:
                return reply
            location = location_of(reply)
            refusal = None if reply.status in _REDIRECTS and location else self._refusal(url, reply)
            # The locals of a traceback must not show a URL that contains the key.
            del reply
            if refusal is not None:
                raise refusal
            url = self.target(url, location)
        raise ProtocolViolation(f"{_host(url)}: more than {_MAX_REDIRECTS} redirects of an upload")

    async def _put_once(
        self, url: str, content: Content, progress: Progress | None, headers: Mapping[str, str]
    ) -> Reply:
        form = Form(content, (b"", b""), progress)
        # A storage wants to know the length beforehand (S3: 411 otherwise).
        request = Request("PUT", url, {**headers, "Content-Length": str(content.size)})
        try:
            async with self._transport(url) as transport:
                return self._caller.without_key(await sent(form, transport.fetch(request, form)))
        except FineTuneError as error:
            # Anyone who has the signed URL can write there.
            failure = without_secret(error, urlsplit(url).query)
        # Outside of the except block, so that the error which shows it is not the context of this one.
        raise failure

    @asynccontextmanager
    async def _transport(self, url: str) -> AsyncIterator[Transport]:
        """Return a context manager of what sends to the storage, without the key and without a content type.

        A URL is often signed together with the content type, and the service's own client sends none.
        """
        resolver = None if self._may_be_private else _PublicResolver()
        timeout = self._caller.transport.timeout
        own = {name: value for name, value in HEADERS.items() if name != "Accept"}
        transport = Transport(url, own, timeout, None, resolver=resolver, adds_content_type=False)
        try:
            yield transport
        finally:
            await transport.aclose()
            if resolver is not None:
                await resolver.close()

    def _refusal(self, url: str, reply: Reply) -> APIError:
        error = error_of(reply)
        # A storage that does not accept the URL says nothing about the key.
        kind = APIError if isinstance(error, AuthenticationFailed) else type(error)
        words = f"the storage at {_host(url)} refused the upload: {error.message}"
        if 300 <= reply.status < 400:
            words = f"the storage at {_host(url)} redirects the upload to nowhere, or to another method"
        return kind(error.status, words, *error.args[2:])


def location_of(reply: Reply) -> Secret:
    """Return where a reply leads to; "" if nowhere."""
    return Secret(reply.headers.get("location", ""))


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


class _PublicResolver(AbstractResolver):
    """Looks up names, and refuses those that lead into a private network."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            ProtocolViolation: One of them is private.
        """
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            if is_private_address(ipaddress.ip_address(each["host"].partition("%")[0])):
                raise ProtocolViolation(
                    f"the service sent the upload to {host}, whose address {each['host']} is private, though it is not"
                    " itself at one"
                )
        return found

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()


async def is_service_private(base_url: str) -> bool:
    """Return whether a service is in a private network: its address is, or one of those of its name."""
    host = urlsplit(base_url).hostname or ""
    if (known := is_private(host)) is not None:
        return known
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        # Behind a proxy, the names of the internet may have no address here.
        return False
    return any(is_private_address(ipaddress.ip_address(str(each[4][0]).partition("%")[0])) for each in found)
