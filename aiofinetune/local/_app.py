"""The routes of the embedded server: what each endpoint reads and answers, and which requests it refuses.

Whatever a client sends, every error is answered with the API's envelope and all four of its keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import attrs
from aiohttp import BodyPartReader, web

from aiofinetune import _sse as sse
from aiofinetune import structuring
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._completions import Answer, Completer, read_completion_request
from aiofinetune.local._connections import connection_of, new_request_id
from aiofinetune.local._queue import MANY_EVENTS, Jobs, event_id, write_event
from aiofinetune.local._shortage import shortage_of
from aiofinetune.local._store import Store
from aiofinetune.local._store.files import PURPOSE, Incoming
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import Deleted, FineTune, FineTuneRequest

if TYPE_CHECKING:
    from aiofinetune.local._engines.sampling import Written

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_FILE_BYTES: Final = 1 << 30
_MAX_JSON_BYTES: Final = 1 << 20
_MAX_FORM_BYTES: Final = 64 << 10
"""The size that a form may have in addition to its file."""

_BODY_TIMEOUT: Final = 60.0
"""Seconds within which a client must send a JSON body, or the next piece of a file."""

_GRACE: Final = 1.0
"""Seconds that requests have to finish after the server starts to close."""

_PIECE_BYTES: Final = 256 << 10
"""The amount of an upload or a download that is in memory at a time."""

_MAX_NAME: Final = 200
"""The most characters of a file name in a header, counted from its end; clients refuse headers of several KB."""

_KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which a stream sends a comment, so that no proxy closes the connection."""

_MAX_N_EPOCHS: Final = 50
"""The limit for n_epochs inside hyperparameters (reference: create fine-tune)."""

_LIMIT: Final = re.compile("0*[1-9][0-9]{0,8}", re.ASCII)

_log = logging.getLogger(__name__)


class Api:
    """The API over a store and its jobs.

    Args:
        store: The server's state.
        jobs: The queue that trains the store's jobs.
        api_key: The key that clients must send as ``Authorization: Bearer KEY``.
    """

    def __init__(self, store: Store, jobs: Jobs, api_key: str) -> None:
        self._store = store
        self._jobs = jobs
        self._authorization = f"Bearer {api_key}".encode()
        self._completer = Completer()
        self._requests: set[asyncio.Task[object]] = set()
        self._endless: set[asyncio.Task[object]] = set()

    def application(self) -> web.Application:
        """Return the web application that serves this API."""
        app = web.Application(middlewares=[self._answer], client_max_size=_MAX_JSON_BYTES)
        app.on_response_prepare.append(_name_request)
        app.on_shutdown.append(self._end_requests)
        for path, handlers in (
            ("/fine-tunes", {"GET": self._list_fine_tunes, "POST": self._create_fine_tune}),
            ("/fine-tunes/{id}", {"GET": self._retrieve_fine_tune}),
            ("/fine-tunes/{id}/cancel", {"POST": self._cancel_fine_tune}),
            ("/fine-tunes/{id}/events", {"GET": self._list_events}),
            ("/files", {"GET": self._list_files, "POST": self._upload_file}),
            ("/files/{id}", {"GET": self._retrieve_file, "DELETE": self._delete_file}),
            ("/files/{id}/content", {"GET": self._download_file}),
            ("/models", {"GET": self._list_models}),
            ("/models/{id}", {"GET": self._retrieve_model, "DELETE": self._delete_model}),
            ("/completions", {"POST": self._create_completion}),
        ):
            self._add_routes(app.router, f"/v1{path}", handlers)
        return app

    def _add_routes(self, router: web.UrlDispatcher, path: str, handlers: Mapping[str, Handler]) -> None:
        """Route a path to `handlers`; answer OPTIONS and all other methods with the list of allowed methods."""
        heads = {"HEAD": handlers["GET"]} if "GET" in handlers else {}
        allowed = ", ".join(sorted({*handlers, *heads, "OPTIONS"}))

        async def answer_options(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=204, headers={"Allow": allowed})

        async def refuse(request: web.Request) -> web.StreamResponse:
            raise Refused(
                405,
                f"{request.method} is not allowed for {request.path}; allowed: {allowed}",
                headers={"Allow": allowed},
            )

        for method, handler in {**handlers, **heads, "OPTIONS": answer_options, "*": refuse}.items():
            router.add_route(method, path, handler, expect_handler=_expect)

    async def close(self) -> None:
        """Wait until every request has ended. Call this only when no new requests can arrive."""
        if self._requests:
            await asyncio.wait(self._requests)
        self._completer.close()

    # Around every request

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with _member(self._requests), connection_of(request.transport):
            response = await self._respond(request, handler)
            # Sent here, so that the connection counts as busy until then and the end of the server waits for it.
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
            return _error(error.status, f"{error.reason}: {request.method} {request.path}")
        except web.RequestPayloadError as error:
            return _error(400, f"the body cannot be read: {error}")
        except Exception as error:  # noqa: BLE001  # The client gets an envelope for any error.
            if shortage := shortage_of(error):
                _log.warning("%s %s failed: %s", request.method, request.path, shortage)
                return _error(shortage.status, f"the server's machine has run out of a resource: {shortage}")
            _log.exception("%s %s failed", request.method, request.path)
            return _error(500, "The server failed to answer; its log has the details")

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            raise Refused(
                401,
                f"{'Wrong' if given else 'No'} API key; send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not request.raw_path.isascii():  # aiohttp's C parser refuses this itself, but its Python parser does not.
            raise Refused(400, "the URL contains bytes that must be percent-encoded (RFC 3986, section 2)")

    async def _end_requests(self, _app: web.Application) -> None:
        # Streams would last as long as their jobs. When they are cancelled, their connections close without a proper
        # end, so that no client takes this for the end of the job. Completions are cancelled too: they may take long.
        for request in self._endless:
            request.cancel()
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=_GRACE)
            for request in late:
                request.cancel()

    # Fine-tunes

    async def _create_fine_tune(self, request: web.Request) -> web.StreamResponse:
        value = _with_n_epochs(await _json_object(request))
        return await self._job(await self._store.jobs.create(structuring.read_request(value, FineTuneRequest)))

    async def _list_fine_tunes(self, request: web.Request) -> web.StreamResponse:
        jobs = await self._store.jobs.list()
        return await self._listing(request, lambda: [job_id for job_id, _ in jobs], lambda index: jobs[index][1])

    async def _retrieve_fine_tune(self, request: web.Request) -> web.StreamResponse:
        return await self._job(await self._store.jobs.get(request.match_info["id"]))

    async def _cancel_fine_tune(self, request: web.Request) -> web.StreamResponse:
        return await self._job(await self._store.jobs.cancel(request.match_info["id"]))

    async def _job(self, job: FineTune) -> web.StreamResponse:
        """Answer with a job. One with many events is written on a thread, so that it does not block the event loop."""

        def write() -> bytes:
            head = structuring.write_reply(attrs.evolve(job, events=()))
            del head["events"]
            events = b",".join(write_event(job.id, *event) for event in enumerate(job.events))
            return b'%b,"events":[%b]}' % (structuring.dumps(head)[:-1], events)

        body = write() if len(job.events) < MANY_EVENTS else await self._store.in_thread(write)
        return web.Response(body=body, content_type="application/json")

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        stream = request.query.get("stream", "false").lower()
        if stream not in ("true", "false"):
            raise Refused(400, "stream: expected true or false", param="stream")
        job_id = request.match_info["id"]
        events, _ = await self._store.jobs.events(job_id)
        if stream == "false":
            return await self._listing(
                request,
                lambda: [event_id(job_id, position) for position in range(len(events))],
                lambda position: write_event(job_id, position, events[position]),
            )
        if request.method == "HEAD":
            return web.Response(content_type="text/event-stream")
        return await self._stream_events(request, job_id)

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
            raise Refused(400, "expected a multipart/form-data body with purpose and file")
        if (request.content_length or 0) > MAX_FILE_BYTES + _MAX_FORM_BYTES:
            raise _too_large()
        async with self._store.files.receive() as incoming:
            purpose, filename = await self._read_form(request, incoming)
            if purpose != PURPOSE:
                raise Refused(400, f"purpose: expected '{PURPOSE}', got {purpose!r}", param="purpose")
            file = await self._store.files.keep(incoming, filename, purpose)
        return _json(structuring.write_reply(file))

    async def _read_form(self, request: web.Request, incoming: Incoming) -> tuple[str, str]:
        """Read purpose and file, in either order; return the purpose and the file's name."""
        purpose = filename = None
        reader = await _parsed(request.multipart())
        while (part := await _parsed(reader.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise Refused(400, "the body is not a valid form: a part is itself multipart")
            if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
                raise Refused(
                    400,
                    "the body is not a valid form: Content-Transfer-Encoding is not supported (RFC 7578, section 4.7)",
                )
            if part.name == "purpose" and purpose is None:
                purpose = await self._read_purpose(part)
            elif part.name == "file" and filename is None:
                filename = (part.filename or "file").encode(errors="replace").decode()
                await self._read_file(part, incoming)
            else:
                name = ascii(part.name)[:80]
                raise Refused(
                    400, f"expected one part 'purpose' and one part 'file', got another part {name}", param=name
                )
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
            if incoming.size + len(piece) > MAX_FILE_BYTES:
                raise _too_large()
            await self._store.in_thread(functools.partial(incoming.write, bytes(piece)))

    async def _list_files(self, request: web.Request) -> web.StreamResponse:
        files = await self._store.files.list(request.query.get("purpose"))
        return await self._listing(request, lambda: [file.id for file in files], lambda index: _write(files[index]))

    async def _retrieve_file(self, request: web.Request) -> web.StreamResponse:
        return _json(structuring.write_reply(await self._store.files.get(request.match_info["id"])))

    async def _delete_file(self, request: web.Request) -> web.StreamResponse:
        file_id = request.match_info["id"]
        await self._store.files.delete(file_id)
        return _json(structuring.write_reply(Deleted(file_id, True, "file")))

    async def _download_file(self, request: web.Request) -> web.StreamResponse:
        file = await self._store.files.get(request.match_info["id"])
        size = file.bytes or 0
        wanted = _range(request, size)
        # RFC 6266, section 5, recommends to send both forms of the name.
        name = (file.filename or file.id)[-_MAX_NAME:]
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
        async with self._store.files.reading(file.id) as content:
            with _breaking_off(request, response):
                await response.prepare(request)
                for start in [] if request.method == "HEAD" else range(wanted.start, wanted.stop, _PIECE_BYTES):
                    length = min(_PIECE_BYTES, wanted.stop - start)
                    await response.write(
                        await self._store.in_thread(functools.partial(os.pread, content.fileno(), length, start))
                    )
        return response

    # Models

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        models = await self._store.models.list()
        return await self._listing(request, lambda: [model.id for model in models], lambda index: _write(models[index]))

    async def _retrieve_model(self, request: web.Request) -> web.StreamResponse:
        return _json(structuring.write_reply(await self._store.models.get(request.match_info["id"])))

    async def _delete_model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        await self._store.models.delete(name)
        return _json(structuring.write_reply(Deleted(name, True, "model")))

    async def _listing(
        self, request: web.Request, list_ids: Callable[[], Sequence[str]], write: Callable[[int], bytes]
    ) -> web.StreamResponse:
        """Answer with a list. It is written on a thread, because a long list would block the event loop.

        Args:
            request: The client's request.
            list_ids: Returns the ids of all items, oldest first.
            write: Returns the JSON of the item at a position.
        """

        def write_page() -> bytes:
            shown, has_more = _page(request.query, list_ids())
            # Each item is written by itself, so that other threads can run in between.
            items = b",".join(map(write, shown))
            return b'{"object":"list","data":[%b],"has_more":%b}' % (items, structuring.dumps(has_more))

        return web.Response(body=await self._store.in_thread(write_page), content_type="application/json")

    # Completions

    async def _create_completion(self, request: web.Request) -> web.StreamResponse:
        asked = read_completion_request(await _json_object(request))
        weights = await self._store.models.weights_path(asked.model)
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
    """Ask for the body that a client holds back (RFC 9110, section 10.1.1).

    aiohttp's own handler does not refuse other expectations with an envelope.
    """
    if request.headers["Expect"].lower() != "100-continue":
        return _error(417, "Expect: only 100-continue is supported")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


async def _name_request(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = new_request_id()


@contextlib.asynccontextmanager
async def _event_stream(request: web.Request) -> AsyncIterator[web.StreamResponse]:
    """Return a context manager of a prepared response for server-sent events."""
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", "Content-Type": "text/event-stream"})
    with _breaking_off(request, response):
        await response.prepare(request)
        yield response


@contextlib.contextmanager
def _breaking_off(request: web.Request, response: web.StreamResponse) -> Iterator[None]:
    """Abort the connection if the answer fails after it has begun, because an error can then no longer be sent."""
    try:
        yield
    except ConnectionError:
        pass  # The client has disconnected.
    except Exception as error:
        if not response.prepared:
            raise
        if not isinstance(error, TimeoutError):
            _log.exception("%s %s failed while the answer was sent", request.method, request.path)
        if request.transport is not None:
            request.transport.abort()


@contextlib.contextmanager
def _member(tasks: set[asyncio.Task[object]]) -> Iterator[None]:
    """Keep the current task in `tasks` during the block."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # A handler runs in one.
    tasks.add(task)
    try:
        yield
    finally:
        tasks.remove(task)


def _write(value: object) -> bytes:
    return structuring.dumps(structuring.write_reply(value))


def _page(query: Mapping[str, str], ids: Sequence[str]) -> tuple[range, bool]:
    """Return the positions in a list that a client asks for, and whether `limit` excludes any after them."""
    order, limit, after = query.get("order", "asc"), query.get("limit"), query.get("after")
    if order not in ("asc", "desc"):
        raise Refused(400, "order: expected asc (oldest first) or desc", param="order")
    if limit is not None and not _LIMIT.fullmatch(limit):
        raise Refused(400, "limit: expected a whole number, 1 or above", param="limit")
    if after is not None and after not in ids:
        raise Refused(400, "after: expected the id of an item in this list", param="after")
    positions = range(len(ids)) if order == "asc" else range(len(ids) - 1, -1, -1)
    if after is not None:
        positions = positions[positions.index(ids.index(after)) + 1 :]
    shown = positions if limit is None else positions[: int(limit)]
    return shown, len(shown) < len(positions)


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
    # A message may quote what a client sent, which may include surrogates that cannot be encoded.
    message = message.encode(errors="replace").decode()
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def _too_large() -> Refused:
    return Refused(413, f"file: at most {MAX_FILE_BYTES:,} bytes are allowed", param="file")


def _too_slow() -> Refused:
    return Refused(408, "the body did not arrive in time", headers={"Connection": "close"})


async def _json_object(request: web.Request) -> dict[str, object]:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError:
        raise _too_slow() from None
    try:
        value = structuring.loads(body)
        # A value that cannot be encoded, such as half a surrogate pair, could not be stored or sent back.
        structuring.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


def _with_n_epochs(value: dict[str, object]) -> dict[str, object]:
    """Move ``n_epochs`` from ``hyperparameters``, where later versions of the API have it, to the top level."""
    rest = {key: item for key, item in value.items() if key != "hyperparameters"}
    hyperparameters = value.get("hyperparameters")
    if hyperparameters is None:
        return rest
    if not isinstance(hyperparameters, dict) or hyperparameters.keys() - {"n_epochs"}:
        raise RequestInvalid("hyperparameters", "expected an object that contains only n_epochs")
    n_epochs = hyperparameters.get("n_epochs")
    if n_epochs is None or n_epochs == "auto":
        return rest
    if type(n_epochs) is not int or not 1 <= n_epochs <= _MAX_N_EPOCHS:
        raise RequestInvalid("hyperparameters.n_epochs", f"expected 'auto' or a whole number from 1 to {_MAX_N_EPOCHS}")
    if rest.get("n_epochs") not in (None, n_epochs):
        raise RequestInvalid("hyperparameters.n_epochs", "differs from n_epochs; pass only one of them")
    return {**rest, "n_epochs": n_epochs}


async def _parsed(reading: Awaitable[T]) -> T:
    """Await what aiohttp reads from a form. aiohttp raises eight kinds of exceptions for a broken form."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            return await reading
    except TimeoutError:
        raise _too_slow() from None
    except Exception as error:
        raise Refused(400, f"the body is not a valid form: {error}") from error


def _range(request: web.Request, size: int) -> range:
    """Return the range of a file that the client asks for (RFC 9110, section 14.2)."""
    try:
        wanted = range(size)[request.http_range]
    except ValueError:
        wanted = range(0)
    if "Range" in request.headers and not wanted:
        raise Refused(
            416, f"the Range is not within the {size} bytes of the file", headers={"Content-Range": f"bytes */{size}"}
        )
    return wanted
