"""The session: one coroutine for each endpoint of the fine-tunes API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, overload

import aiohttp

from aiofinetune import structuring
from aiofinetune._http.caller import Caller
from aiofinetune._http.download import download
from aiofinetune._http.transport import Timeout, Transport
from aiofinetune._http.upload_body import Progress, Source, opened_source
from aiofinetune._jobs.recovery import Recovery
from aiofinetune._jobs.stream import EventStream
from aiofinetune._jobs.waiting import Waiting
from aiofinetune._secret import Secret, scrubbed
from aiofinetune._urls import check_base_url
from aiofinetune._version import __version__
from aiofinetune.dialects import _fine_tunes as dialect
from aiofinetune.dialects._requests import build
from aiofinetune.errors import BadRequest, ConfigurationError, Conflict, NotFound, ProtocolViolation
from aiofinetune.models import Deleted, File, FineTune, FineTuneEvent, FineTuneRequest, Model, Status
from aiofinetune.retry import Retry

if TYPE_CHECKING:
    from aiofinetune._completions import Completion
    from aiofinetune.results import ResultRow

_USER_AGENT: Final = f"aiofinetune/{__version__}"


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
        _check_header("api_key", api_key)
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or dialect.DEFAULT_BASE_URL
        self.base_url: str = check_base_url(base_url, allow_plain_http=allow_plain_http)
        organization = organization or os.environ.get("OPENAI_ORG_ID")
        headers = {**dialect.HEADERS, "Authorization": Secret(f"Bearer {api_key}"), "User-Agent": _USER_AGENT}
        if organization:
            _check_header("organization", organization)
            headers["OpenAI-Organization"] = organization
        for name, value, kind in (("timeout", timeout, Timeout), ("retry", retry, Retry)):
            if not isinstance(value, kind):
                raise ConfigurationError(f"{name}: expected a {kind.__name__}, got {value!r}")
        self._caller = Caller(api_key, self.base_url, Transport(self.base_url, headers, timeout, http), retry)
        self._recovery = Recovery(self._caller)

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
        return self._caller.throttle.count

    async def aclose(self) -> None:
        """Close the connections, and the aiohttp session if it was made here.

        Raises:
            ConfigurationError: They belong to another event loop, which is not closed.
        """
        await self._caller.transport.aclose()

    # Fine-tunes

    async def create_fine_tune(self, request: FineTuneRequest) -> FineTune:
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

        Raises:
            CreateUncertain: Whether a job was made, or which, cannot be told.
            FineTuneUnreadable: The job was made; its id is known, and nothing else of it can be read.
            QuotaExceeded: The service takes no more jobs today, or for this money.
            TooManyJobs: The service takes no more jobs until one is over.

        Source: ``POST /fine-tunes``.
        """
        return await self._recovery.create(request)

    async def list_fine_tunes(self) -> tuple[FineTune, ...]:
        """List the jobs, without their events.

        Source: ``GET /fine-tunes``.
        """
        return await self._caller.list(dialect.LIST_FINE_TUNES)

    async def retrieve_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Give a job as it stands, with its events so far.

        Source: ``GET /fine-tunes/{id}``.
        """
        return await self._caller.call(dialect.RETRIEVE_FINE_TUNE, fine_tune_id)

    async def cancel_fine_tune(self, fine_tune_id: str) -> FineTune:
        """Cancel a job; give it as it stands then. One that is cancelled already is given as it is.

        Source: ``POST /fine-tunes/{id}/cancel``.
        """
        try:
            return await self._caller.call(dialect.CANCEL_FINE_TUNE, fine_tune_id)
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
        return await self._caller.list(dialect.LIST_FINE_TUNE_EVENTS, fine_tune_id)

    def stream_fine_tune_events(self, fine_tune_id: str) -> EventStream:
        """Give a job's events from its first to its last, each as it happens; see `EventStream`.

        Source: ``GET /fine-tunes/{id}/events?stream=true``.
        """
        request = build(dialect.STREAM_FINE_TUNE_EVENTS, self.base_url, fine_tune_id, headers=dialect.STREAM_HEADERS)
        return EventStream(self._caller.connect, request, self._caller.policy, self._caller.api_key)

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
        waiting = Waiting(fine_tune_id, self.retrieve_fine_tune, self.stream_fine_tune_events, self._caller.policy)
        return await waiting.wait(timeout)

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

        content = scrubbed(await self.download_file(fine_tune.result_files[0].id), self._caller.api_key)
        return await asyncio.to_thread(read_results, content)

    # Models

    async def list_models(self) -> tuple[Model, ...]:
        """List the models that the key may use.

        Source: ``GET /models``.
        """
        return await self._caller.list(dialect.LIST_MODELS)

    async def retrieve_model(self, model: str) -> Model:
        """Give a model.

        Source: ``GET /models/{model}``.
        """
        return await self._caller.call(dialect.RETRIEVE_MODEL, model)

    async def delete_model(self, model: str) -> Deleted:
        """Delete a fine-tuned model.

        Source: ``DELETE /models/{model}``.
        """
        return await self._caller.delete(dialect.DELETE_MODEL, model)

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
        from aiofinetune.dialects._completions import CREATE_COMPLETION  # noqa: PLC0415  # an eighth of the import, likewise

        return await self._caller.call(CREATE_COMPLETION, body=body)

    # Files

    async def upload_file(
        self,
        source: Source,
        *,
        purpose: str = "fine-tune",
        filename: str | None = None,
        progress: Progress | None = None,
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
        async with opened_source(source) as content:
            return await self._recovery.upload(content, filename or content.name or "data.jsonl", purpose, progress)

    async def list_files(self, purpose: str | None = None) -> tuple[File, ...]:
        """List the files, or those of one purpose.

        Source: ``GET /files``.
        """
        query = None if purpose is None else {"purpose": purpose}
        return await self._caller.list(dialect.LIST_FILES, query=query)

    async def retrieve_file(self, file_id: str) -> File:
        """Give what the service knows of a file.

        Source: ``GET /files/{id}``.
        """
        return await self._caller.call(dialect.RETRIEVE_FILE, file_id)

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
        if path is None:
            return await download(self._caller, file_id, None)
        await download(self._caller, file_id, Path(path))
        return Path(path)

    async def delete_file(self, file_id: str) -> Deleted:
        """Delete a file.

        Source: ``DELETE /files/{id}``.
        """
        return await self._caller.delete(dialect.DELETE_FILE, file_id)


def _check_header(name: str, value: str) -> None:
    """Refuse a value that cannot stand in a header (RFC 9110, section 5.5); never show it."""
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise ConfigurationError(f"{name}: holds a space at an end, or a character that no header may hold")
