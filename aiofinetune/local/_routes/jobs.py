"""The routes of ``/fine_tuning/jobs``, through which the same jobs are created and shown as through ``/fine-tunes``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from aiofinetune.local._jobs_api import (
    read_job_request,
    read_metadata_filter,
    show_checkpoint,
    show_event,
    show_job,
    show_page,
)
from aiofinetune.local._queue import position_of
from aiofinetune.local._routes import Paths
from aiofinetune.local._routes.bodies import read_json_object
from aiofinetune.local._routes.replies import json_reply, read_limit
from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused

_LIMIT: Final = 20
_CHECKPOINTS_LIMIT: Final = 10
"""The number of items on a page if a client asks for no other."""


class JobRoutes:
    """The routes under ``/fine_tuning/jobs``.

    Args:
        store: The server's state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            "/fine_tuning/jobs": {"GET": self._list, "POST": self._create},
            "/fine_tuning/jobs/{id}": {"GET": self._retrieve},
            "/fine_tuning/jobs/{id}/cancel": {"POST": self._cancel},
            "/fine_tuning/jobs/{id}/pause": {"POST": self._pause},
            "/fine_tuning/jobs/{id}/resume": {"POST": self._resume},
            "/fine_tuning/jobs/{id}/events": {"GET": self._list_events},
            "/fine_tuning/jobs/{id}/checkpoints": {"GET": self._list_checkpoints},
        }

    async def _create(self, request: web.Request) -> web.StreamResponse:
        job = await self._store.jobs.create(*read_job_request(await read_json_object(request)))
        return json_reply(show_job(await self._store.jobs.row(job.id)))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        limit, wanted = read_limit(request.query) or _LIMIT, read_metadata_filter(request.query)
        rows = await self._store.jobs.rows(
            request.query.get("after"), limit + 1, wanted.items, without_metadata=wanted.is_null
        )
        return await self._page(lambda: [show_job(row) for row in rows], limit)

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return json_reply(show_job(await self._store.jobs.row(request.match_info["id"])))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        await self._store.jobs.cancel(request.match_info["id"])
        return await self._retrieve(request)

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        return json_reply(show_job(await self._store.jobs.pause(request.match_info["id"])))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        return json_reply(show_job(await self._store.jobs.resume(request.match_info["id"])))

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        job_id, after = request.match_info["id"], request.query.get("after")
        limit, position = read_limit(request.query) or _LIMIT, None
        if after is not None:
            position = position_of(job_id, after)
            if position is None:
                raise Refused(400, "after: expected the id of an event of this job", param="after")
        events = await self._store.jobs.latest_events(job_id, position, limit + 1)
        return await self._page(lambda: [show_event(job_id, *event) for event in events], limit)

    async def _list_checkpoints(self, request: web.Request) -> web.StreamResponse:
        job_id, limit = request.match_info["id"], read_limit(request.query) or _CHECKPOINTS_LIMIT
        await self._store.jobs.row(job_id)  # It refuses a job that does not exist.
        checkpoints = await self._store.models.checkpoints(job_id, request.query.get("after"), limit + 1)
        return await self._page(lambda: [show_checkpoint(job_id, each) for each in checkpoints], limit)

    async def _page(self, show: Callable[[], Sequence[Mapping[str, object]]], limit: int) -> web.StreamResponse:
        """Answer with a page. It is written on a thread, because a long one would block the event loop."""
        return await self._store.in_thread(lambda: json_reply(show_page(show(), limit)))
