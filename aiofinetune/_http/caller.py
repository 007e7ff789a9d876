"""Send, retry and throttle calls, decode their replies, and keep the key out of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from aiofinetune import retry
from aiofinetune._http.reply_body import Incoming
from aiofinetune._http.throttle import Throttle
from aiofinetune._http.transport import SMALL_BUFFER, Heard, Transport
from aiofinetune._secret import Secret, scrubbed, without_secret
from aiofinetune.dialects import _fine_tunes as dialect
from aiofinetune.dialects._error_replies import error_of
from aiofinetune.dialects._requests import Endpoint, Reply, Request, build
from aiofinetune.errors import APIError, FineTuneError, NotFound, RateLimited
from aiofinetune.models import CreateUncertain, Deleted, Listing
from aiofinetune.retry import Retry

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger("aiofinetune")

_DECODED_ON_LOOP: Final = 128 << 10
"""The longest JSON, in bytes, that is decoded on the event loop: it takes a millisecond or two. Longer replies are
decoded in a thread."""


class Caller:
    """Makes the calls of one session.

    Args:
        api_key: The key to keep out of replies and errors. The transport sends it.
        base_url: The URL of the API.
        transport: Sends the requests.
        policy: How often and how slowly to retry.
    """

    def __init__(self, api_key: Secret, base_url: str, transport: Transport, policy: Retry) -> None:
        self.api_key = api_key
        self.base_url = base_url
        self.transport = transport
        self.policy = policy
        self.throttle = Throttle()
        self._partial_lists: set[str] = set()
        """The paths of the lists that were logged as partial, so that each is logged once."""
        self._oddities: set[str] = set()
        """The fields of replies that were logged as unreadable, so that each is logged once."""

    async def call(
        self, endpoint: Endpoint[T], *ids: str, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> T:
        """Call an endpoint and return its decoded reply."""
        return (await self.exchange(endpoint, *ids, query=query, body=body))[0]

    async def list(
        self, endpoint: Endpoint[Listing[T]], *ids: str, query: Mapping[str, str] | None = None
    ) -> tuple[T, ...]:
        """Call an endpoint that returns a list; log a warning if the list is partial."""
        listing = await self.call(endpoint, *ids, query=query)
        if listing.has_more and endpoint.path not in self._partial_lists:
            self._partial_lists.add(endpoint.path)
            _log.warning("%s %s: the service sent only part of the list", endpoint.method, endpoint.path)
        return listing.data

    async def exchange(
        self,
        endpoint: Endpoint[T],
        *ids: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        policy: Retry | None = None,
    ) -> tuple[T, Reply]:
        """Call an endpoint; return its decoded reply and the reply itself."""
        request = build(endpoint, self.base_url, *ids, query=query, body=body, headers=headers)

        async def attempt() -> tuple[T, Reply]:
            reply = await self.fetch(request)
            return await self.decode(endpoint, reply), reply

        return await self.retrying(endpoint, attempt, policy=policy)

    async def delete(self, endpoint: Endpoint[Deleted], name: str) -> Deleted:
        """Delete an object. A 404 counts as success if the reply to an earlier attempt was lost."""
        request = build(endpoint, self.base_url, name)
        was_lost = False

        async def attempt() -> Deleted:
            nonlocal was_lost
            try:
                reply = await self.fetch(request)
                if reply.status >= 300:
                    raise self.error_of(endpoint, reply)
                return dialect.decode_deleted(reply, name)
            except NotFound:
                if not was_lost:
                    raise
                # The earlier attempt deleted it.
                return Deleted(name, deleted=True)
            except FineTuneError as failure:
                was_lost = was_lost or retry.may_have_arrived(failure)
                raise

        return await self.retrying(endpoint, attempt)

    async def retrying(
        self,
        endpoint: Endpoint[T],
        attempt: Callable[[], Awaitable[R]],
        find: Callable[[], Awaitable[R | None]] | None = None,
        policy: Retry | None = None,
    ) -> R:
        """Attempt a call until it succeeds, or fails in a way that a retry cannot or must not fix.

        Args:
            endpoint: The endpoint that is called.
            attempt: Makes one attempt.
            find: Looks for the result of a call whose reply was lost; returns None if the call certainly had no effect.
            policy: How often and how slowly to retry; by default the session's policy.
        """
        self.transport.check_place()
        policy = policy or self.policy
        now = asyncio.get_running_loop().time
        started_at = now()
        failures = 0
        while True:
            await self.throttle.wait()
            try:
                return await attempt()
            except FineTuneError as error:
                failure = without_secret(error, self.api_key)
            # Handled outside the except block: an error raised inside it would have `error` as its context, which may
            # show the key.
            is_repeatable = endpoint.idempotent
            if find is not None and retry.may_have_arrived(failure):
                try:
                    found = await find()
                except CreateUncertain as uncertain:
                    raise uncertain from uncertain.__cause__ or failure
                if found is not None:
                    return found
                # The search proved that the call had no effect, so sending it again is safe.
                is_repeatable = True
            failures += 1
            seconds = retry.delay(policy, failure, failures, now() - started_at, idempotent=is_repeatable)
            if seconds is None:
                raise failure
            self._slow_down(failure, seconds)
            words = "%s %s, failure %d: %s; retrying in %.1f s"
            _log.info(words, endpoint.method, endpoint.path, failures, failure, seconds)
            await asyncio.sleep(seconds)

    async def fetch(
        self,
        request: Request,
        upload: AsyncIterator[bytes | memoryview] | None = None,
        heard: Heard | None = None,
        *,
        fresh: bool = False,
    ) -> Reply:
        """Send a request once; return its reply without the key, which the locals of a traceback would show."""
        return self.without_key(await self.transport.fetch(request, upload, heard, fresh=fresh))

    async def decode(self, endpoint: Endpoint[T], reply: Reply) -> T:
        """Decode a reply; a long one in a thread."""
        if reply.status >= 300:
            raise self.error_of(endpoint, reply)
        if len(reply.body) > _DECODED_ON_LOOP:
            return await asyncio.to_thread(dialect.decode, endpoint, reply, self._note_oddity)
        return dialect.decode(endpoint, reply, self._note_oddity)

    async def connect(self, request: Request) -> Incoming:
        """Send a request for an event stream; return the reply with its body unread."""
        self.transport.check_place()
        await self.throttle.wait()
        incoming = await self.transport.open(request, self.transport.timeout.stream, SMALL_BUFFER)
        if incoming.status >= 300:
            refusal = await self.refusal(dialect.STREAM_FINE_TUNE_EVENTS, incoming)
            # A quota, or a wait beyond the deadline, is not retried, so it must not slow down other calls either.
            seconds = retry.delay(self.policy, refusal, 1, 0.0, idempotent=True)
            if seconds is not None:
                self._slow_down(refusal, seconds)
            raise refusal
        return incoming

    async def refusal(self, endpoint: Endpoint[T], incoming: Incoming) -> APIError:
        """Return the error that the service sent in place of a stream or a download."""
        with contextlib.closing(incoming):
            return self.error_of(endpoint, self.without_key(await self.transport.read_reply(incoming)))

    def error_of(self, endpoint: Endpoint[T], reply: Reply) -> APIError:
        """Return the error for a reply, with advice if the reference's own service has retired the endpoint."""
        error = error_of(reply)
        if isinstance(error, NotFound) and self.base_url == dialect.DEFAULT_BASE_URL:
            return dialect.explained(error, endpoint)
        return error

    def without_key(self, reply: Reply) -> Reply:
        """Return a reply without the key in its body, where some services echo it."""
        body = scrubbed(reply.body, self.api_key)
        return reply if body is reply.body else reply._replace(body=body)

    def _slow_down(self, failure: FineTuneError, seconds: float) -> None:
        """Slow down all calls if this one was throttled and will be retried in `seconds`."""
        if isinstance(failure, RateLimited):
            self.throttle.slow_down(seconds if failure.retry_after is None else failure.retry_after)

    def _note_oddity(self, field: str, found: str) -> None:
        """Log a field that was read as absent, once in a session."""
        if field not in self._oddities:
            self._oddities.add(field)
            _log.warning("%s: the service sent %s, which is not valid here; it is treated as missing", field, found)
