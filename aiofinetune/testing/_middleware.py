"""The middleware that records the requests of a server, and lets them meet their faults."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from typing import Final, NoReturn

import attrs
from aiohttp import web

from aiofinetune import structuring
from aiofinetune.local._routes import Handler
from aiofinetune.local._routes.replies import EVENT_STREAM, error_reply, json_reply
from aiofinetune.local._routes.together import BASE_PATH
from aiofinetune.testing._endpoints import NAMES, UNKNOWN
from aiofinetune.testing._plans import Cut, Delay, Failure, Fault, Gate, LostReply, OddReply, Plans, Stall
from aiofinetune.testing._recorder import Asked, Requests

PREFIX: Final = "/v1"

CONTROL: Final = f"{PREFIX}/testing/"
"""What the paths begin with through which another process asks for faults; they meet none, and are not recorded."""


@attrs.frozen
class _Met:
    """What the middleware has of a request: its record, its fault, and where it waits if it stalls."""

    request: web.Request
    asked: Asked
    fault: Fault | None
    stalled: Gate


_met: ContextVar[_Met] = ContextVar("_met")
"""Of the request that the task handles; each request has a task of its own."""


class Middleware:
    """Records requests and lets them meet faults.

    Args:
        plans: The faults.
        requests: Where to record the requests.
    """

    def __init__(self, plans: Plans, requests: Requests) -> None:
        self._plans = plans
        self._requests = requests

    def add_to(self, application: web.Application) -> None:
        """Add it to the server's application."""
        application[EVENT_STREAM] = FaultyStream
        application.middlewares.append(self._handle)
        application.on_response_prepare.append(self._prepare)
        # It comes before the server's own, which waits for requests that are under way.
        application.on_shutdown.insert(0, self._end)

    async def _end(self, _application: web.Application) -> None:
        self._plans.clear()

    @web.middleware
    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(CONTROL):
            return await handler(request)
        asked = self._requests.add(_record(request, await _read_json(request)))
        fault = self._plans.take(asked.endpoint, is_stream=asked.is_stream)
        _met.set(_Met(request, asked, fault, self._plans.stalled_requests))
        match fault:
            case Failure(status, message, code, retry_after):
                headers = None if retry_after is None else {"Retry-After": f"{retry_after:g}"}
                return error_reply(status, message, code=code, headers=headers)
            case Stall() if not asked.is_stream:
                await self._plans.stalled_requests.passed()
                return _without_reply(request)
            case Delay(seconds) if not asked.is_stream:
                await _pause(self._plans.stalled_requests, seconds)
        response = await handler(request)
        match fault:
            case LostReply():
                return _without_reply(request)
            case OddReply():
                return _changed(response, fault)
        return response

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Note the status of a reply."""
        if request.path.startswith(CONTROL):
            return
        met = _met.get(None)
        if met is None:
            # A request without the right key does not reach the middleware.
            met = _Met(request, self._requests.add(_record(request, None)), None, self._plans.stalled_requests)
        if request.transport is None or request.transport.is_closing():
            return
        met.asked.status = response.status


class FaultyStream(web.StreamResponse):
    """The response of an event stream, which meets the fault of its request."""

    _events = 0
    """The number of events that have been written."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write some events or comments, whole ones."""
        met = _met.get(None)
        if met is None or not isinstance(met.fault, Cut | Stall | Delay):
            await super().write(data)
            return
        for frame in bytes(data).split(b"\n\n")[:-1]:
            await self._meet(met)
            await super().write(frame + b"\n\n")
            self._events += not frame.startswith(b":")
        await self._meet(met, is_before=False)

    async def _meet(self, met: _Met, *, is_before: bool = True) -> None:
        match met.fault:
            case Delay(seconds) if is_before:
                await _pause(met.stalled, seconds)
            case Cut(after) if self._events >= after:
                _break_off(met.request)
            case Stall(after) if self._events >= after:
                await met.stalled.passed()
                _break_off(met.request)


def _break_off(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("a fault on demand")


def endpoint_of(request: web.Request) -> str:
    """Return the name of the endpoint that a request is for."""
    resource = request.match_info.route.resource
    path = "" if resource is None else _below(resource.canonical)
    method = "GET" if request.method == "HEAD" else request.method
    return NAMES.get(f"{method} {path}", UNKNOWN)


def _below(path: str) -> str:
    """Return a path without the base path of the API that it is of."""
    return path.removeprefix(BASE_PATH).removeprefix(PREFIX)


def _record(request: web.Request, body: object) -> Asked:
    headers = {name.lower(): value for name, value in request.headers.items() if name.lower() != "authorization"}
    path = _below(request.path)
    return Asked(endpoint_of(request), request.method, path, dict(request.query), headers, body)


async def _read_json(request: web.Request) -> object:
    """Return the JSON of a request's body, which the handler can read again; None if there is none."""
    if request.content_type != "application/json" or not request.can_read_body:
        return None
    with contextlib.suppress(ValueError, RecursionError):  # The handler says what is wrong.
        return structuring.loads(await request.read())
    return None


def _without_reply(request: web.Request) -> web.StreamResponse:
    """End the connection; what is returned is not sent any more."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _changed(response: web.StreamResponse, fault: OddReply) -> web.StreamResponse:
    """Return a reply with other fields, if it is a JSON object."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return response
    value = structuring.loads(response.body)
    if not isinstance(value, dict):
        return response
    kept = {name: item for name, item in {**value, **fault.fields}.items() if name not in fault.without}
    return json_reply(kept, response.status)


async def _pause(gate: Gate, seconds: float) -> None:
    """Wait for `seconds`, or until the gate is opened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await gate.passed()
