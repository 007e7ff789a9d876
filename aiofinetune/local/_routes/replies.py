"""Write replies: JSON, errors in the API's envelope, lists in pages, and event streams."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import BinaryIO, Final

from aiohttp import web

from aiofinetune import _sse as sse
from aiofinetune import structuring
from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused

PIECE_BYTES: Final = 256 << 10
"""The amount of an upload or a download that is in memory at a time."""

_LIMIT: Final = re.compile("0*[1-9][0-9]{0,8}", re.ASCII)
_MAX_LIMIT: Final = 10**9 - 1

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("aiofinetune_request_id", default=None)
"""The id of the request that is answered, which its answer and what is logged of it name."""

_log = logging.getLogger(__name__)


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=structuring.dumps(value), status=status, headers=headers, content_type="application/json")


def object_reply(value: object) -> web.Response:
    """Answer with one of the API's objects."""
    return json_reply(structuring.write_reply(value))


def error_reply(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Answer with an error in the API's envelope, with all four of its keys."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    # A message may quote what a client sent, which may include surrogates that cannot be encoded.
    message = message.encode(errors="replace").decode()
    return json_reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def write(value: object) -> bytes:
    """Write one of the API's objects as JSON."""
    return structuring.dumps(structuring.write_reply(value))


async def list_reply(
    request: web.Request, store: Store, list_ids: Callable[[], Sequence[str]], write: Callable[[int], bytes]
) -> web.StreamResponse:
    """Answer with a list, or with the page of it that the client asks for.

    It is written on a thread, because a long list would block the event loop.

    Args:
        request: The client's request.
        store: The store, whose threads write the list.
        list_ids: Returns the ids of all items, oldest first.
        write: Returns the JSON of the item at a position.
    """

    def write_page() -> bytes:
        shown, has_more = _page(request.query, list_ids())
        # Each item is written by itself, so that other threads can run in between.
        items = b",".join(map(write, shown))
        return b'{"object":"list","data":[%b],"has_more":%b}' % (items, structuring.dumps(has_more))

    return web.Response(body=await store.in_thread(write_page), content_type="application/json")


def _page(query: Mapping[str, str], ids: Sequence[str]) -> tuple[range, bool]:
    """Return the positions in a list that a client asks for, and whether `limit` excludes any after them."""
    order, limit, after = query.get("order", "asc"), read_limit(query), query.get("after")
    if order not in ("asc", "desc"):
        raise Refused(400, "order: expected asc (oldest first) or desc", param="order")
    if after is not None and after not in ids:
        raise Refused(400, "after: expected the id of an item in this list", param="after")
    positions = range(len(ids)) if order == "asc" else range(len(ids) - 1, -1, -1)
    if after is not None:
        positions = positions[positions.index(ids.index(after)) + 1 :]
    shown = positions if limit is None else positions[:limit]
    return shown, len(shown) < len(positions)


def read_limit(query: Mapping[str, str]) -> int | None:
    """Return the most items that a client asks for; None if it does not say."""
    limit = query.get("limit")
    if limit is not None and not _LIMIT.fullmatch(limit):
        raise Refused(400, f"limit: expected a whole number from 1 to {_MAX_LIMIT}", param="limit")
    return None if limit is None else int(limit)


def write_event(value: object) -> bytes:
    """Write one event of a stream."""
    return sse.encode(structuring.dumps(value))


EVENT_STREAM: Final[web.AppKey[Callable[..., web.StreamResponse]]] = web.AppKey("event_stream")
"""What makes the responses that stream events, if an addition to the application brings something of its own."""


@contextlib.asynccontextmanager
async def event_stream(request: web.Request) -> AsyncIterator[web.StreamResponse]:
    """Return a context manager of a prepared response for server-sent events."""
    kind = request.app.get(EVENT_STREAM, web.StreamResponse)
    response = kind(headers={"Cache-Control": "no-cache", "Content-Type": "text/event-stream"})
    with breaking_off(request, response):
        await response.prepare(request)
        yield response


@contextlib.contextmanager
def breaking_off(request: web.Request, response: web.StreamResponse) -> Iterator[None]:
    """Abort the connection if the answer fails after it has begun, because an error can then no longer be sent."""
    try:
        yield
    except ConnectionError:
        pass  # The client has disconnected.
    except Exception as error:
        if not response.prepared:
            raise
        if not isinstance(error, TimeoutError):
            words = "%s %s (request id %s) failed while the answer was sent"
            fields = {"request_id": REQUEST_ID.get()}
            _log.exception(words, request.method, request.path, REQUEST_ID.get(), extra=fields)
        if request.transport is not None:
            request.transport.abort()


@contextlib.contextmanager
def member(tasks: set[asyncio.Task[object]]) -> Iterator[None]:
    """Keep the current task in `tasks` during the block."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # A handler runs in one.
    tasks.add(task)
    try:
        yield
    finally:
        tasks.remove(task)


async def send_file(
    request: web.Request, store: Store, content: BinaryIO, size: int, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Answer with a file, or with the range of it that the client asks for.

    Args:
        request: The client's request.
        store: The store, whose threads read the file.
        content: The open file.
        size: Its size.
        headers: Further headers of the answer.
    """
    wanted = _range(request, size)
    status, headers = (
        200,
        {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(wanted)),
            "Accept-Ranges": "bytes",
            **(headers or {}),
        },
    )
    if len(wanted) < size:
        status, headers["Content-Range"] = 206, f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    response = web.StreamResponse(status=status, headers=headers)
    with breaking_off(request, response):
        await response.prepare(request)
        for start in [] if request.method == "HEAD" else range(wanted.start, wanted.stop, PIECE_BYTES):
            length = min(PIECE_BYTES, wanted.stop - start)
            await response.write(await store.in_thread(functools.partial(os.pread, content.fileno(), length, start)))
    return response


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
