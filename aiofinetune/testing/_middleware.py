"""The middleware that records the requests of a server, and lets them meet their faults."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from typing import Final, NoReturn

import attrs
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from aiofinetune import structuring
from aiofinetune.local._routes import Handler
from aiofinetune.local._routes.replies import EVENT_STREAM, error_reply
from aiofinetune.local._routes.together import BASE_PATH
from aiofinetune.testing._endpoints import NAMES, UNKNOWN
from aiofinetune.testing._plans import Cut, Delay, Failure, Fault, Gate, LostReply, OddReply, Plan, Plans, Stall
from aiofinetune.testing._recorder import Asked, Requests

PREFIX: Final = "/v1"

_JSON: Final = "application/json"

_FIRST_REFUSAL: Final = 300
"""The lowest status of a reply that does not have what was asked for."""

_KEY_HEADERS: Final = frozenset({"authorization", "api-key"})
"""The headers in which clients send the key; the second is Azure's."""

CONTROL: Final = f"{PREFIX}/testing/"
"""What the paths begin with through which another process asks for faults; they meet none, and are not recorded."""


@attrs.define
class _Met:
    """What the middleware has of a request: its record, and the fault that it has taken."""

    request: web.Request
    asked: Asked
    plans: Plans
    plan: Plan | None = None
    has_met: bool = False

    @property
    def fault(self) -> Fault | None:
        return None if self.plan is None else self.plan.fault

    def note(self) -> None:
        """Note that the fault has its effect. A client that sees the effect sees that it is met."""
        if self.plan is not None and not self.has_met:
            self.has_met = True
            self.plans.note_met(self.plan)

    def end(self) -> None:
        """Put the fault back if it had no effect."""
        if self.plan is not None and not self.has_met:
            self.plans.put_back(self.plan)


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
        met = _Met(request, asked, self._plans, self._plans.take(asked.endpoint, is_stream=asked.is_stream))
        _met.set(met)
        try:
            return await _reply(met, handler)
        finally:
            met.end()

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Record the status of a reply; if the request met `LostReply`, break the connection off instead."""
        if request.path.startswith(CONTROL):
            return
        met = _met.get(None)
        if met is None:
            # A request without the right key does not reach the middleware.
            met = _Met(request, self._requests.add(_record(request, None)), self._plans)
        if isinstance(met.fault, LostReply):
            _break_off(request)
        if request.transport is None or request.transport.is_closing():
            return
        met.asked.status = response.status


async def _reply(met: _Met, handler: Handler) -> web.StreamResponse:
    """Answer a request that meets its fault, if it is neither a lost reply nor one of an event stream."""
    match met.fault:
        case Failure(status, message, code, retry_after):
            met.note()
            headers = None if retry_after is None else {"Retry-After": _seconds(retry_after)}
            return error_reply(status, message, code=code, headers=headers)
        case Stall() if not met.asked.is_stream:
            met.note()
            await met.plans.stalled_requests.passed()
            return _without_reply(met.request)
        case Delay(seconds) if not met.asked.is_stream:
            met.note()
            await _pause(met.plans.stalled_requests, seconds)
        case LostReply():
            met.note()
    response = await handler(met.request)
    if isinstance(met.fault, OddReply) and _change(met.request, response, met.fault):
        met.note()
    return response


class FaultyStream(web.StreamResponse):
    """The response of an event stream, which meets the fault of its request."""

    _events = 0
    """The number of events that have been written."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers. If they are lost, the events cannot be written, as to a client that has disconnected."""
        with contextlib.suppress(ConnectionResetError):
            return await super().prepare(request)
        return None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write some events or comments, whole ones."""
        met = _met.get(None)
        if met is None or not isinstance(met.fault, Cut | Stall | Delay):
            await super().write(data)
            return
        for frame in bytes(data).split(b"\n\n")[:-1]:
            await self._meet(met)
            self._events += not frame.startswith(b":")
            if isinstance(met.fault, Cut | Stall) and self._events >= met.fault.after:
                met.note()  # A client that has all these events sees that nothing comes after them.
            await super().write(frame + b"\n\n")
        await self._meet(met, is_before=False)

    async def _meet(self, met: _Met, *, is_before: bool = True) -> None:
        match met.fault:
            case Delay(seconds) if is_before:
                met.note()
                await _pause(met.plans.stalled_requests, seconds)
            case Cut(after) if self._events >= after:
                met.note()
                _break_off(met.request)
            case Stall(after) if self._events >= after:
                met.note()
                await met.plans.stalled_requests.passed()
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
    headers = {name.lower(): value for name, value in request.headers.items() if name.lower() not in _KEY_HEADERS}
    path = _below(request.path)
    return Asked(endpoint_of(request), request.method, path, dict(request.query), headers, body)


async def _read_json(request: web.Request) -> object:
    """Return the JSON of a request's body, which the handler can read again; None if there is none."""
    if request.content_type != _JSON or not request.can_read_body:
        return None
    with contextlib.suppress(ValueError, RecursionError):  # The handler says what is wrong.
        return structuring.loads(await request.read())
    return None


def _without_reply(request: web.Request) -> web.StreamResponse:
    """End the connection; what is returned is not sent any more."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _change(request: web.Request, response: web.StreamResponse, fault: OddReply) -> bool:
    """Change the fields of a reply, and return whether it has any: it is a JSON object, and no refusal."""
    if request.method == "HEAD" or not isinstance(response, web.Response) or response.content_type != _JSON:
        return False
    value = structuring.loads(response.body) if isinstance(response.body, bytes) else None
    if response.status >= _FIRST_REFUSAL or not isinstance(value, dict):
        return False
    kept = {name: item for name, item in {**value, **fault.fields}.items() if name not in fault.without}
    response.body = structuring.dumps(kept)
    return True


def _seconds(number: float) -> str:
    """Return a number as clients read it, which is without an exponent."""
    return f"{number:f}".rstrip("0").removesuffix(".")


async def _pause(gate: Gate, seconds: float) -> None:
    """Wait for `seconds`, or until the gate is opened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await gate.passed()
