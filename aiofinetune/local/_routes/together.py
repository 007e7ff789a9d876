"""The routes of Together's API, under a base path of its own, through which the same jobs and files are seen."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from typing import Final

from aiohttp import web

from aiofinetune.local._routes import Paths
from aiofinetune.local._routes.bodies import BODY_TIMEOUT, FormReader, read_json_object, too_slow
from aiofinetune.local._routes.replies import PIECE_BYTES, json_reply
from aiofinetune.local._store import Store
from aiofinetune.local._store.database import new_id, now
from aiofinetune.local._store.files import MAX_FILE_BYTES, PURPOSE
from aiofinetune.local._store.refused import Refused
from aiofinetune.local._together_api import (
    FileToCome,
    read_job_request,
    read_signed,
    show_checkpoint,
    show_event,
    show_file,
    show_job,
    show_limits,
    show_metrics,
    show_model,
    show_report,
    show_supported_model,
)
from aiofinetune.models import File
from aiofinetune.results import Results, read_results

BASE_PATH: Final = "/together/v1"
"""What the paths begin with. Together's own client adds the ``/v1`` itself."""
CATALOGUE_PATH: Final = "/together/v2"
STORAGE: Final = f"{BASE_PATH}/storage/{{id}}"
"""The path to which the bytes of a file are put: with a signature in the URL, and without the key."""

_LIFETIME: Final = 3600
"""Seconds for which the URL for the bytes of a file is good."""


class TogetherRoutes:
    """The routes of jobs, files and models as Together has them.

    Args:
        store: The server's state.
        api_key: The key that signs the URLs for the bytes of files.
    """

    def __init__(self, store: Store, api_key: str) -> None:
        self._store = store
        self._key = api_key

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            "/fine-tunes": {"GET": self._list, "POST": self._create},
            "/fine-tunes/estimate-price": {"POST": self._estimate_price},
            "/fine-tunes/models/supported": {"GET": self._list_supported},
            "/fine-tunes/models/limits": {"GET": self._limits},
            "/fine-tunes/{id}": {"GET": self._retrieve, "DELETE": self._delete},
            "/fine-tunes/{id}/cancel": {"POST": self._cancel},
            "/fine-tunes/{id}/events": {"GET": self._list_events},
            "/fine-tunes/{id}/checkpoints": {"GET": self._list_checkpoints},
            "/fine-tunes/{id}/metrics": {"GET": self._list_metrics},
            "/files": {"GET": self._list_files, "POST": self._begin_file},
            "/files/{id}": {"GET": self._retrieve_file, "DELETE": self._delete_file},
            "/files/{id}/preprocess": {"POST": self._retrieve_file},
            "/storage/{id}": {"PUT": self._put},
            "/models": {"GET": self._list_models},
        }

    def catalogue_paths(self) -> Paths:
        """Return the handlers of the paths of a later version, which has the catalogue of the base models."""
        return {
            "/supported-models": {"GET": self._list_catalogue},
            "/supported-models/{id}": {"GET": self._retrieve_catalogue},
        }

    # Jobs

    async def _create(self, request: web.Request) -> web.StreamResponse:
        job = await self._store.jobs.create(*read_job_request(await read_json_object(request)))
        return json_reply(show_job(await self._store.jobs.row(job.id)))

    async def _list(self, _request: web.Request) -> web.StreamResponse:
        rows = await self._store.jobs.rows(None, -1, None)
        return await self._store.in_thread(lambda: json_reply({"data": [show_job(row) for row in rows]}))

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        job_id = request.match_info["id"]
        row = await self._store.jobs.row(job_id)
        events, *_ = await self._store.jobs.events(job_id)
        return await self._store.in_thread(lambda: json_reply(show_job(row, events)))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        job = await self._store.jobs.cancel(request.match_info["id"])
        return json_reply(show_job(await self._store.jobs.row(job.id)))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        await self._store.jobs.delete(request.match_info["id"])
        return json_reply({"message": "the job is deleted; its files and its model are not"})

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        events, *_ = await self._store.jobs.events(request.match_info["id"])
        return await self._store.in_thread(lambda: json_reply({"data": [show_event(event) for event in events]}))

    async def _list_checkpoints(self, request: web.Request) -> web.StreamResponse:
        job_id = request.match_info["id"]
        await self._store.jobs.row(job_id)  # It refuses a job that does not exist.
        found = await self._store.models.checkpoints(job_id, None, -1)
        return json_reply({"data": [show_checkpoint(each, is_last=place == 0) for place, each in enumerate(found)]})

    async def _list_metrics(self, request: web.Request) -> web.StreamResponse:
        job = (await self._store.jobs.row(request.match_info["id"])).job
        results = Results()
        if job.result_files:
            async with self._store.files.reading(job.result_files[0].id) as content:
                results = await self._store.in_thread(lambda: read_results(content.read()))
        return await self._store.in_thread(lambda: json_reply({"metrics": show_metrics(results, request.query)}))

    async def _estimate_price(self, request: web.Request) -> web.StreamResponse:
        asked = await read_json_object(request)
        for name in ("training_file", "validation_file"):
            if (file_id := asked.get(name)) or name == "training_file":
                await self._store.files.get(str(file_id))
        return json_reply(
            {"estimation_available": True, "estimated_total_price": 0, "allowed_to_proceed": True, "user_limit": 0}
        )

    # Models

    async def _list_models(self, _request: web.Request) -> web.StreamResponse:
        # The whole reply is a list, unlike any other.
        return json_reply([show_model(model.id, model.created) for model in await self._store.models.list()])

    async def _list_supported(self, _request: web.Request) -> web.StreamResponse:
        return json_reply({"models": list(self._store.models.bases)})

    async def _list_catalogue(self, _request: web.Request) -> web.StreamResponse:
        models = [await self._store.models.get(name) for name in self._store.models.bases]
        return json_reply({"data": [show_supported_model(model) for model in models], "next_cursor": None})

    async def _retrieve_catalogue(self, request: web.Request) -> web.StreamResponse:
        return json_reply(show_supported_model(await self._store.models.get(request.match_info["id"])))

    async def _limits(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("model_name", "")
        await self._store.models.get(name)  # It refuses a model that does not exist.
        return json_reply(show_limits(name))

    # Files

    async def _begin_file(self, request: web.Request) -> web.StreamResponse:
        texts = ("purpose", "file_name", "file_type", "checksum")
        said = await FormReader(request, self._store, texts=texts).read()
        coming = FileToCome(new_id("file-"), **said, expires_at=now() + _LIFETIME)
        coming.check()
        if (same := await self._store.files.with_checksum(coming.checksum, coming.purpose)) is not None:
            return json_reply({"file_id": same.id, "message": "a file with this content exists"}, 409)
        url = f"{request.scheme}://{request.host}{STORAGE.format(id=coming.file_id)}?{coming.query(self._key)}"
        return web.Response(status=302, headers={"Location": url, "X-Together-File-Id": coming.file_id})

    async def _put(self, request: web.Request) -> web.StreamResponse:
        coming = read_signed(request.match_info["id"], request.query, self._key, now())
        if coming is None:
            raise Refused(403, "the URL was not made by this server, was changed, or has expired")
        if request.content_length is None:
            raise Refused(411, "Content-Length: is required")
        if request.content_length > MAX_FILE_BYTES:
            raise Refused(413, f"at most {MAX_FILE_BYTES:,} bytes are allowed")
        digest = hashlib.sha256()
        async with self._store.files.receive(coming.file_id) as incoming:
            while piece := await _next_piece(request):
                await self._store.in_thread(functools.partial(incoming.write, piece))
                digest.update(piece)
            if digest.hexdigest() != coming.checksum:
                raise Refused(400, f"the content has the SHA-256 {digest.hexdigest()}, not {coming.checksum}")
            if not await self._is_there(coming.file_id):
                await self._store.files.keep(
                    incoming,
                    coming.file_name,
                    coming.purpose,
                    lambda file: self._store.files.note_checksum(file.id, coming.checksum),
                )
        return web.Response(status=200)

    async def _is_there(self, file_id: str) -> bool:
        """Return whether a file has come before, by a PUT whose reply was lost."""
        try:
            await self._store.files.get(file_id)
        except Refused:
            return False
        return True

    async def _list_files(self, _request: web.Request) -> web.StreamResponse:
        files = await self._store.files.list(PURPOSE)
        return await self._store.in_thread(lambda: json_reply({"data": [show_file(file, None) for file in files]}))

    async def _retrieve_file(self, request: web.Request) -> web.StreamResponse:
        return json_reply(await self._read(await self._store.files.get(request.match_info["id"])))

    async def _read(self, file: File) -> dict[str, object]:
        """Return a file with what a trainer would find in it."""
        if file.purpose != PURPOSE:
            return show_file(file, None)
        try:
            # The longest completion depends on the model, which is not known yet.
            lines = await self._store.files.count_examples(file.id, "training", None)
        except Refused as refused:
            return show_file(file, "INVALID_FORMAT", show_report(file.id, None, refused.message))
        return show_file(file, "COMPLETED", show_report(file.id, lines, None))

    async def _delete_file(self, request: web.Request) -> web.StreamResponse:
        file_id = request.match_info["id"]
        await self._store.files.delete(file_id)
        return json_reply({"id": file_id, "deleted": True})


async def _next_piece(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.content.read(PIECE_BYTES)
    except TimeoutError:
        raise too_slow() from None
