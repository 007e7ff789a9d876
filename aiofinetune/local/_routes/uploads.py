"""The routes of files that arrive in parts: ``/uploads``."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from aiofinetune import structuring
from aiofinetune.local._routes import Paths
from aiofinetune.local._routes.bodies import FormReader, read_json_object
from aiofinetune.local._routes.replies import json_reply, object_reply
from aiofinetune.local._store import Store
from aiofinetune.local._store.uploads import CompletionOrder, Upload, UploadRequest

MAX_PART_BYTES: Final = 64 << 20


class UploadRoutes:
    """The routes under ``/uploads``.

    Args:
        store: The server's state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            "/uploads": {"POST": self._create},
            "/uploads/{id}/parts": {"POST": self._add_part},
            "/uploads/{id}/complete": {"POST": self._complete},
            "/uploads/{id}/cancel": {"POST": self._cancel},
        }

    async def _create(self, request: web.Request) -> web.StreamResponse:
        asked = structuring.read_request(await read_json_object(request), UploadRequest)
        return _reply(await self._store.uploads.create(asked))

    async def _add_part(self, request: web.Request) -> web.StreamResponse:
        upload_id = request.match_info["id"]
        form = FormReader(request, self._store, file="data", max_bytes=MAX_PART_BYTES)
        async with self._store.uploads.receive(upload_id) as incoming:
            await form.read(incoming)
            part = await self._store.uploads.keep(incoming, upload_id)
        return object_reply(part)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        order = structuring.read_request(await read_json_object(request), CompletionOrder)
        return _reply(await self._store.uploads.complete(request.match_info["id"], order))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        return _reply(await self._store.uploads.cancel(request.match_info["id"]))


def _reply(upload: Upload) -> web.Response:
    """Answer with an upload, which has a file only once it is complete."""
    shown = structuring.write_reply(upload)
    return json_reply({name: value for name, value in shown.items() if name != "file" or value is not None})
