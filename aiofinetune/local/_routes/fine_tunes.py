"""The reference's routes of jobs: ``/fine-tunes``."""

from __future__ import annotations

import asyncio
from typing import Final

import attrs
from aiohttp import web

from aiofinetune import _sse as sse
from aiofinetune import structuring
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._queue import MANY_EVENTS, Jobs, event_id, write_event
from aiofinetune.local._routes import Paths
from aiofinetune.local._routes.bodies import read_json_object
from aiofinetune.local._routes.replies import event_stream, list_reply, member
from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import FineTune, FineTuneRequest

_KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which a stream sends a comment, so that no proxy closes the connection."""

_MAX_N_EPOCHS: Final = 50
"""The limit for n_epochs inside hyperparameters (reference: create fine-tune)."""


class FineTuneRoutes:
    """The routes under ``/fine-tunes``.

    Args:
        store: The server's state.
        jobs: The queue that trains the store's jobs.
        endless: The tasks to cancel when the server closes; event streams are added to it.
    """

    def __init__(self, store: Store, jobs: Jobs, endless: set[asyncio.Task[object]]) -> None:
        self._store = store
        self._jobs = jobs
        self._endless = endless

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            "/fine-tunes": {"GET": self._list, "POST": self._create},
            "/fine-tunes/{id}": {"GET": self._retrieve},
            "/fine-tunes/{id}/cancel": {"POST": self._cancel},
            "/fine-tunes/{id}/events": {"GET": self._list_events},
        }

    async def _create(self, request: web.Request) -> web.StreamResponse:
        given = _with_n_epochs(await read_json_object(request))
        _check_suffix(given.get("suffix"))
        asked = structuring.read_request(given, FineTuneRequest)
        FINE_TUNES.check(asked)
        return await self._job(await self._store.jobs.create(asked))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        jobs = await self._store.jobs.list()
        return await list_reply(
            request, self._store, lambda: [job_id for job_id, _ in jobs], lambda index: jobs[index][1]
        )

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return await self._job(await self._store.jobs.get(request.match_info["id"]))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
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
        events, *_ = await self._store.jobs.events(job_id)
        if stream == "false":
            return await list_reply(
                request,
                self._store,
                lambda: [event_id(job_id, position) for position in range(len(events))],
                lambda position: write_event(job_id, position, events[position]),
            )
        if request.method == "HEAD":
            return web.Response(content_type="text/event-stream")
        return await self._stream_events(request, job_id)

    async def _stream_events(self, request: web.Request, job_id: str) -> web.StreamResponse:
        with member(self._endless):
            async with event_stream(request) as response:
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


def _check_suffix(suffix: object) -> None:
    """Refuse a suffix that the reference does not take, though other services of the same request may."""
    most = FINE_TUNES.max_suffix
    if suffix is not None and not (isinstance(suffix, str) and 1 <= len(suffix) <= most):
        raise RequestInvalid("suffix", f"expected 1 to {most} characters")


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
