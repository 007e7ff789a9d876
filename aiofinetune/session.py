"""`FineTuneSession`: one coroutine for each endpoint.

What not every session needs, such as uploads and streams, is imported by the method that needs it: at the top it would
add a quarter to what importing the session takes over aiohttp.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, overload
from urllib.parse import urlsplit

import aiohttp

from aiofinetune import _observe, structuring
from aiofinetune._http.caller import Caller
from aiofinetune._http.transport import Timeout, Transport
from aiofinetune._jobs.claims import Claims
from aiofinetune._jobs.matching import has_metadata
from aiofinetune._jobs.recovery import Recovery
from aiofinetune._secret import Secret, scrubbed
from aiofinetune._urls import check_base_url, is_loopback
from aiofinetune._version import __version__
from aiofinetune.dialects._choice import named, of_host
from aiofinetune.dialects._dialect import Dialect, Follows
from aiofinetune.dialects._requests import HEADERS, STREAM_HEADERS
from aiofinetune.errors import ConfigurationError, NoResults, NotFound, RequestInvalid
from aiofinetune.models import (
    Deleted,
    File,
    FineTune,
    FineTuneEvent,
    FineTuneRequest,
    Model,
    Status,
)
from aiofinetune.retry import Retry

if TYPE_CHECKING:
    from aiofinetune._completions import ChatCompletion, Completion
    from aiofinetune._http.token import TokenSource
    from aiofinetune._http.upload_body import Progress
    from aiofinetune._http.upload_source import Source
    from aiofinetune._jobs.events import EventStream
    from aiofinetune._jobs.uploads import FileUploads
    from aiofinetune._jobs.waiting import Waiting
    from aiofinetune._other_models import Checkpoint, PriceEstimate
    from aiofinetune.data import Rules
    from aiofinetune.results import Results

_log = logging.getLogger("aiofinetune")

_MAX_ENDED: Final = 1000
"""The number of jobs of which a session remembers that their ends were logged."""

_USER_AGENT: Final = f"aiofinetune/{__version__}"


class FineTuneSession:
    """A session with one service that runs fine-tuning jobs.

    A session is an async context manager; `aclose` does the same as leaving the context. Any number of coroutines may
    share it, but only on one event loop, that of its first call. Each thread, `asyncio.run` and forked process needs a
    session of its own.

    Args:
        api_key: The service's key; by default the environment variable ``OPENAI_API_KEY``. Or a function, which may be
            a coroutine, that returns an access token (such as Azure's, of Entra). It is called again when the token has
            expired: at the time that a JWT names, or when the service refuses the token.
        base_url: The URL of the API, including its ``/v1``; by default ``OPENAI_BASE_URL``, or else that of the
            dialect. The reference's own, ``https://api.openai.com/v1``, retired fine-tunes on 2024-01-04.
        dialect: What the service says: a `Dialect`, or the name of one (``"fine-tunes"``, ``"jobs"``, ``"azure"``,
            ``"nebius"``, ``"together"``; the command ``aiofinetune services`` lists what each can). By default
            ``AIOFINETUNE_DIALECT``, or else that of the base URL's host if it is known, or else the reference,
            ``"fine-tunes"``.
        api_version: The ``api-version`` of Azure; by default ``OPENAI_API_VERSION``, or else none.
        organization: The organization to send with every call; by default ``OPENAI_ORG_ID``, or else none.
        timeout: How long to wait, in seconds, for each part of a call.
        retry: How often and how slowly to retry.
        http: An aiohttp session to use instead of one made at the first call and closed with this session. It is never
            closed here. Its own connection limit also applies to event streams. It may resend a request once by itself,
            unless it is a POST, in addition to `retry`.
        allow_plain_http: Whether the key may be sent over plain http to another machine.

    Raises:
        ConfigurationError: There is no key, the key or the organization cannot be sent in a header, `base_url` is
            missing, invalid or unsafe, there is no such dialect, the dialect does not take an `api_version`, or
            `timeout` or `retry` has the wrong type.

    In addition to the errors that it documents, every coroutine raises:
        RequestInvalid: The request is invalid; nothing was sent.
        APIError: The service answered with an error.
        TransportError: No complete reply was received, and retrying did not help or was not safe.
        ProtocolViolation: The reply does not match the API.
    """

    def __init__(
        self,
        api_key: str | TokenSource | None = None,
        *,
        base_url: str | None = None,
        dialect: Dialect | str | None = None,
        api_version: str | None = None,
        organization: str | None = None,
        timeout: Timeout = Timeout(),
        retry: Retry = Retry(),
        http: aiohttp.ClientSession | None = None,
        allow_plain_http: bool = False,
    ) -> None:
        if not callable(api_key):
            # The parameter itself is rebound: a traceback that shows local variables must not show the key.
            if not isinstance(api_key, str | None):
                # The value is not shown, as it may hold a key.
                raise ConfigurationError(f"api_key: expected a text or a function, got {type(api_key).__name__}")
            api_key = Secret(os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key)
            if not api_key:
                raise ConfigurationError("api_key: missing; pass api_key or set OPENAI_API_KEY")
            _check_header("api_key", api_key)
        self.dialect: Dialect
        self.dialect, base_url = find_service(dialect, base_url)
        self.base_url: str = check_base_url(base_url, allow_plain_http=allow_plain_http)
        query = _version_of(self.dialect, self.base_url, api_version)
        headers = _headers_of(self.dialect, None if callable(api_key) else api_key, organization)
        for name, value, kind in (("timeout", timeout, Timeout), ("retry", retry, Retry)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"{name}: expected a {kind.__name__}, got {value!r}")
        if not isinstance(http, aiohttp.ClientSession | None):
            raise ConfigurationError(f"http: expected an aiohttp.ClientSession, got {http!r}")
        secrets = [] if callable(api_key) else [api_key]
        token = None
        if callable(api_key):
            from aiofinetune._http.token import Token

            token = Token(api_key, secrets)
        transport = Transport(self.base_url, headers, timeout, http)
        self._caller = Caller(secrets, self.base_url, transport, retry, self.dialect, query, token)
        self._endpoints = self.dialect.endpoints
        self._ended: dict[str, None] = {}
        """The ids of the last jobs whose ends were logged, the oldest first."""
        self._claims = Claims()
        self._recovery = Recovery(self._caller, self._claims)

    def __repr__(self) -> str:
        name = "" if self.dialect.name == "fine-tunes" else f", dialect={self.dialect.name!r}"
        return f"FineTuneSession(base_url={self.base_url!r}{name})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def times_throttled(self) -> int:
        """The number of times that the service throttled this session (429)."""
        return self._caller.throttle.count

    @property
    def data_rules(self) -> Rules:
        """What the service takes as training data; at an address of this machine, what the embedded server takes."""
        return find_rules(self.dialect, self.base_url)

    async def aclose(self) -> None:
        """Close the connections, and the aiohttp session unless it was passed in.

        Raises:
            ConfigurationError: The connections belong to another event loop, which is still open.
        """
        await self._caller.transport.aclose()

    # Fine-tunes

    async def create_fine_tune(self, request: FineTuneRequest) -> FineTune:
        """Create a job once. The request is sent again only if it certainly made no job.

        A 2xx reply means that a job was made, even if the rest of the reply cannot be read. The job is then retrieved
        by the id that the reply names, or searched for in the service's list. If the reply is lost, the list is also
        searched, until ``Retry.grace`` is over, for a job that was made since then and belongs to no other call of this
        session. Only if the list proves that there is no such job is the create sent again, on a new connection. (If an
        aiohttp session was passed in, the search asks the service to close the connection that it used; the create may
        still use another connection of that session.)

        If a training file is still being processed, the call waits for it. If the call is cancelled after the request
        was sent, a note on the ``CancelledError`` says what is known about the job.

        Args:
            request: The parameters of the job.

        Raises:
            CreateUncertain: It is not known whether a job was made, or which one.
            FineTuneUnreadable: A job was made and its id is known, but the job cannot be read.
            QuotaExceeded: A budget or a daily allowance is used up.
            TooManyJobs: The service takes no more jobs until one ends.

        Source: ``POST /fine-tunes``.
        """
        job = await self._recovery.create(request)
        if _observe.has_watched:
            # A batch, which does not come here, logs its jobs with their labels.
            _log.info("created %s", job.id, extra={"job_id": job.id, "event": "created"})
        return job

    async def list_fine_tunes(self, *, metadata: Mapping[str, str] | None = None) -> tuple[FineTune, ...]:
        """List all jobs, without their events, in the service's order.

        Args:
            metadata: List only the jobs whose metadata has these texts by these names. Jobs that do not show them are
                left out here too, because some gateways ignore what was asked for.

        Raises:
            RequestInvalid: The dialect does not list jobs by metadata; nothing was sent.

        Source: ``GET /fine-tunes``; the ``metadata`` of ``GET /fine_tuning/jobs``.
        """
        query = self.dialect.query_of(metadata)
        jobs = await self._caller.list(self._endpoints.list_fine_tunes, query=query)
        return jobs if metadata is None else tuple(job for job in jobs if has_metadata(job, metadata))

    async def iter_fine_tunes(self, *, metadata: Mapping[str, str] | None = None) -> AsyncGenerator[FineTune]:
        """Iterate over the jobs in the service's order; where lists come in pages, each is asked for when needed.

        Args:
            metadata: As in `list_fine_tunes`.

        Raises:
            RequestInvalid: The dialect does not list jobs by metadata; nothing was sent.

        Source: ``GET /fine-tunes``; the ``metadata`` of ``GET /fine_tuning/jobs``.
        """
        query = self.dialect.query_of(metadata)
        async with aclosing(self._caller.pages(self._endpoints.list_fine_tunes, query=query)) as pages:
            async for page, _reply in pages:
                for job in page.data:
                    if metadata is None or has_metadata(job, metadata):
                        yield job

    async def retrieve_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Retrieve a job, at the reference with its events so far.

        Where the service names the tuned model only in the job's checkpoints, that of the last one is looked up.

        Source: ``GET /fine-tunes/{id}``.
        """
        job = await self._caller.call(self._endpoints.retrieve_fine_tune, fine_tune_id)
        is_missing = job.status == Status.SUCCEEDED and job.fine_tuned_model is None
        if not is_missing or not self.dialect.model_in_checkpoints:
            return job
        from aiofinetune._jobs.checkpoints import with_model

        try:
            return with_model(job, await self.list_checkpoints(job.id))
        except NotFound:
            # A job without checkpoints has no model that could be named.
            return job

    async def cancel_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Cancel a job and return it. A job that is already cancelled is returned unchanged.

        Source: ``POST /fine-tunes/{id}/cancel``.
        """
        from aiofinetune._jobs.changes import change, is_cancelled

        endpoint = self._endpoints.cancel_fine_tune
        return await change(self._caller, endpoint, fine_tune_id, self.retrieve_fine_tune, is_cancelled)

    async def pause_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Pause a job and return it; it counts as pending. A job that is already paused is returned unchanged.

        Raises:
            RequestInvalid: The dialect does not have this; nothing was sent.

        Source: ``POST /fine_tuning/jobs/{id}/pause`` (the reference has none).
        """
        from aiofinetune._jobs.changes import change, is_paused

        endpoint = self.dialect.offered(self._endpoints.pause_fine_tune, "pause_fine_tune")
        return await change(self._caller, endpoint, fine_tune_id, self.retrieve_fine_tune, is_paused)

    async def resume_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Resume a paused job and return it. A job that is not paused, and has not ended, is returned unchanged.

        Raises:
            RequestInvalid: The dialect does not have this; nothing was sent.

        Source: ``POST /fine_tuning/jobs/{id}/resume`` (the reference has none).
        """
        from aiofinetune._jobs.changes import change, is_resumed

        endpoint = self.dialect.offered(self._endpoints.resume_fine_tune, "resume_fine_tune")
        return await change(self._caller, endpoint, fine_tune_id, self.retrieve_fine_tune, is_resumed)

    async def delete_fine_tune(self, fine_tune_id: str) -> Deleted:
        """Delete a job, and what the service keeps of it.

        Raises:
            RequestInvalid: The dialect does not have this; nothing was sent.

        Source: ``DELETE /fine-tunes/{id}`` of Together (the reference has none).
        """
        endpoint = self.dialect.offered(self._endpoints.delete_fine_tune, "delete_fine_tune")
        return await self._caller.delete(endpoint, fine_tune_id)

    async def estimate_price(self, request: FineTuneRequest) -> PriceEstimate:
        """Ask what a job would cost, without creating it.

        Args:
            request: The parameters of the job. Those that do not decide the price are not sent.

        Raises:
            RequestInvalid: The dialect does not have this; nothing was sent.

        Source: ``POST /fine-tunes/estimate-price`` of Together (the reference has none).
        """
        endpoint = self.dialect.offered(self._endpoints.estimate_price, "estimate_price")
        body = self.dialect.body_of(request)
        asked = {name: body[name] for name in self.dialect.priced if name in body}
        return await self._caller.call(endpoint, body=structuring.write_request(asked))

    async def list_checkpoints(self, fine_tune_id: str) -> tuple[Checkpoint, ...]:
        """List the models that a job has saved on its way, in the service's order.

        Raises:
            RequestInvalid: The dialect does not have this; nothing was sent.

        Source: ``GET /fine_tuning/jobs/{id}/checkpoints`` (the reference has none).
        """
        endpoint = self.dialect.offered(self._endpoints.list_checkpoints, "list_checkpoints", "retrieve_fine_tune")
        return await self._caller.list(endpoint, fine_tune_id)

    async def list_fine_tune_events(self, fine_tune_id: str) -> tuple[FineTuneEvent, ...]:
        """List a job's events so far, oldest first.

        Source: ``GET /fine-tunes/{id}/events``.
        """
        events = await self._caller.list(self._endpoints.list_fine_tune_events, fine_tune_id)
        if self.dialect.follows is not Follows.CURSOR:
            return events
        from aiofinetune._jobs.ordering import is_newest_first, oldest_first

        newest_first = is_newest_first(events, self.dialect.newest_first)
        return tuple(oldest_first(events, newest_first=newest_first))

    def stream_fine_tune_events(self, fine_tune_id: str) -> EventStream:
        """Return a stream of a job's events, from the first to the last, each as it happens; see `EventStream`.

        Source: ``GET /fine-tunes/{id}/events?stream=true``.
        """
        endpoint = self._endpoints.stream_fine_tune_events
        if endpoint is None and self.dialect.follows is Follows.LIST:
            from aiofinetune._jobs.listed import ListedEvents

            return ListedEvents(self._caller, fine_tune_id)
        if endpoint is None:
            from aiofinetune._jobs.polling import PolledEvents

            return PolledEvents(self._caller, fine_tune_id)
        from aiofinetune._jobs.stream import SentEvents

        request = self._caller.build(endpoint, fine_tune_id, headers=STREAM_HEADERS)
        return SentEvents(self._caller.connect, request, fine_tune_id, self._caller.policy, self._caller.secrets)

    async def wait(
        self,
        fine_tune_id: str,
        timeout: float | None = None,  # noqa: ASYNC109  # simpler for most callers than asyncio.timeout()
        *,
        on_event: Callable[[FineTuneEvent], object] | None = None,
    ) -> FineTune:
        """Wait until a job ends, and return it.

        This follows the job's events and also retrieves the job at intervals: every minute, or more often if the
        service does not stream events. Only `retrieve_fine_tune` decides whether the job has ended. Outages shorter
        than ``Retry.deadline`` do not end the wait. A status that the reference does not name does not end it either;
        it is logged as a warning.

        Args:
            fine_tune_id: The id of the job.
            timeout: The number of seconds to wait; None waits for as long as the job takes.
            on_event: Called on the event loop with each of the job's events, as long as the service streams them.

        Raises:
            FineTuneFailed: The job failed; the error carries the job and its last events.
            FineTuneCancelled: The job was cancelled; the error carries the job and its last events.
            WaitTimeout: The job did not end in time; the message gives its last known status.
        """
        return await self._waiting(fine_tune_id, on_event, self._log_end).wait(timeout)

    def _waiting(
        self,
        fine_tune_id: str,
        on_event: Callable[[FineTuneEvent], object] | None,
        on_end: Callable[[FineTune], object] | None = None,
    ) -> Waiting:
        """Return a wait for a job's end; a batch, which logs the ends of its jobs itself, passes no `on_end`."""
        from aiofinetune._jobs.waiting import Waiting

        calls = (self.retrieve_fine_tune, self.stream_fine_tune_events)
        return Waiting(fine_tune_id, *calls, self._caller.policy, on_event, on_end)

    def _log_end(self, job: FineTune) -> None:
        """Log that a job has ended, once in a session."""
        if job.id not in self._ended:
            self._ended[job.id] = None
            if len(self._ended) > _MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            extra = {"job_id": job.id, "status": job.status, "event": "ended"}
            _log.info("%s ended: %s", job.id, job.status, extra=extra)

    async def results(self, fine_tune: FineTune) -> Results:
        """Download and read the results file of a job that succeeded, as a list of rows; see `Results`.

        Where the service has no such files, these are the figures that it has recorded so far, perhaps none.

        Args:
            fine_tune: The job. If it holds no results file, it is retrieved again first.

        Raises:
            NoResults: The job has no results file.
        """
        if not isinstance(fine_tune, FineTune):
            raise RequestInvalid("fine_tune", f"expected a FineTune, got {type(fine_tune).__name__}")
        if (endpoint := self._endpoints.list_metrics) is not None:
            from aiofinetune.results._rows import read_metrics

            return read_metrics((await self._caller.call(endpoint, fine_tune.id)).rows)
        if not fine_tune.result_files:
            fine_tune = await self.retrieve_fine_tune(fine_tune.id)
        if not fine_tune.result_files:
            raise NoResults(fine_tune.id, fine_tune.status)
        from aiofinetune.results import read_results

        content = scrubbed(await self.download_file(fine_tune.result_files[0].id), *self._caller.secrets)
        return await asyncio.to_thread(read_results, content)

    # Models

    async def list_models(self) -> tuple[Model, ...]:
        """List the models that the key may use.

        Source: ``GET /models``.
        """
        return await self._caller.list(self._endpoints.list_models)

    async def retrieve_model(self, model: str) -> Model:
        """Retrieve a model.

        Source: ``GET /models/{model}``.
        """
        return await self._caller.call(self._endpoints.retrieve_model, model)

    async def delete_model(self, model: str) -> Deleted:
        """Delete a fine-tuned model.

        Source: ``DELETE /models/{model}``.
        """
        return await self._caller.delete(self._endpoints.delete_model, model)

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
        """Have a model complete a prompt, or several prompts with one choice for each.

        The service chooses the value of each argument that is None.

        Args:
            model: A base model or a fine-tuned model.
            prompt: The text to complete. It should end the way that the training prompts end.
            max_tokens: The maximum number of tokens in the completion.
            temperature: 0 always takes the most likely token; higher values are more varied.
            stop: Text at which the completion ends. It is not part of the returned text.
            logprobs: The number of most likely tokens to return log probabilities for.
            seed: The same seed gives the same completion, if the service supports it.

        Source: ``POST /completions``.
        """
        from aiofinetune.dialects._completions import CREATE_COMPLETION, encode

        sampling = {"max_tokens": max_tokens, "temperature": temperature, "stop": stop, "logprobs": logprobs}
        return await self._caller.call(CREATE_COMPLETION, body=encode(model, prompt, {**sampling, "seed": seed}))

    async def create_chat_completion(
        self,
        model: str,
        messages: Sequence[Mapping[str, object]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> ChatCompletion:
        """Have a chat model answer a conversation. The service chooses the value of each argument that is None.

        Args:
            model: A base model or a fine-tuned model.
            messages: The conversation, each message with its role and content.
            max_tokens: The maximum number of tokens in the answer.
            temperature: See `create_completion`.
            stop: See `create_completion`.
            seed: See `create_completion`.

        Source: ``POST /chat/completions``.
        """
        from aiofinetune.dialects._completions import CREATE_CHAT_COMPLETION, encode_chat

        sampling = {"max_tokens": max_tokens, "temperature": temperature, "stop": stop, "seed": seed}
        return await self._caller.call(CREATE_CHAT_COMPLETION, body=encode_chat(model, messages, sampling))

    # Files

    @functools.cached_property
    def _uploads(self) -> FileUploads:
        from aiofinetune._jobs.uploads import FileUploads

        return FileUploads(self._caller, self._claims)

    async def upload_file(
        self,
        source: Source,
        *,
        purpose: str = "fine-tune",
        filename: str | None = None,
        progress: Progress | None = None,
        check: bool | Rules = False,
    ) -> File:
        """Upload a file in constant memory, and return the service's description of it.

        A file above the size that the service takes at once is sent in parts, each again if it fails (OpenAI, Azure,
        Together). Where the service names a URL to send the bytes to (Together), they go there without the key, over
        https and into no private network that the service is not in itself; a file of equal content that the service
        has already is used; and the call returns once the service has read the file.

        Args:
            source: A path, bytes, a file opened in binary mode or an object with the same `read` (which may be a
                coroutine, like that of an ``UploadFile``), or an async iterator of bytes. A source that is not seekable
                or that is awaited can be read only once, so a failed upload of it is not retried. Pass a pipe as an
                iterator: a thread that waits for the other end of a pipe cannot be cancelled, and would keep the
                program from exiting.
            purpose: ``"fine-tune"`` for training and validation data.
            filename: The name at the service; by default the name of the file, or ``"data.jsonl"``.
            progress: Called on the event loop with the number of bytes sent so far and the total; the total is None if
                it is unknown.
            check: Whether to check the training data first, by `data_rules` or by other rules. The source must be a
                path, bytes or a seekable file.

        Raises:
            DatasetError: The service would refuse the data, and nothing was sent; it names the file, the line and what
                to do. Or the service has read the file and cannot use it; it holds the service's report.
            LocalFileError: The file cannot be read.

        Source: ``POST /files``, or ``POST /uploads`` and its parts.
        """
        from aiofinetune._http.upload_source import opened_source

        async with opened_source(source) as content:
            if check is not False:
                from aiofinetune._http.upload_check import check_content

                named = os.fsdecode(source) if isinstance(source, str | os.PathLike) else filename or content.name
                await check_content(content, named or "data.jsonl", self.data_rules if check is True else check)
            return await self._uploads.upload(content, filename or content.name or "data.jsonl", purpose, progress)

    async def list_files(self, purpose: str | None = None) -> tuple[File, ...]:
        """List the files, or only those with one purpose.

        Source: ``GET /files``.
        """
        query = {"purpose": purpose} if purpose is not None and self.dialect.filters_files else None
        files = await self._caller.list(self._endpoints.list_files, query=query)
        if purpose is None or self.dialect.filters_files:
            return files
        return tuple(file for file in files if file.purpose == purpose)

    async def retrieve_file(self, file_id: str) -> File:
        """Retrieve the service's description of a file.

        Source: ``GET /files/{id}``.
        """
        return await self._caller.call(self._endpoints.retrieve_file, file_id)

    @overload
    async def download_file(self, file_id: str) -> bytes: ...

    @overload
    async def download_file(self, file_id: str, path: str | os.PathLike[str]) -> Path: ...

    async def download_file(self, file_id: str, path: str | os.PathLike[str] | None = None) -> bytes | Path:
        """Download a file's content, and return it as bytes or write it to a path in constant memory.

        Args:
            file_id: The id of the file.
            path: Where to write the content. The file appears there only once it is complete, and replaces an existing
                file. If None, the content is returned as bytes.

        Returns:
            The content, or the path if one was passed.

        Raises:
            LocalFileError: The file cannot be written.

        Source: ``GET /files/{id}/content``.
        """
        from aiofinetune._http.download import download

        if path is None:
            return await download(self._caller, file_id, None)
        await download(self._caller, file_id, Path(path))
        return Path(path)

    async def delete_file(self, file_id: str) -> Deleted:
        """Delete a file.

        Source: ``DELETE /files/{id}``.
        """
        return await self._caller.delete(self._endpoints.delete_file, file_id)


def find_rules(dialect: Dialect, base_url: str) -> Rules:
    """Return what a service takes as training data; see `FineTuneSession.data_rules`."""
    if is_loopback(urlsplit(base_url).hostname or ""):
        from aiofinetune.data import EMBEDDED

        return EMBEDDED
    return dialect.rules()


def find_service(dialect: Dialect | str | None, base_url: str | None) -> tuple[Dialect, str]:
    """Return the dialect and the base URL of a session, from its arguments and the environment.

    Raises:
        ConfigurationError: There is no such dialect, or it has no base URL of its own and none was given.
    """
    _check_text("base_url", base_url)
    chosen = dialect if dialect is not None else os.environ.get("AIOFINETUNE_DIALECT") or None
    if base_url is None:
        base_url = os.environ.get("OPENAI_BASE_URL") or None
    if chosen is None:
        chosen = of_host(base_url or "")
    chosen = named(chosen)
    base_url = chosen.base_url if base_url is None else base_url
    if base_url is None:
        words = f"missing; the dialect {chosen.name!r} has no URL of its own: pass base_url or set OPENAI_BASE_URL"
        raise ConfigurationError(f"base_url: {words}")
    return chosen, base_url


def _headers_of(dialect: Dialect, key: Secret | None, organization: str | None) -> dict[str, str]:
    """Return the headers of every request: also the key, if there is one, and the organization.

    Raises:
        ConfigurationError: The organization cannot be sent in a header.
    """
    headers = {**HEADERS, "User-Agent": _USER_AGENT}
    if key is not None:
        headers[dialect.key_header] = Secret(f"Bearer {key}") if dialect.key_header == "Authorization" else key
    _check_text("organization", organization)
    if organization is None:
        organization = os.environ.get("OPENAI_ORG_ID")
    if organization:
        _check_header("organization", organization)
        headers["OpenAI-Organization"] = organization
    return headers


def _version_of(dialect: Dialect, base_url: str, api_version: str | None) -> dict[str, str]:
    """Return the parameter that each URL of a session has, if it has one.

    Raises:
        ConfigurationError: The dialect does not take it, or this base URL needs it.
    """
    _check_text("api_version", api_version)
    if api_version is not None and not dialect.takes_api_version:
        raise ConfigurationError(f"api_version: the dialect {dialect.name!r} does not take it")
    if not dialect.takes_api_version:
        return {}
    version = os.environ.get("OPENAI_API_VERSION") if api_version is None else api_version
    if not version and base_url.endswith("/openai"):
        raise ConfigurationError(
            f"api_version: {base_url!r} needs one; pass api_version or set OPENAI_API_VERSION, or add /v1 to base_url"
        )
    return {"api-version": version} if version else {}


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str | None):
        raise ConfigurationError(f"{name}: expected a text, got {value!r}")


def _check_header(name: str, value: str) -> None:
    """Refuse a value that cannot be sent in a header (RFC 9110, section 5.5). The error does not show the value."""
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise ConfigurationError(
            f"{name}: starts or ends with a space, or contains a character that is not allowed in a header"
        )
