"""The session: one coroutine for each endpoint of the fine-tunes API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

import aiohttp
import attrs

from aiofinetune import retry, structuring
from aiofinetune._http import files
from aiofinetune._http.throttle import Pause
from aiofinetune._http.transport import SMALL_BUFFER, Heard, Incoming, Timeout, Transport, collect
from aiofinetune._jobs import matching as reconcile
from aiofinetune._jobs.matching import Accepted, Group, Moment, Own, Search
from aiofinetune._jobs.stream import EventStream
from aiofinetune._secret import Secret, scrubbed, without_secret
from aiofinetune._version import __version__
from aiofinetune.dialects import _fine_tunes as protocol
from aiofinetune.dialects._fine_tunes import Endpoint, Reply, Request
from aiofinetune.errors import (
    APIError,
    BadRequest,
    ConfigurationError,
    Conflict,
    ConnectionLost,
    FineTuneError,
    FineTuneUnreadable,
    LocalFileError,
    NotFound,
    NotSent,
    ProtocolViolation,
    RateLimited,
    RequestInvalid,
    StreamInterrupted,
    TransportError,
    WaitTimeout,
)
from aiofinetune.models import (
    CreateUncertain,
    Deleted,
    File,
    FineTune,
    FineTuneCancelled,
    FineTuneEvent,
    FineTuneFailed,
    FineTuneRequest,
    Listing,
    Model,
    Rows,
    Status,
)
from aiofinetune.retry import Retry

if TYPE_CHECKING:
    from aiofinetune._completions import Completion
    from aiofinetune.results._rows import ResultRow

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger("aiofinetune")

_USER_AGENT: Final = f"aiofinetune/{__version__}"
_DECODED_ON_LOOP: Final = 128 << 10
"""Bytes of JSON that are decoded on the event loop, in a millisecond or two; longer replies go to a thread."""
_LAST_EVENTS: Final = 10
"""Events that a failed job's error carries."""
_UNSEEN: Final = 60.0
"""Seconds between two looks at a job whose stream goes on: one that is kept alive need not be of a job that is."""
_SHORTEST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds between two looks at a job whose stream does not last."""


class FineTuneSession:
    """A connection to one service that speaks the fine-tunes API.

    An async context manager; `aclose` does the same as leaving it. It may be shared by any number of coroutines of one
    event loop, that of its first call: a thread, an `asyncio.run` or a forked process each needs a session of its own.

    Args:
        api_key: The service's key; by default ``OPENAI_API_KEY`` of the environment.
        base_url: Where the API is, with its ``/v1``; by default ``OPENAI_BASE_URL``, else the reference's own,
            ``https://api.openai.com/v1``, which retired fine-tunes on 2024-01-04.
        organization: Sent with every call; by default ``OPENAI_ORG_ID``, else nothing.
        timeout: How long to wait, in seconds, for what.
        retry: How often and how slowly to try again.
        http: An aiohttp session to use; it is never closed here, its own connection limit holds for streams too, and
            what it sends again by itself (once, what is no POST) comes on top of `retry`.
            By default one is made at the first call, and closed with this session.
        allow_plain_http: Whether the key may travel over plain http to another machine.

    Raises:
        ConfigurationError: There is no key, it cannot be a header, `base_url` is wrong or unsafe, or `timeout` or
            `retry` is something else.

    All coroutines raise, besides what each names:
        RequestInvalid: The request is wrong; nothing was sent.
        APIError: The service answered with an error.
        TransportError: No whole reply came, and trying again did not help or was not safe.
        ProtocolViolation: The reply is not what the API promises.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        organization: str | None = None,
        timeout: Timeout = Timeout(),
        retry: Retry = Retry(),
        http: aiohttp.ClientSession | None = None,
        allow_plain_http: bool = False,
    ) -> None:
        # Rebound, so that no traceback of a failure below shows it.
        api_key = Secret(api_key or os.environ.get("OPENAI_API_KEY", ""))
        if not api_key:
            raise ConfigurationError("api_key: there is none; pass it, or set OPENAI_API_KEY")
        self._api_key = _checked_header("api_key", api_key)
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or protocol.DEFAULT_BASE_URL
        self.base_url = protocol.check_base_url(base_url, allow_plain_http=allow_plain_http)
        organization = organization or os.environ.get("OPENAI_ORG_ID")
        headers = {**protocol.HEADERS, "Authorization": Secret(f"Bearer {api_key}"), "User-Agent": _USER_AGENT}
        if organization:
            headers["OpenAI-Organization"] = _checked_header("organization", organization)
        for name, value, kind in (("timeout", timeout, Timeout), ("retry", retry, Retry)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"{name}: expected a {kind.__name__}, got {value!r}")
        self._retry = retry
        self._pause = Pause()
        self._own = Own()
        self._partial_lists: set[str] = set()
        """Paths of the lists that were told to be partial: once each."""
        self._oddities: set[str] = set()
        """Fields of replies that were said not to fit: once each."""
        self._groups: weakref.WeakValueDictionary[tuple[str, str], Group[Any]] = weakref.WeakValueDictionary()
        self._transport = Transport(self.base_url, headers, timeout, http)

    def __repr__(self) -> str:
        return f"FineTuneSession(base_url={self.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def times_throttled(self) -> int:
        """How often the service has told this session to slow down (429)."""
        return self._pause.count

    def check_loop(self) -> None:
        """Raise `ConfigurationError` unless the session belongs to the running event loop; its first call binds it."""
        self._transport.check_place()

    async def aclose(self) -> None:
        """Close the connections, and the aiohttp session if it was made here.

        Raises:
            ConfigurationError: They belong to another event loop, which is not closed.
        """
        await self._transport.aclose()

    # Fine-tunes

    async def create_fine_tune(
        self,
        request: FineTuneRequest,
        *,
        known: Container[str] = (),
        wanted: Callable[[], bool] = lambda: True,
        accepted: Callable[[str | None, bool], Awaitable[None]] | None = None,
    ) -> FineTune:
        """Create a job, once: it is sent again only where it surely made none.

        A reply with a status of 2xx means that a job was made, whatever the rest of it is: then the job is retrieved by
        the id that the reply names, or looked for in the service's list. When the reply is lost, the list is searched
        as well, for as long as ``Retry.grace`` says, for a job made since by no other call of this session; and only
        where the list is proof that there is none is the create sent again, on a new connection. (With an aiohttp
        session that was handed in, the search asks the service to close the connection that it used; others of that
        session may still be used.) A training file that is still being processed is waited for. When the call is
        cancelled after the request was sent, a note on the ``CancelledError`` says what is known of the job.

        Args:
            request: What to ask for.
            known: Ids of jobs that are known to be another request's. Those of this session are known to it.
            wanted: Asked each time before it is sent; where it says no, it has made no job, and is not sent.
            accepted: Called when the service accepted the create and its reply does not describe the job, before
                anything else is done: with the id that the reply names, if any, and whether the reply came whole.

        Raises:
            CreateUncertain: Whether a job was made, or which, cannot be told.
            FineTuneUnreadable: The job was made; its id is known, and nothing else of it can be read.
            QuotaExceeded: The service takes no more jobs today, or for this money.
            TooManyJobs: The service takes no more jobs until one is over.
            NotSent: It was not `wanted`.

        Source: ``POST /fine-tunes``.
        """
        if not isinstance(request, FineTuneRequest):
            raise RequestInvalid("request", f"expected a FineTuneRequest, got {type(request).__name__}")
        # No service is known to honour the key; it costs nothing to send, and nothing here depends on it.
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        endpoint = protocol.CREATE_FINE_TUNE
        call = protocol.build(endpoint, self.base_url, body=structuring.write_request(request.given()), headers=headers)
        group = self._group("fine-tune", request.training_file)
        sent = Moment.now()
        is_lost = False

        async def attempt() -> FineTune:
            await group.turn()
            if not wanted():
                raise NotSent("the create was not sent: it is not wanted any more")
            heard = Heard()
            try:
                with group, _Noted(request, heard):
                    # A connection that broke once under a create may do so each time: the next goes out on its own.
                    job = await self._send_create(call, heard, fresh=is_lost)
                    self._claim(job.id, known)
                    return job
            except Accepted as acceptance:
                search = Search(request, sent, Moment.now(), known, self._own, accepted=acceptance)
                with _Noted(request, acceptance):
                    made = await self._retrieve_accepted(search, acceptance, accepted or _unheeded)
                    made = made or await search_list(search)
                    assert made is not None  # noqa: S101  # of an accepted create, the search does not say that it made none
                    return made

        async def find(_failure: FineTuneError) -> FineTune | None:
            nonlocal is_lost
            is_lost = True
            with _Noted(request, None):
                return await search_list(Search(request, sent, Moment.now(), known, self._own))

        async def search_list(search: Search) -> FineTune | None:
            with group.losing(request):
                async with group.searching():
                    return await self._find_fine_tune(attrs.evolve(search, lost=group.lost))

        return await self._retrying(endpoint, attempt, find)

    async def find_fine_tune(
        self,
        request: FineTuneRequest,
        sent_at: float,
        *,
        lost_at: float | None = None,
        lost: Sequence[FineTuneRequest] = (),
        known: Container[str] = (),
        accepted: bool = False,
        fine_tune_id: str | None = None,
    ) -> FineTune | None:
        """Look for the job of a create whose reply was lost; None if it surely made none.

        `create_fine_tune` does so itself. This is for callers that keep a record of creates across sessions.

        Args:
            request: What was asked for.
            sent_at: When it was first sent, in Unix seconds by this machine's clock. A service whose clock is set
                otherwise does no harm; and as this machine's may have been set since, an equal job of the day before
                makes it uncertain.
            lost_at: When its reply was given up; the job may still show up until ``Retry.grace`` after. By default
                `sent_at`.
            lost: All requests whose job is not known, which might be taken for one another; `request` may be left out.
            known: Ids of jobs that are known to be another request's. Those of this session are known to it.
            accepted: Whether the service accepted the create, so that it made a job; then None is never returned.
            fine_tune_id: The id that a reply named which broke off.

        Raises:
            CreateUncertain: It cannot be told.
        """
        self.check_loop()
        search = Search(
            request,
            Moment.at(sent_at),
            # By a clock that was set back since it may lie in the future: that is not waited for.
            Moment.at(min(sent_at if lost_at is None else lost_at, time.time())),
            known,
            self._own.kept(),
            lost if request in lost else (*lost, request),
            reconcile.MOST_ASTRAY,
            Accepted(fine_tune_id, is_whole=False) if accepted else None,
        )
        if fine_tune_id is not None and (job := await self._retrieve_named(search, fine_tune_id)) is not None:
            return job
        return await self._find_fine_tune(search)

    def disown(self, fine_tune_id: str) -> None:
        """Let `find_fine_tune` find a job that this session has given already: whoever got it could not keep its id."""
        self._own.disown(fine_tune_id)

    async def list_fine_tunes(self) -> tuple[FineTune, ...]:
        """List the jobs, without their events.

        Source: ``GET /fine-tunes``.
        """
        return await self._list(protocol.LIST_FINE_TUNES)

    async def retrieve_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Give a job as it stands, with its events so far.

        Source: ``GET /fine-tunes/{id}``.
        """
        return await self._call(protocol.RETRIEVE_FINE_TUNE, fine_tune_id)

    async def cancel_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Cancel a job; give it as it stands then. One that is cancelled already is given as it is.

        Source: ``POST /fine-tunes/{id}/cancel``.
        """
        try:
            return await self._call(protocol.CANCEL_FINE_TUNE, fine_tune_id)
        except (BadRequest, Conflict, ProtocolViolation):
            # A try of this very call may have cancelled it, whose reply was lost or does not describe the job.
            job = await self.retrieve_fine_tune(fine_tune_id)
            if job.status != Status.CANCELLED:
                raise
            return job

    async def list_fine_tune_events(self, fine_tune_id: str) -> tuple[FineTuneEvent, ...]:
        """List a job's events so far, oldest first.

        Source: ``GET /fine-tunes/{id}/events``.
        """
        return await self._list(protocol.LIST_FINE_TUNE_EVENTS, fine_tune_id)

    def stream_fine_tune_events(self, fine_tune_id: str) -> EventStream:
        """Give a job's events from its first to its last, each as it happens; see `EventStream`.

        Source: ``GET /fine-tunes/{id}/events?stream=true``.
        """
        request = protocol.build(
            protocol.STREAM_FINE_TUNE_EVENTS, self.base_url, fine_tune_id, headers=protocol.STREAM_HEADERS
        )
        return EventStream(self._connect, request, self._retry, self._api_key)

    async def wait(self, fine_tune_id: str, timeout: float | None = None) -> FineTune:  # noqa: ASYNC109  # for most callers handier than a context
        """Wait until a job is over; give it.

        It follows the job's events, looks at the job now and then (each minute; oftener where a service does not stream
        them), and believes only what `retrieve_fine_tune` says. Interruptions shorter than ``Retry.deadline`` are
        survived. A status that the reference does not know keeps it waiting, with a warning in the log.

        Args:
            fine_tune_id: The job.
            timeout: Seconds to wait; None waits for as long as the job takes.

        Raises:
            FineTuneFailed: The job failed; the error carries it and its last events.
            FineTuneCancelled: The job was cancelled; likewise.
            WaitTimeout: The job was not over in time; it goes on at the service, as far as its status tells.
        """
        deadline = asyncio.timeout(timeout)
        looks: deque[FineTune] = deque(maxlen=1)
        try:
            async with deadline:
                job, events = await self._wait(fine_tune_id, looks)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise WaitTimeout(f"fine-tune {fine_tune_id} was not over after {timeout} s; {_state(looks)}") from error
        if job.status == Status.SUCCEEDED:
            return job
        kind = FineTuneCancelled if job.status == Status.CANCELLED else FineTuneFailed
        raise kind(job, (job.events or events)[-_LAST_EVENTS:])

    async def results(self, fine_tune: FineTune) -> list[ResultRow]:
        """Download and read the results file of a job that succeeded.

        Args:
            fine_tune: The job; one that was given before it had results is looked up again.

        Raises:
            NotFound: The job has no results file.
        """
        if not fine_tune.result_files:
            fine_tune = await self.retrieve_fine_tune(fine_tune.id)
        if not fine_tune.result_files:
            raise NotFound(404, f"fine-tune {fine_tune.id} has no results file; its status is {fine_tune.status}")
        from aiofinetune.results import read_results  # noqa: PLC0415  # a tenth of the import, which few programs need

        content = scrubbed(await self.download_file(fine_tune.result_files[0].id), self._api_key)
        return await asyncio.to_thread(read_results, content)

    # Models

    async def list_models(self) -> tuple[Model, ...]:
        """List the models that the key may use.

        Source: ``GET /models``.
        """
        return await self._list(protocol.LIST_MODELS)

    async def retrieve_model(self, model: str) -> Model:
        """Give a model.

        Source: ``GET /models/{model}``.
        """
        return await self._call(protocol.RETRIEVE_MODEL, model)

    async def delete_model(self, model: str) -> Deleted:
        """Delete a fine-tuned model.

        Source: ``DELETE /models/{model}``.
        """
        return await self._delete(protocol.DELETE_MODEL, model)

    async def create_completion(
        self,
        model: str,
        prompt: str | Sequence[str],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        seed: int | None = None,
    ) -> Completion:
        """Let a model continue a prompt; with several prompts, one choice for each. What is None the service decides.

        Args:
            model: A base model or a fine-tuned one.
            prompt: The text to continue. A model continues best what ends as its training prompts did.
            max_tokens: The longest completion, in tokens.
            temperature: 0 takes the likeliest token each time; higher is more varied.
            stop: Where to end; not part of the text given.
            logprobs: How many of the likeliest tokens to give log probabilities for.
            seed: The same seed gives the same completion, where the service can.

        Source: ``POST /completions``.
        """
        parameters = {
            "model": model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stop": stop if stop is None or isinstance(stop, str) else list(stop),
            "logprobs": logprobs,
            "seed": seed,
        }
        body = structuring.write_request({name: value for name, value in parameters.items() if value is not None})
        from aiofinetune import _completions as completions  # noqa: PLC0415  # an eighth of the client's import, likewise

        return await self._call(completions.CREATE_COMPLETION, body=body)

    # Files

    async def upload_file(
        self,
        source: files.Source,
        *,
        purpose: str = "fine-tune",
        filename: str | None = None,
        progress: files.Progress | None = None,
    ) -> File:
        """Upload a file, in constant memory; give it as the service knows it.

        Args:
            source: A path, bytes, a file opened in binary mode or what is read like one (its `read` may be a coroutine,
                as of an ``UploadFile``), or an async iterator of bytes. What cannot go back, and what is awaited, is
                read only once: a failed upload of it is not tried again. An iterator is the way for a pipe: a thread
                that waits for a pipe's other end cannot be given up, and would keep the program from ending.
            purpose: ``"fine-tune"`` for training and validation data.
            filename: The name at the service; by default the file's own, or ``"data.jsonl"``.
            progress: Called on the event loop with the bytes sent so far and their total, or None if it is unknown.

        Raises:
            LocalFileError: The file cannot be read.

        Source: ``POST /files``.
        """
        async with files.opened_source(source) as content:
            name = filename or content.name or "data.jsonl"
            group = self._group("file", name)
            sent = Moment.now()

            async def attempt() -> File:
                if content.rewind is not None:
                    await content.rewind()
                await group.turn()
                with group:
                    file = await self._send_file(content, purpose, name, progress)
                    self._own.add(file.id)
                    return file

            async def find(_failure: FineTuneError) -> File | None:
                with group.losing(content):
                    async with group.searching():
                        # Two that were lost may be two contents: then only sending both again is safe.
                        group.is_contested |= len(group.lost) > 1
                        if group.is_contested:
                            return None
                        return await self._find_file(name, content.size, purpose, sent)

            policy = self._retry if content.rewind is not None else attrs.evolve(self._retry, attempts=1)
            return await self._retrying(protocol.UPLOAD_FILE, attempt, find, policy)

    async def list_files(self, purpose: str | None = None) -> tuple[File, ...]:
        """List the files, or those of one purpose.

        Source: ``GET /files``.
        """
        query = None if purpose is None else {"purpose": purpose}
        return await self._list(protocol.LIST_FILES, query=query)

    async def retrieve_file(self, file_id: str) -> File:
        """Give what the service knows of a file.

        Source: ``GET /files/{id}``.
        """
        return await self._call(protocol.RETRIEVE_FILE, file_id)

    @overload
    async def download_file(self, file_id: str) -> bytes: ...

    @overload
    async def download_file(self, file_id: str, path: str | os.PathLike[str]) -> Path: ...

    async def download_file(self, file_id: str, path: str | os.PathLike[str] | None = None) -> bytes | Path:
        """Download a file's content: as bytes, or to a path in constant memory.

        Args:
            file_id: The file.
            path: Where to write it. The file appears there only when it is whole, and replaces one that is there.
                None gives the content as bytes.

        Raises:
            LocalFileError: The file cannot be written.

        Source: ``GET /files/{id}/content``.
        """
        # What was sent is held against the size that the service knows: a body may be whole, and not the file.
        expected = (await self.retrieve_file(file_id)).bytes or 0
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        request = protocol.build(protocol.DOWNLOAD_FILE, self.base_url, file_id, headers=headers)

        async def attempt() -> bytes | Path:
            incoming = await self._transport.open(request, self._transport.timeout.stall)
            if incoming.status >= 300:
                raise await self._refusal(protocol.DOWNLOAD_FILE, incoming)
            with contextlib.closing(incoming):
                read = _reader_of(incoming, file_id, expected)
                if path is not None:
                    await files.save(Path(path), read)
                    return Path(path)
                content = await collect(read, expected or protocol.MOST_REPLY_BYTES)
            if not expected and len(content) > protocol.MOST_REPLY_BYTES:
                raise ProtocolViolation(f"{file_id} is of an unknown length, and too long for the memory; give a path")
            return content

        return await self._retrying(protocol.DOWNLOAD_FILE, attempt)

    async def delete_file(self, file_id: str) -> Deleted:
        """Delete a file.

        Source: ``DELETE /files/{id}``.
        """
        return await self._delete(protocol.DELETE_FILE, file_id)

    # What the endpoints share

    async def _call(
        self, endpoint: Endpoint[T], *ids: str, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> T:
        return (await self._exchange(endpoint, *ids, query=query, body=body))[0]

    async def _list(
        self, endpoint: Endpoint[Listing[T]], *ids: str, query: Mapping[str, str] | None = None
    ) -> tuple[T, ...]:
        listing = await self._call(endpoint, *ids, query=query)
        if listing.has_more and endpoint.path not in self._partial_lists:
            self._partial_lists.add(endpoint.path)
            _log.warning("%s %s: the service gave a part of the list only", endpoint.method, endpoint.path)
        return listing.data

    async def _exchange(
        self,
        endpoint: Endpoint[T],
        *ids: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        policy: Retry | None = None,
    ) -> tuple[T, Reply]:
        """Make a plain call; give what its reply says, and the reply itself."""
        request = protocol.build(endpoint, self.base_url, *ids, query=query, body=body, headers=headers)

        async def attempt() -> tuple[T, Reply]:
            reply = await self._fetch(request)
            return await self._decode(endpoint, reply), reply

        return await self._retrying(endpoint, attempt, policy=policy)

    async def _delete(self, endpoint: Endpoint[Deleted], name: str) -> Deleted:
        """Delete something. Where the reply to one try was lost, the next finds it gone: that is success too."""
        request = protocol.build(endpoint, self.base_url, name)
        was_lost = False

        async def attempt() -> Deleted:
            nonlocal was_lost
            try:
                reply = await self._fetch(request)
                if reply.status >= 300:
                    raise self._error_of(endpoint, reply)
                return protocol.decode_deleted(reply, name)
            except NotFound:
                if not was_lost:
                    raise
                return Deleted(name, deleted=True)
            except FineTuneError as failure:
                was_lost = was_lost or reconcile.may_have_arrived(failure)
                raise

        return await self._retrying(endpoint, attempt)

    async def _retrying(
        self,
        endpoint: Endpoint[T],
        attempt: Callable[[], Awaitable[R]],
        find: Callable[[FineTuneError], Awaitable[R | None]] | None = None,
        policy: Retry | None = None,
    ) -> R:
        """Attempt a call until it succeeds, or fails in a way that trying again cannot or must not mend.

        Args:
            endpoint: What is called.
            attempt: Sends it once.
            find: Looks for what a call made whose reply was lost; None says that it surely made nothing.
            policy: How often and how slowly; the session's by default.
        """
        self.check_loop()
        policy = policy or self._retry
        begin = self._now()
        failures = 0
        call_under_way = self._own.begin()
        try:
            while True:
                await self._pause.wait()
                try:
                    return await attempt()
                except FineTuneError as error:
                    failure = without_secret(error, self._api_key)
                is_repeatable = endpoint.idempotent
                if find is not None and reconcile.may_have_arrived(failure):
                    try:
                        found = await find(failure)
                    except CreateUncertain as uncertain:
                        raise uncertain from uncertain.__cause__ or failure
                    if found is not None:
                        return found
                    is_repeatable = True
                failures += 1
                seconds = retry.delay(policy, failure, failures, self._now() - begin, idempotent=is_repeatable)
                if seconds is None:
                    raise failure
                self._slow_down(failure, seconds)
                _log.info(
                    "%s %s, failure %d: %s; retrying in %.1f s",
                    endpoint.method,
                    endpoint.path,
                    failures,
                    failure,
                    seconds,
                )
                await asyncio.sleep(seconds)
        finally:
            self._own.end(call_under_way)

    def _slow_down(self, failure: FineTuneError, seconds: float) -> None:
        """Let all calls wait where one was throttled, and is to be tried again in `seconds`."""
        if isinstance(failure, RateLimited):
            self._pause.extend(seconds if failure.retry_after is None else failure.retry_after)

    async def _send_create(self, call: Request, heard: Heard, *, fresh: bool) -> FineTune:
        """Send a create; give the job that its reply describes.

        Raises:
            Accepted: The service accepted it, and its reply describes no job.
        """
        try:
            reply = await self._fetch(call, heard=heard, fresh=fresh)
        except FineTuneError as failure:
            if not heard.is_accepted:
                raise
            reply = self._without_key(Reply(heard.status or 200, heard.headers, b"".join(heard.pieces)))
            named = structuring.readable_id(reply.body)
            raise Accepted(named, is_whole=False) from protocol.unreadable(reply, failure)
        if reply.status >= 300:
            raise self._error_of(protocol.CREATE_FINE_TUNE, reply)
        try:
            return await self._decode(protocol.CREATE_FINE_TUNE, reply)
        except FineTuneError as misfit:
            named, is_whole = structuring.readable_id(reply.body), structuring.is_json(reply.body)
            raise Accepted(named, is_whole=is_whole) from (misfit if named else protocol.unreadable(reply, misfit))

    def _claim(self, fine_tune_id: str, known: Container[str]) -> None:
        """Take a job as this call's own.

        Raises:
            Accepted: It is another's: this create was accepted, and which job it made is not known.
        """
        if fine_tune_id in self._own or fine_tune_id in known:
            words = f"the reply names {fine_tune_id}, which another create made"
            raise Accepted(fine_tune_id, is_whole=True, is_taken=True) from ProtocolViolation(words)
        self._own.add(fine_tune_id)

    async def _retrieve_accepted(
        self, search: Search, failure: Accepted, note: Callable[[str | None, bool], Awaitable[None]]
    ) -> FineTune | None:
        """Retrieve the job that an accepted create's reply names; None if it names none, or none that is known."""
        named = failure.fine_tune_id
        if named is not None and not failure.is_taken and (named in self._own or named in search.known):
            failure = Accepted(named, is_whole=failure.is_whole, is_taken=True)
        if failure.is_taken:
            await note(None, False)
            raise search.uncertain(fine_tune_id=named) from failure.__cause__
        await note(named, failure.is_whole)
        if named is None:
            return None
        # Nobody else may find it meanwhile.
        self._own.add(named)
        job = await self._retrieve_named(search, named, is_whole=failure.is_whole)
        if job is None:
            self._own.remove(named)
            if failure.is_whole:
                await note(named, False)
        return job

    async def _retrieve_named(self, search: Search, named: str, *, is_whole: bool = False) -> FineTune | None:
        """Retrieve the job that a create's reply named; None if the service does not know it, or it is another's.

        Raises:
            FineTuneUnreadable: The reply was whole, and the job cannot be read.
        """
        for pause in self._until_grace_is_over(search):
            try:
                job, reply = await self._exchange(protocol.RETRIEVE_FINE_TUNE, named)
            except NotFound:
                await asyncio.sleep(pause)
            except FineTuneError as failure:
                if not is_whole:
                    _log.warning("looking at %s, which the reply to a create named: %s", named, failure)
                    return None
                raise FineTuneUnreadable(str(failure), named) from failure
            else:
                if not is_whole and not reconcile.is_ours(job, search.request, _at_service(reply, search.sent)):
                    return None
                self._own.add(named)
                return job
        return None

    async def _find_fine_tune(self, search: Search) -> FineTune | None:
        """Search the service's list for the job of a create, for as long as it may take to show up.

        None if it surely made none, by moments that no setting of this machine's clock moves by more than said.
        """
        rows, verdict = Rows(is_whole=False), reconcile.Verdict()
        # So that a create which is sent again does not go out on this connection.
        headers = {} if self._transport.owns_http else {"Connection": "close"}
        for pause in self._until_grace_is_over(search):
            try:
                rows, reply = await self._exchange(protocol.LIST_FINE_TUNE_ROWS, headers=headers)
            except FineTuneError as error:
                raise search.uncertain() from search.cause or error
            since = _at_service(reply, search.sent)
            others = [job for job in rows.jobs if job.id not in search.known]
            verdict = reconcile.judge(others, search.request, since, search.lost, search.own, search.astray)
            if verdict.job is not None:
                self._own.add(verdict.job.id)
                return verdict.job
            await asyncio.sleep(pause)
        unreadable = [name for name in rows.unreadable if name not in search.known and name not in search.own]
        if verdict.unclear or unreadable or not rows.is_whole or search.accepted is not None:
            raise search.uncertain(verdict.unclear, tuple(unreadable)) from search.cause
        return None

    def _until_grace_is_over(self, search: Search) -> Iterator[float]:
        """How long to pause after each look for a job; the last look is the one after ``Retry.grace`` is over."""
        pause = self._retry.base
        while (left := self._retry.grace - (time.monotonic() - search.lost_at.steady)) > 0:
            yield min(pause, left)
            pause = min(2 * pause, self._retry.cap)
        yield 0.0

    async def _list_rows(self) -> Rows:
        """List the jobs, and the ids of those of which nothing else can be read."""
        return await self._call(protocol.LIST_FINE_TUNE_ROWS)

    async def _find_file(self, name: str, size: int | None, purpose: str, sent: Moment) -> File | None:
        """Look for the file of an upload whose reply was lost; None if there is none that is surely it."""
        try:
            listing, reply = await self._exchange(protocol.LIST_FILES, policy=attrs.evolve(self._retry, attempts=1))
        except FineTuneError as error:
            # A file sent twice costs little; a job never gets here.
            _log.info("looking for the upload of %s: %s", name, error)
            return None
        since = _at_service(reply, sent)
        file = reconcile.find_file(listing.data, name, size, purpose, since, self._own)
        if file is not None:
            self._own.add(file.id)
        return file

    def _group(self, kind: str, name: str) -> Group[Any]:  # Any: requests in one kind, files in the other
        """The group of all calls under way that make things which a list cannot tell apart."""
        group = self._groups.get((kind, name))
        if group is None:
            group = self._groups[kind, name] = Group()
        return group

    async def _fetch(
        self,
        request: Request,
        upload: files.Form | None = None,
        heard: Heard | None = None,
        *,
        fresh: bool = False,
    ) -> Reply:
        """Send a request; give its reply without the key, which the locals of a traceback would show too."""
        return self._without_key(await self._transport.fetch(request, upload, heard, fresh=fresh))

    async def _decode(self, endpoint: Endpoint[T], reply: Reply) -> T:
        if reply.status >= 300:
            raise self._error_of(endpoint, reply)
        if len(reply.body) > _DECODED_ON_LOOP:
            return await asyncio.to_thread(protocol.decode, endpoint, reply, self._note_oddity)
        return protocol.decode(endpoint, reply, self._note_oddity)

    def _note_oddity(self, field: str, found: str) -> None:
        """Say once a session of each field that was read as absent."""
        if field not in self._oddities:
            self._oddities.add(field)
            _log.warning("%s: the service gives %s, which does not fit; it is read as absent", field, found)

    def _without_key(self, reply: Reply) -> Reply:
        body = scrubbed(reply.body, self._api_key)
        return reply if body is reply.body else reply._replace(body=body)

    def _error_of(self, endpoint: Endpoint[T], reply: Reply) -> APIError:
        error = protocol.error_of(reply)
        if isinstance(error, NotFound) and self.base_url == protocol.DEFAULT_BASE_URL:
            return protocol.explained(error, endpoint)
        return error

    async def _connect(self, request: Request) -> Incoming:
        """Send a request for an event stream."""
        self.check_loop()
        await self._pause.wait()
        incoming = await self._transport.open(request, self._transport.timeout.stream, SMALL_BUFFER)
        if incoming.status >= 300:
            refusal = await self._refusal(protocol.STREAM_FINE_TUNE_EVENTS, incoming)
            # Only what is tried again holds up all: not a quota, nor a time that is out of all bounds.
            seconds = retry.delay(self._retry, refusal, 1, 0.0, idempotent=True)
            if seconds is not None:
                self._slow_down(refusal, seconds)
            raise refusal
        return incoming

    async def _refusal(self, endpoint: Endpoint[T], incoming: Incoming) -> APIError:
        """The error that came in place of a body to read in pieces."""
        with contextlib.closing(incoming):
            return self._error_of(endpoint, self._without_key(await self._transport.read_reply(incoming)))

    async def _send_file(
        self, content: files.Content, purpose: str, filename: str, progress: files.Progress | None
    ) -> File:
        boundary = secrets.token_hex(16)
        form = files.Form(content, protocol.multipart(purpose, filename, boundary), progress)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        if form.size is not None:
            headers["Content-Length"] = str(form.size)
        request = protocol.build(protocol.UPLOAD_FILE, self.base_url, headers=headers)
        try:
            reply = await self._fetch(request, form)
        except TransportError:
            if form.failure is None:
                raise
        else:
            if form.failure is None:
                return await self._decode(protocol.UPLOAD_FILE, reply)
        if isinstance(form.failure, FineTuneError):
            raise form.failure
        raise LocalFileError(f"the upload was given up on this side: {form.failure!r}") from form.failure

    async def _wait(self, fine_tune_id: str, looks: deque[FineTune]) -> tuple[FineTune, tuple[FineTuneEvent, ...]]:
        """Give the finished job, and the last events that its stream told; put each look at it into `looks`."""
        events: deque[FineTuneEvent] = deque(maxlen=_LAST_EVENTS)
        streams = True
        pause = _SHORTEST_PAUSE
        last_seen = self._now()
        strange: str | None = None
        while True:
            if streams:
                streams = await self._follow(fine_tune_id, events, looks)
            try:
                job = await self.retrieve_fine_tune(fine_tune_id)
                looks.append(job)
            except FineTuneError as failure:
                if not retry.may_pass(failure) or self._now() - last_seen > self._retry.deadline:
                    raise
                _log.info("waiting for %s: %s", fine_tune_id, failure)
            else:
                last_seen = self._now()
                if job.is_terminal:
                    return job, tuple(events)
                if job.status not in Status.KNOWN and job.status != strange:
                    strange = job.status
                    _log.warning("%s has a status that the API does not name, %r; still waiting", fine_tune_id, strange)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _follow(self, fine_tune_id: str, events: deque[FineTuneEvent], looks: deque[FineTune]) -> bool:
        """Follow a job's events until they end, or the job is over; whether it is worth trying again."""
        events.clear()
        stream = self.stream_fine_tune_events(fine_tune_id)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_events(stream, fine_tune_id, events))
            while not (await asyncio.wait([reading], timeout=_UNSEEN))[0]:
                if await self._seems_over(fine_tune_id, looks):
                    reading.cancel()
        return reading.cancelled() or reading.result()

    async def _read_events(self, stream: EventStream, fine_tune_id: str, events: deque[FineTuneEvent]) -> bool:
        try:
            async with stream:
                async for event in stream:
                    events.append(event)
        except FineTuneError as failure:
            if isinstance(failure, StreamInterrupted) or retry.may_pass(failure):
                _log.info("following %s: %s", fine_tune_id, failure)
                return True
            # Whatever is wrong with the stream, or with the job, looking at the job will tell.
            _log.info("following %s: %s; looking at it now and then instead", fine_tune_id, failure)
            return False
        return True

    async def _seems_over(self, fine_tune_id: str, looks: deque[FineTune]) -> bool:
        try:
            job = await self.retrieve_fine_tune(fine_tune_id)
        except FineTuneError as failure:
            _log.info("looking at %s: %s", fine_tune_id, failure)
            # What does not pass the look that follows raises.
            return not retry.may_pass(failure)
        looks.append(job)
        return job.is_terminal

    def _now(self) -> float:
        """Seconds on a clock that is never set."""
        return asyncio.get_running_loop().time()


def _reader_of(incoming: Incoming, file_id: str, expected: int) -> Callable[[], Awaitable[bytes]]:
    """What gives a download's pieces, and refuses to give less or more than the file holds, where that is known."""
    size = 0

    async def read() -> bytes:
        nonlocal size
        piece = await incoming.read(files.PIECE)
        size += len(piece)
        if size > expected > 0:
            raise ProtocolViolation(f"the download of {file_id} is longer than the {expected} bytes of the file")
        if not piece and size < expected:
            raise ConnectionLost(f"the download of {file_id} ended after {size} of {expected} bytes")
        return piece

    return read


def _state(looks: Sequence[FineTune]) -> str:
    """What is known of a job that was not over in time, by the last look at it."""
    if not looks:
        return "it goes on, as far as is known: its status was not seen"
    status = looks[-1].status
    if status not in Status.KNOWN:
        return f"its status is {status!r}, which the API does not name: look at the job at the service"
    return f"it goes on, and its status is {status!r}"


def _at_service(reply: Reply, moment: Moment) -> float | None:
    """What the service's clock showed at `moment`; None if that cannot be known."""
    now, seconds_ago = protocol.server_time(reply), moment.seconds_ago()
    return None if now is None or seconds_ago is None else now - seconds_ago


class _Noted:
    """Says on a cancellation what is known of the job of a create that was under way."""

    def __init__(self, request: FineTuneRequest, known: Heard | Accepted | None) -> None:
        self._request = request
        self._known = known

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            error.add_note(f"a create was under way when it was cancelled: {self._outcome()}")

    def _outcome(self) -> str:
        match self._known:
            case Accepted(fine_tune_id=named):
                is_accepted = True
            case Heard(is_accepted=True, pieces=pieces):
                is_accepted, named = True, structuring.readable_id(b"".join(pieces))
            case _:
                is_accepted, named = False, None
        if named is not None:
            return f"the service accepted it, and it made a job, {named}"
        return (
            f"{'the service accepted it, and it made a job' if is_accepted else 'it may have made a job'}; look in"
            f" list_fine_tunes() for one with the training file {self._request.training_file}, created just now"
        )


async def _unheeded(_fine_tune_id: str | None, _is_whole: bool) -> None:  # noqa: FBT001  # as a create calls it
    """Take no note of an accepted create: the caller keeps no record."""


def _checked_header(name: str, value: str) -> str:
    """Give a value that can stand in a header (RFC 9110, section 5.5); never show it."""
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise ConfigurationError(f"{name}: holds a space at an end, or a character that no header may hold")
    return value
