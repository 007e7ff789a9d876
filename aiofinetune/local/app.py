"""The routes of the embedded server: what each endpoint reads, what it answers, and how it says no.

Every answer that is an error is the API's envelope, with all four keys, whatever a client sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from aiohttp import BodyPartReader, web

from aiofinetune import sse, structuring
from aiofinetune.errors import RequestInvalid
from aiofinetune.local.completions import Answer, Completer, read_completion_request
from aiofinetune.local.connections import connection_of, new_request_id
from aiofinetune.local.jobs import Jobs
from aiofinetune.local.shortage import shortage_of
from aiofinetune.local.store import PURPOSE, Incoming, Refused, Store
from aiofinetune.models import Deleted, FineTuneRequest

if TYPE_CHECKING:
    from aiofinetune.local.sampling import Written

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MOST_FILE_BYTES: Final = 1 << 30
_MOST_JSON_BYTES: Final = 1 << 20
_MOST_FORM_BYTES: Final = 64 << 10
"""What a form may take beside its file."""

_BODY_TIMEOUT: Final = 60.0
"""Seconds that a client has to send a body of JSON, or the next piece of a file."""

_GRACE: Final = 1.0
"""Seconds that requests under way have to finish once the server is closed."""

_PIECE_BYTES: Final = 256 << 10
"""How much of an upload or a download is in memory at a time."""

_KEEP_ALIVE: Final = 15.0
"""Seconds of silence after which an event stream says that it is still there, so that no proxy cuts it."""

_MOST_N_EPOCHS: Final = 50
"""Where n_epochs is given inside hyperparameters (reference: create fine-tune)."""

_log = logging.getLogger(__name__)


class Api:
    """The API over a store and its jobs.

    Args:
        store: What the server remembers.
        jobs: The queue that trains the store's jobs.
        api_key: What clients must send as ``Authorization: Bearer KEY``.
    """

    def __init__(self, store: Store, jobs: Jobs, api_key: str) -> None:
        self._store = store
        self._jobs = jobs
        self._authorization = f"Bearer {api_key}".encode()
        self._completer = Completer()
        self._requests: set[asyncio.Task[object]] = set()
        self._endless: set[asyncio.Task[object]] = set()

    def application(self) -> web.Application:
        """Return the web application that answers for this API."""
        app = web.Application(middlewares=[self._answer], client_max_size=_MOST_JSON_BYTES)
        app.on_response_prepare.append(_name_request)
        app.on_shutdown.append(self._end_requests)
        for method, path, handler in (
            ("POST", "/fine-tunes", self._create_fine_tune),
            ("GET", "/fine-tunes", self._list_fine_tunes),
            ("GET", "/fine-tunes/{id}", self._retrieve_fine_tune),
            ("DELETE", "/fine-tunes/{id}", self._delete_fine_tune),
            ("POST", "/fine-tunes/{id}/cancel", self._cancel_fine_tune),
            ("GET", "/fine-tunes/{id}/events", self._list_events),
            ("POST", "/files", self._upload_file),
            ("GET", "/files", self._list_files),
            ("GET", "/files/{id}", self._retrieve_file),
            ("DELETE", "/files/{id}", self._delete_file),
            ("GET", "/files/{id}/content", self._download_file),
            ("GET", "/models", self._list_models),
            ("GET", "/models/{id}", self._retrieve_model),
            ("DELETE", "/models/{id}", self._delete_model),
            ("POST", "/completions", self._create_completion),
        ):
            app.router.add_route(method, f"/v1{path}", handler, expect_handler=_expect)
        return app

    async def close(self) -> None:
        """Wait until every request is answered or given up; none may be coming in any more."""
        if self._requests:
            await asyncio.wait(self._requests)
        self._completer.close()

    # Around every request

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with _member(self._requests), connection_of(request.transport):
            response = await self._respond(request, handler)
            # Sent in here: the connection is busy for so long, and the server's end waits for it.
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await response.write_eof()
            return response

    async def _respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._authorize(request)
            return await handler(request)
        except Refused as refused:
            return _error(refused.status, refused.message, refused.param, refused.code, refused.headers)
        except RequestInvalid as invalid:
            return _error(400, str(invalid), invalid.field)
        except web.HTTPException as error:
            allowed = error.headers.get("Allow")
            message = f"{error.reason}: {request.method} {request.path}" + (f"; try {allowed}" if allowed else "")
            return _error(error.status, message, headers={"Allow": allowed} if allowed else {})
        except web.RequestPayloadError as error:
            return _error(400, f"the body cannot be read: {error}")
        except Exception as error:  # noqa: BLE001  # Whatever it is, the client gets an envelope.
            if shortage := shortage_of(error):
                _log.warning("%s %s failed: %s", request.method, request.path, shortage)
                return _error(shortage.status, f"the server's machine is short of something: {shortage}")
            _log.exception("%s %s failed", request.method, request.path)
            return _error(500, "The server failed to answer; its log says more")

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            raise Refused(
                401,
                f"{'Wrong' if given else 'No'} API key; send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not request.raw_path.isascii():  # aiohttp's parser in C refuses this itself, the one in Python does not.
            raise Refused(400, "the URL holds bytes that must be percent-encoded (RFC 3986, section 2)")

    async def _end_requests(self, _app: web.Application) -> None:
        # Streams would go on for as long as their jobs do. Cancelled, they break off without a proper end, so that no
        # client takes this for the end of the job. Nobody waits until completions are whole either.
        for request in self._endless:
            request.cancel()
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=_GRACE)
            for request in late:
                request.cancel()

    # Fine-tunes

    async def _create_fine_tune(self, request: web.Request) -> web.StreamResponse:
        value = _with_n_epochs(await _json_object(request))
        return _json(
            structuring.write_reply(await self._store.create_job(structuring.read_request(value, FineTuneRequest)))
        )

    async def _list_fine_tunes(self, _request: web.Request) -> web.StreamResponse:
        jobs = await self._store.jobs()
        return await self._listing(jobs, without="events")

    async def _retrieve_fine_tune(self, request: web.Request) -> web.StreamResponse:
        return _json(structuring.write_reply(await self._store.job(request.match_info["id"])))

    async def _delete_fine_tune(self, request: web.Request) -> web.StreamResponse:
        job = await self._store.job(request.match_info["id"])
        raise Refused(
            405,
            f"fine-tune {job.id} stays in the list: the API deletes no jobs. Cancel it, or delete its model",
            headers={"Allow": "GET"},
        )

    async def _cancel_fine_tune(self, request: web.Request) -> web.StreamResponse:
        return _json(structuring.write_reply(await self._store.cancel_job(request.match_info["id"])))

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        stream = request.query.get("stream", "false").lower()
        if stream not in ("true", "false"):
            raise Refused(400, "stream: expected true or false", param="stream")
        job_id = request.match_info["id"]
        events, _ = await self._store.events(job_id)
        return await (self._stream_events(request, job_id) if stream == "true" else self._listing(events))

    async def _stream_events(self, request: web.Request, job_id: str) -> web.StreamResponse:
        with _member(self._endless):
            async with _event_stream(request) as response:
                feed, position, is_over = self._jobs.feed(job_id), 0, False
                while not is_over:
                    try:
                        async with asyncio.timeout(_KEEP_ALIVE):
                            events, is_over = await feed.wait(position)
                    except TimeoutError:
                        await response.write(b": keep-alive\n\n")
                    else:
                        position += len(events)
                        await response.write(b"".join(events))
                await response.write(sse.encode(b"[DONE]"))
        return response

    # Files

    async def _upload_file(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "multipart/form-data":
            raise Refused(400, "expected a body of the type multipart/form-data, with purpose and file")
        if (request.content_length or 0) > MOST_FILE_BYTES + _MOST_FORM_BYTES:
            raise _too_large()
        async with self._store.receive_file() as incoming:
            purpose, filename = await self._read_form(request, incoming)
            if purpose != PURPOSE:
                raise Refused(400, f"purpose: expected '{PURPOSE}', got {purpose!r}", param="purpose")
            file = await self._store.keep_file(incoming, filename, purpose)
        return _json(structuring.write_reply(file))

    async def _read_form(self, request: web.Request, incoming: Incoming) -> tuple[str, str]:
        """Read purpose and file, in whichever order; return the purpose and the file's name."""
        purpose = filename = None
        reader = await _parsed(request.multipart())
        while (part := await _parsed(reader.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise Refused(400, "the body is not a valid form: a part is multipart itself")
            if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
                raise Refused(400, "the body is not a valid form: Content-Transfer-Encoding (RFC 7578, section 4.7)")
            if part.name == "purpose" and purpose is None:
                purpose = await self._read_purpose(part)
            elif part.name == "file" and filename is None:
                filename = (part.filename or "file").encode(errors="replace").decode()
                await self._read_file(part, incoming)
            else:
                name = ascii(part.name)[:80]
                raise Refused(400, f"expected one part 'purpose' and one part 'file', got {name}", param=name)
        for param, value in (("purpose", purpose), ("file", filename)):
            if value is None:
                raise Refused(400, f"{param}: is required", param=param)
        return purpose or "", filename or ""

    async def _read_purpose(self, part: BodyPartReader) -> str:
        text = b""
        while not part.at_eof():
            text += await _parsed(part.read_chunk(_PIECE_BYTES))
            if len(text) > len(PURPOSE) * 10:
                raise Refused(400, f"purpose: expected '{PURPOSE}'", param="purpose")
        return text.decode(errors="replace")

    async def _read_file(self, part: BodyPartReader, incoming: Incoming) -> None:
        while not part.at_eof():
            piece = await _parsed(part.read_chunk(_PIECE_BYTES))
            if incoming.size + len(piece) > MOST_FILE_BYTES:
                raise _too_large()
            await self._store.in_thread(functools.partial(incoming.write, bytes(piece)))

    async def _list_files(self, request: web.Request) -> web.StreamResponse:
        return await self._listing(await self._store.files(request.query.get("purpose")))

    async def _retrieve_file(self, request: web.Request) -> web.StreamResponse:
        return _json(structuring.write_reply(await self._store.file(request.match_info["id"])))

    async def _delete_file(self, request: web.Request) -> web.StreamResponse:
        file_id = request.match_info["id"]
        await self._store.delete_file(file_id)
        return _json(structuring.write_reply(Deleted(file_id, True, "file")))

    async def _download_file(self, request: web.Request) -> web.StreamResponse:
        file = await self._store.file(request.match_info["id"])
        size, name = file.bytes or 0, file.filename or file.id
        wanted = _range(request, size)
        # Both forms of the name: RFC 6266, section 5.
        plain_name, encoded_name = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII), quote(name)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"attachment; filename=\"{plain_name}\"; filename*=UTF-8''{encoded_name}",
            "Content-Length": str(len(wanted)),
            "Accept-Ranges": "bytes",
        }
        if len(wanted) < size:
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
        response = web.StreamResponse(status=206 if len(wanted) < size else 200, headers=headers)
        async with self._store.reading(file.id) as content:
            with _breaking_off(request, response):
                await response.prepare(request)
                for start in range(wanted.start, wanted.stop, _PIECE_BYTES):
                    length = min(_PIECE_BYTES, wanted.stop - start)
                    await response.write(
                        await self._store.in_thread(functools.partial(os.pread, content.fileno(), length, start))
                    )
        return response

    # Models

    async def _list_models(self, _request: web.Request) -> web.StreamResponse:
        return await self._listing(await self._store.models())

    async def _retrieve_model(self, request: web.Request) -> web.StreamResponse:
        return _json(structuring.write_reply(await self._store.model(request.match_info["id"])))

    async def _delete_model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        await self._store.delete_model(name)
        return _json(structuring.write_reply(Deleted(name, True, "model")))

    async def _listing(self, items: Iterable[object], without: str | None = None) -> web.StreamResponse:
        """Answer with a list; a long one takes long to write, which the event loop should not wait for."""

        def write() -> bytes:
            data = [
                {key: value for key, value in structuring.write_reply(item).items() if key != without} for item in items
            ]
            return structuring.dumps({"object": "list", "data": data})

        return web.Response(body=await self._store.in_thread(write), content_type="application/json")

    # Completions

    async def _create_completion(self, request: web.Request) -> web.StreamResponse:
        asked = read_completion_request(await _json_object(request))
        weights = await self._store.weights_path(asked.model)
        with _member(self._endless):
            async with contextlib.aclosing(self._completer.write(asked, weights)) as written:
                answer = Answer(asked)
                if asked.stream:
                    return await self._stream_completion(request, answer, written)
                pieces = [piece async for some in written for piece in some]
        body = await self._store.in_thread(lambda: structuring.dumps(answer.whole(pieces)))
        return web.Response(body=body, content_type="application/json")

    async def _stream_completion(
        self, request: web.Request, answer: Answer, written: AsyncIterator[list[tuple[int, Written]]]
    ) -> web.StreamResponse:
        options, tokens = answer.asked.stream_options, 0
        async with _event_stream(request) as response:
            async for pieces in written:
                tokens += sum(len(piece.tokens) for _, piece in pieces)
                await response.write(b"".join(_event(answer.part(index, piece)) for index, piece in pieces))
            if options and options.include_usage:
                usage = await self._store.in_thread(lambda: answer.last_part(tokens))
                await response.write(_event(usage))
            await response.write(sse.encode(b"[DONE]"))
        return response


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Ask for the body that a client holds back (RFC 9110, section 10.1.1); aiohttp's own refusal is no envelope."""
    if request.headers["Expect"].lower() != "100-continue":
        return _error(417, "Expect: only 100-continue is known")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


async def _name_request(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = new_request_id()


@contextlib.asynccontextmanager
async def _event_stream(request: web.Request) -> AsyncIterator[web.StreamResponse]:
    """Give a response for server-sent events."""
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", "Content-Type": "text/event-stream"})
    with _breaking_off(request, response):
        await response.prepare(request)
        yield response


@contextlib.contextmanager
def _breaking_off(request: web.Request, response: web.StreamResponse) -> Iterator[None]:
    """Break the connection off if an answer fails that has begun: there is no other way left to say so."""
    try:
        yield
    except ConnectionError:
        pass  # The client is gone.
    except Exception as error:
        if not response.prepared:
            raise
        if not isinstance(error, TimeoutError):
            _log.exception("%s %s failed while it was answered", request.method, request.path)
        if request.transport is not None:
            request.transport.abort()


@contextlib.contextmanager
def _member(tasks: set[asyncio.Task[object]]) -> Iterator[None]:
    """Count the current task among `tasks` for a while."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # A handler runs in one.
    tasks.add(task)
    try:
        yield
    finally:
        tasks.remove(task)


def _event(value: Mapping[str, object]) -> bytes:
    return sse.encode(structuring.dumps(value))


def _json(value: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=structuring.dumps(value), status=status, headers=headers, content_type="application/json")


def _error(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    # What a client sent may be quoted in a message, and need not be text.
    message = message.encode(errors="replace").decode()
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def _too_large() -> Refused:
    return Refused(413, f"file: at most {MOST_FILE_BYTES:,} bytes are taken", param="file")


def _too_slow() -> Refused:
    return Refused(408, "the body did not come in time", headers={"Connection": "close"})


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError:
        raise _too_slow() from None
    try:
        value = structuring.loads(body)
        # What cannot be written again, such as half a surrogate pair, could not be answered or stored either.
        structuring.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


def _with_n_epochs(value: dict[str, object]) -> dict[str, object]:
    """Move ``n_epochs`` from inside ``hyperparameters``, its later place in the API, to where it first was."""
    rest = {key: item for key, item in value.items() if key != "hyperparameters"}
    hyperparameters = value.get("hyperparameters")
    if hyperparameters is None:
        return rest
    if not isinstance(hyperparameters, dict) or hyperparameters.keys() - {"n_epochs"}:
        raise RequestInvalid("hyperparameters", "expected an object with n_epochs alone")
    n_epochs = hyperparameters.get("n_epochs")
    if n_epochs is None or n_epochs == "auto":
        return rest
    if type(n_epochs) is not int or not 1 <= n_epochs <= _MOST_N_EPOCHS:
        raise RequestInvalid(
            "hyperparameters.n_epochs", f"expected 'auto' or a whole number from 1 to {_MOST_N_EPOCHS}"
        )
    if rest.get("n_epochs") not in (None, n_epochs):
        raise RequestInvalid("hyperparameters.n_epochs", "differs from n_epochs; give one of them")
    return {**rest, "n_epochs": n_epochs}


async def _parsed(reading: Awaitable[T]) -> T:
    """Await what aiohttp reads from a form. It has no one exception for a form that is broken, but eight."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            return await reading
    except TimeoutError:
        raise _too_slow() from None
    except Exception as error:
        raise Refused(400, f"the body is not a valid form: {error}") from error


def _range(request: web.Request, size: int) -> range:
    """Return which bytes of a file are asked for (RFC 9110, section 14.2)."""
    try:
        wanted = range(size)[request.http_range]
    except ValueError:
        wanted = range(0)
    if "Range" in request.headers and not wanted:
        raise Refused(416, f"the Range is not one of {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return wanted
