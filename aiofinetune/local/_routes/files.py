"""The routes of files: ``/files``."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from aiohttp import web

from aiofinetune.local._routes import Paths
from aiofinetune.local._routes.bodies import FormReader
from aiofinetune.local._routes.replies import list_reply, object_reply, send_file, write
from aiofinetune.local._store import Store
from aiofinetune.local._store.files import MAX_FILE_BYTES, PURPOSE
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import Deleted

_MAX_NAME: Final = 200
"""The most characters of a file name in a header, counted from its end; clients refuse headers of several KB."""


class FileRoutes:
    """The routes under ``/files``.

    Args:
        store: The server's state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            "/files": {"GET": self._list, "POST": self._upload},
            "/files/{id}": {"GET": self._retrieve, "DELETE": self._delete},
            "/files/{id}/content": {"GET": self._download},
        }

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        form = FormReader(request, self._store, file="file", texts=("purpose",), max_bytes=MAX_FILE_BYTES)
        async with self._store.files.receive() as incoming:
            found = await form.read(incoming)
            if found["purpose"] != PURPOSE:
                raise Refused(400, f"purpose: expected '{PURPOSE}', got {found['purpose']!r}", param="purpose")
            file = await self._store.files.keep(incoming, found["file"], PURPOSE)
        return object_reply(file)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        files = await self._store.files.list(request.query.get("purpose"))
        return await list_reply(
            request, self._store, lambda: [file.id for file in files], lambda index: write(files[index])
        )

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return object_reply(await self._store.files.get(request.match_info["id"]))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        file_id = request.match_info["id"]
        await self._store.files.delete(file_id)
        return object_reply(Deleted(file_id, True, "file"))

    async def _download(self, request: web.Request) -> web.StreamResponse:
        file = await self._store.files.get(request.match_info["id"])
        # RFC 6266, section 5, recommends to send both forms of the name.
        name = (file.filename or file.id)[-_MAX_NAME:]
        plain_name, encoded_name = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII), quote(name)
        headers = {
            "Content-Disposition": f"attachment; filename=\"{plain_name}\"; filename*=UTF-8''{encoded_name}",
        }
        async with self._store.files.reading(file.id) as content:
            return await send_file(request, self._store, content, file.bytes or 0, headers)
