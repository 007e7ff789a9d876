"""Send, retry and throttle calls, decode their replies, and keep the key out of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from aiofinetune import _observe, retry
from aiofinetune._http.reply_body import Incoming
from aiofinetune._http.throttle import Throttle, Trouble
from aiofinetune._http.transport import SMALL_BUFFER, Heard, Transport
from aiofinetune._observe import Call
from aiofinetune._secret import Secret, scrubbed, without_secret
from aiofinetune.dialects._choice import fitting, of_upload
from aiofinetune.dialects._dialect import Dialect
from aiofinetune.dialects._error_replies import error_of
from aiofinetune.dialects._replies import decode, decode_deleted
from aiofinetune.dialects._requests import Endpoint, Reply, Request, build
from aiofinetune.errors import APIError, AuthenticationFailed, FineTuneError, NotFound, ProtocolViolation, RateLimited
from aiofinetune.models import CreateUncertain, Deleted, FineTune, Listing, Rows
from aiofinetune.retry import Retry

if TYPE_CHECKING:
    from aiofinetune._http.token import Token
    from aiofinetune.dialects._long_list import Row

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound=Listing[Any] | Rows)

_log = logging.getLogger("aiofinetune")

_DECODED_ON_LOOP: Final = 128 << 10
"""The longest JSON, in bytes, that is decoded on the event loop: it takes a millisecond or two. Longer replies are
decoded in a thread."""


_REQUEST_ID: Final = re.compile(r"[\w.:/+=-]{1,200}", re.ASCII)
"""What is noted as a request id; a service may put anything into the header."""

_UNAUTHORIZED: Final = 401
MAX_PAGES: Final = 10_000
"""The number of pages of one list that are read."""


class Caller:
    """Makes the calls of one session.

    Args:
        secrets: The keys to keep out of replies and errors. The transport sends them.
        base_url: The URL of the API.
        transport: Sends the requests.
        policy: How often and how slowly to retry.
        dialect: What the service says.
        query: The parameters that every URL has.
        token: The access token to send, if no key was passed.
    """

    def __init__(
        self,
        secrets: list[Secret],
        base_url: str,
        transport: Transport,
        policy: Retry,
        dialect: Dialect,
        query: Mapping[str, str] = MappingProxyType({}),
        token: Token | None = None,
    ) -> None:
        self.secrets = secrets
        self.base_url = base_url
        self.transport = transport
        self.policy = policy
        self.dialect = dialect
        self.endpoints = dialect.endpoints
        self._query = query
        self._token = token
        self.throttle = Throttle()
        self.trouble: Trouble | None = None
        """Why calls are being retried; None once one succeeds."""
        self._is_other_noted = False
        self._partial_lists: set[str] = set()
        """The paths of the lists that were logged as partial, so that each is logged once."""
        self._oddities: set[str] = set()
        """The fields of replies that were logged as unreadable, so that each is logged once."""

    def build(
        self,
        endpoint: Endpoint[T],
        *ids: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Request:
        """Build the request of a call; see `aiofinetune.dialects._requests.build`."""
        if self._query:
            query = {**self._query, **(query or {})}
        return build(endpoint, self.base_url, *ids, query=query, body=body, headers=headers)

    async def call(
        self, endpoint: Endpoint[T], *ids: str, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> T:
        """Call an endpoint and return its decoded reply."""
        return (await self.exchange(endpoint, *ids, query=query, body=body))[0]

    async def list(
        self, endpoint: Endpoint[Listing[T]], *ids: str, query: Mapping[str, str] | None = None
    ) -> tuple[T, ...]:
        """Call an endpoint that returns a list, page by page; log a warning if the list is partial."""
        page, _reply = await self.exchange(endpoint, *ids, query=self._of_page(endpoint, query))
        rows = page.data
        if self.dialect.has_pages and page.has_more and (after := _last_id(page)) is not None:
            # A row may be on two pages if others were added in between.
            found: dict[object, T] = {_key_of(row, place): row for place, row in enumerate(rows)}
            async for page, _reply in self.pages(endpoint, *ids, query=query, after=after):
                found.update((_key_of(row, len(found) + place), row) for place, row in enumerate(page.data))
            rows = tuple(found.values())
        if page.has_more:
            self.note_partial(endpoint)
        return rows

    def note_partial(self, endpoint: Endpoint[T]) -> None:
        """Log once in a session that a list is partial."""
        if endpoint.path not in self._partial_lists:
            self._partial_lists.add(endpoint.path)
            _log.warning("%s %s: the service sent only part of the list", endpoint.method, endpoint.path)

    async def pages(
        self,
        endpoint: Endpoint[P],
        *ids: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        after: str | None = None,
        policy: Retry | None = None,
    ) -> AsyncGenerator[tuple[P, Reply]]:
        """Call an endpoint that returns a list; yield each page and its reply until there are no more.

        Where the dialect has no pages, there is one. A page that still ``has_more`` is the last one if the service does
        not go on after it.
        """
        query = self._of_page(endpoint, query)
        cursors = {after}
        for _ in range(MAX_PAGES):
            if after is not None:
                query = {**(query or {}), "after": after}
            page, reply = await self.exchange(endpoint, *ids, query=query, headers=headers, policy=policy)
            yield page, reply
            after = _last_id(page) if self.dialect.has_pages and page.has_more else None
            # A service that ignores the cursor, or goes round in a circle, sends pages again.
            if after is None or after in cursors:
                return
            cursors.add(after)

    async def read_rows(
        self, endpoint: Endpoint[Rows], after: str | None, add: Callable[[Iterable[Row]], object]
    ) -> tuple[Row, Reply]:
        """Call an endpoint that returns a list, and read its rows as they arrive.

        Args:
            endpoint: The endpoint.
            after: The id after which the page begins; None for the first page.
            add: Called with the rows, some at a time, in the form of the reference. If the call is retried, rows come
                again.

        Returns:
            The other fields of the list, and the reply without its body.
        """
        from aiofinetune.dialects._long_list import LongList  # noqa: PLC0415  # only a batch reads rows

        query = self._of_page(endpoint, None if after is None else {"after": after})
        request = self.build(endpoint, query=query)

        def give(rows: list[Row]) -> None:
            page: Any = {"data": rows}  # Any: a service's JSON
            add((page if endpoint.translate is None else endpoint.translate(page))["data"])  # type: ignore[index]  # as above

        async def attempt() -> tuple[Row, Reply]:
            body = LongList(lambda data: scrubbed(data, *self.secrets))
            reply = await self.transport.fetch(request, take=lambda piece: give(body.feed(piece)))
            if reply.status >= 300:
                raise self.error_of(endpoint, self.without_key(reply))
            rows, fields = body.close()
            give(rows)
            return fields, reply

        return await self.retrying(endpoint, attempt)

    def _of_page(self, endpoint: Endpoint[P], query: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """Return the parameters of a URL with the number of rows to ask for, if the dialect says one."""
        if self.dialect.page_size is None or not endpoint.is_paged:
            return query
        return {**(query or {}), "limit": str(self.dialect.page_size)}

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
        request = self.build(endpoint, *ids, query=query, body=body, headers=headers)

        async def attempt() -> tuple[T, Reply]:
            reply = await self.fetch(request)
            return await self.decode(endpoint, reply), reply

        return await self.retrying(endpoint, attempt, policy=policy)

    async def exchange_once(self, endpoint: Endpoint[T], *ids: str, body: bytes | None = None) -> T:
        """Call an endpoint once, as one attempt of a call that is retried elsewhere."""
        return await self.decode(endpoint, await self.fetch(self.build(endpoint, *ids, body=body)))

    async def delete(self, endpoint: Endpoint[Deleted], name: str) -> Deleted:
        """Delete an object. A 404 counts as success if the reply to an earlier attempt was lost."""
        request = self.build(endpoint, name)
        was_lost = False

        async def attempt() -> Deleted:
            nonlocal was_lost
            try:
                reply = await self.fetch(request)
                if reply.status >= 300:
                    raise self.error_of(endpoint, reply)
                return decode_deleted(reply, name)
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
        *,
        renews: bool = True,
        call: Call | None = None,
    ) -> R:
        """Attempt a call until it succeeds, or fails in a way that a retry cannot or must not fix.

        Args:
            endpoint: The endpoint that is called.
            attempt: Makes one attempt.
            find: Looks for the result of a call whose reply was lost; returns None if the call certainly had no effect.
            policy: How often and how slowly to retry; by default the session's policy.
            renews: Whether to attempt it again, whatever the policy, with a new token if the service refuses the token.
            call: What is noted of the call, if it is watched.
        """
        if call is None and (_observe.observer is not None or _log.isEnabledFor(logging.INFO)):
            with _observe.watching(Call(endpoint.method, endpoint.path, self.base_url)) as begun:
                attempt = partial(self._watched, begun, attempt)
                return await self.retrying(endpoint, attempt, find, policy, renews=renews, call=begun)
        self.transport.check_place()
        policy = policy or self.policy
        now = asyncio.get_running_loop().time
        started_at = now()
        failures = 0
        while True:
            token: Secret | None = None
            try:
                # Without need, these two coroutines would be a fiftieth of a create.
                if self._token is not None or self.throttle.until > started_at:
                    await self.throttle.wait(yields=not endpoint.idempotent)
                    token = await self._authorize()
                result = await attempt()
            except FineTuneError as error:
                failure = without_secret(error, *self.secrets)
            else:
                self._clear_trouble()
                return result
            if token is not None and isinstance(failure, AuthenticationFailed) and renews:
                # The token may have expired. The call was refused, so it had no effect.
                renews = False
                self._refuse(token)
                continue
            # Handled outside the except block: an error raised inside it would have `error` as its context, which may
            # show the key.
            is_repeatable = endpoint.idempotent
            if find is not None and retry.may_have_arrived(failure):
                if (found := await _found(find, failure)) is not None:
                    return found
                # The search proved that the call had no effect, so sending it again is safe.
                is_repeatable = True
            failures += 1
            seconds = retry.delay(policy, failure, failures, now() - started_at, idempotent=is_repeatable)
            if seconds is None:
                raise failure
            self._slow_down(failure, seconds)
            self._note_trouble(failure, now(), seconds)
            _log_retry(endpoint, failure, failures, seconds)
            _note_retry(call, failure, seconds)
            await asyncio.sleep(seconds)

    async def _watched(self, call: Call, attempt: Callable[[], Awaitable[R]]) -> R:
        """Make one attempt of a call, and log how it ended."""
        call.begin_attempt()
        started_at = time.perf_counter()
        how = "no reply"
        try:
            result = await attempt()
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            if call.request_id is not None:
                shown = scrubbed(call.request_id.encode(errors="replace"), *self.secrets).decode()
                call.request_id = shown if _REQUEST_ID.fullmatch(shown) else None
            _log_attempt(call, how, time.perf_counter() - started_at)
        if self.trouble is not None and self._is_over(self.trouble):
            lasted = asyncio.get_running_loop().time() - self.trouble.since
            _log.info("calls succeed again, after %.1f s", lasted, extra={"seconds": lasted})
        return result

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
        try:
            if len(reply.body) > _DECODED_ON_LOOP:
                result = await asyncio.to_thread(decode, endpoint, reply, self.note_oddity)
            else:
                result = decode(endpoint, reply, self.note_oddity)
        except ProtocolViolation as violation:
            if (other := fitting(reply.body, self.dialect)) is None:
                raise
            raise ProtocolViolation(f"{violation}; {_in_form_of(other)}") from violation
        if not self._is_other_noted and _is_strange(result, self.dialect.job_object):
            self._note_other_dialect(reply)
        return result

    async def connect(self, request: Request) -> Incoming:
        """Send a request for an event stream; return the reply with its body unread."""
        endpoint = self.endpoints.list_fine_tune_events
        if _observe.current() is None and (_observe.observer is not None or _log.isEnabledFor(logging.INFO)):
            with _observe.watching(Call(endpoint.method, endpoint.path, self.base_url)) as call:
                return await self._watched(call, partial(self.connect, request))
        self.transport.check_place()
        token: Secret | None = None
        if self._token is not None or self.throttle.count:
            await self.throttle.wait(yields=False)
            token = await self._authorize()
        incoming = await self.transport.open(request, self.transport.timeout.stream, SMALL_BUFFER)
        if incoming.status == _UNAUTHORIZED and token is not None:
            incoming.close()
            self._refuse(token)
            await self._authorize()
            incoming = await self.transport.open(request, self.transport.timeout.stream, SMALL_BUFFER)
        if incoming.status >= 300:
            refusal = await self.refusal(endpoint, incoming)
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
        """Return the error for a reply, with the advice of the dialect about its own service."""
        error = error_of(reply)
        if (other := of_upload(reply.headers, self.dialect)) is not None:
            return type(error)(error.status, f"{error.message}; {_in_form_of(other)}", *error.args[2:])
        is_own = self.base_url == self.dialect.base_url or bool(self.dialect.hosts)
        return self.dialect.explain(error, endpoint) if is_own else error

    def without_key(self, reply: Reply) -> Reply:
        """Return a reply without the key in its body, where some services echo it."""
        body = scrubbed(reply.body, *self.secrets)
        return reply if body is reply.body else reply._replace(body=body)

    async def _authorize(self) -> Secret | None:
        """Have the transport send an access token that has not expired; return it, or None if there is a key."""
        if self._token is None:
            return None
        token = await self._token.get()
        self.transport.authorize(token)
        return token

    def _refuse(self, token: Secret) -> None:
        if self._token is not None:
            self._token.refused(token)

    def _slow_down(self, failure: FineTuneError, seconds: float) -> None:
        """Slow down all calls if this one was throttled and will be retried in `seconds`."""
        if isinstance(failure, RateLimited):
            self.throttle.slow_down(seconds if failure.retry_after is None else failure.retry_after)

    def _clear_trouble(self) -> None:
        if self.trouble is not None and self._is_over(self.trouble):
            self.trouble = None

    def _is_over(self, trouble: Trouble) -> bool:
        """Return whether a call that succeeds ends a trouble. It may be another one than those that are throttled."""
        return trouble.kind == "unreachable" or asyncio.get_running_loop().time() >= trouble.until

    def _note_trouble(self, failure: FineTuneError, now: float, seconds: float) -> None:
        kind: Literal["throttled", "unreachable"] = "throttled" if isinstance(failure, RateLimited) else "unreachable"
        before = self.trouble
        since = before.since if before is not None and before.kind == kind else now
        if since == now:
            words = _observe.in_short(failure)
            extra = {"trouble": kind, "error": words}
            _log.info("%s since %s: %s", kind, time.strftime("%H:%M:%S"), words, extra=extra)
        self.trouble = Trouble(kind, since, now + seconds, failure)

    def _note_other_dialect(self, reply: Reply) -> None:
        """Log once in a session that a job has the form of another dialect."""
        if (other := fitting(reply.body, self.dialect)) is not None:
            self._is_other_noted = True
            _log.warning("the service may speak another dialect than %r: %s", self.dialect.name, _in_form_of(other))

    def note_oddity(self, field: str, found: str) -> None:
        """Log a field that was read as absent, once in a session."""
        if field not in self._oddities:
            self._oddities.add(field)
            _log.warning("%s: the service sent %s, which is not valid here; it is treated as missing", field, found)


async def _found(find: Callable[[], Awaitable[R | None]], failure: FineTuneError) -> R | None:
    """Return the result of a call whose reply was lost; None if the call certainly had no effect."""
    try:
        return await find()
    except CreateUncertain as uncertain:
        raise uncertain from uncertain.__cause__ or failure


def _note_retry(call: Call | None, failure: FineTuneError, seconds: float) -> None:
    if call is not None and _observe.observer is not None:
        _observe.observer.retrying(call, failure, seconds)


def _log_retry(endpoint: Endpoint[T], failure: FineTuneError, failures: int, seconds: float) -> None:
    if _log.isEnabledFor(logging.INFO):
        words = _observe.in_short(failure)
        extra = {
            "method": endpoint.method,
            "path": endpoint.path,
            "failures": failures,
            "error": words,
            "seconds": seconds,
        }
        line = "%s %s, failure %d: %s; retrying in %.1f s"
        _log.info(line, endpoint.method, endpoint.path, failures, words, seconds, extra=extra)


def _log_attempt(call: Call, how: str, seconds: float) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        words = "%s %s: %s in %.3f s (attempt %d, request id %s)"
        result = how if call.status is None else call.status
        # Not named "args" or the like, which log records have already.
        extra = {
            "method": call.method,
            "path": call.path,
            "status": call.status,
            "seconds": seconds,
            "attempt": call.attempts,
            "request_id": call.request_id,
        }
        _log.debug(
            words, call.method, call.path, result, seconds, call.attempts, call.request_id or "unknown", extra=extra
        )


def _is_strange(result: object, job_object: str) -> bool:
    """Return whether a job, or the first of a list, may have the form of another dialect."""
    job = result
    if not isinstance(result, FineTune):
        jobs = result.data if isinstance(result, Listing) else result.jobs if isinstance(result, Rows) else ()
        job = jobs[0] if jobs else None
    # Every job has a training file, which each dialect says in its own way.
    return isinstance(job, FineTune) and (job.object != job_object or not job.training_files)


def _in_form_of(other: Dialect) -> str:
    return f"the reply has the form of another dialect: pass dialect={other.name!r} (AIOFINETUNE_DIALECT={other.name})"


def _key_of(row: object, place: int) -> object:
    """Return the id of a row of a list, or else its place."""
    return getattr(row, "id", None) or place


def _last_id(page: Listing[Any] | Rows) -> str | None:
    """Return the id of the last row of a page, after which the next page begins; None if it has none."""
    if isinstance(page, Rows):
        return page.last_id
    return getattr(page.data[-1], "id", None) if page.data else None
