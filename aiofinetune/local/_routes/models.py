"""The routes of models and what they write: ``/models``, ``/completions`` and ``/chat/completions``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from aiofinetune import _sse as sse
from aiofinetune import structuring
from aiofinetune.local._chat_completions import ChatAnswer, read_chat_request
from aiofinetune.local._completions import Answer, Completer, read_completion_request
from aiofinetune.local._engines.written import Written
from aiofinetune.local._routes import Paths
from aiofinetune.local._routes.bodies import read_json_object
from aiofinetune.local._routes.replies import event_stream, list_reply, member, object_reply, write, write_event
from aiofinetune.local._store import Store
from aiofinetune.models import Deleted


class ModelRoutes:
    """The routes under ``/models``, ``/completions`` and ``/chat/completions``.

    Args:
        store: The server's state.
        endless: The tasks to cancel when the server closes; completions are added to it, because they may take long.
        completer: Writes the completions.
    """

    def __init__(self, store: Store, endless: set[asyncio.Task[object]], completer: Completer) -> None:
        self._store = store
        self._endless = endless
        self._completer = completer

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            "/models": {"GET": self._list},
            "/models/{id}": {"GET": self._retrieve, "DELETE": self._delete},
            "/completions": {"POST": self._complete},
            "/chat/completions": {"POST": self._chat},
        }

    async def close(self) -> None:
        """End what writes the completions. Call this only when no request is left."""
        await self._completer.close()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        models = await self._store.models.list()
        return await list_reply(
            request, self._store, lambda: [model.id for model in models], lambda index: write(models[index])
        )

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return object_reply(await self._store.models.get(request.match_info["id"]))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        await self._store.models.delete(name)
        return object_reply(Deleted(name, True, "model"))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, Answer(read_completion_request(await read_json_object(request))))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, ChatAnswer(read_chat_request(await read_json_object(request))))

    async def _answer(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        origin = await self._store.models.locate(answer.asked.model)
        with member(self._endless):
            async with contextlib.aclosing(self._completer.write(answer.asked, origin)) as written:
                if answer.asked.stream:
                    return await self._stream(request, answer, written)
                pieces = [piece async for some in written for piece in some]
        body = await self._store.in_thread(lambda: structuring.dumps(answer.whole(pieces)))
        return web.Response(body=body, content_type="application/json")

    async def _stream(
        self, request: web.Request, answer: Answer, written: AsyncIterator[list[tuple[int, Written]]]
    ) -> web.StreamResponse:
        options, tokens, prompt_tokens = answer.asked.stream_options, 0, 0
        async with event_stream(request) as response:
            async for pieces in written:
                tokens += sum(len(piece.tokens) for _, piece in pieces)
                prompt_tokens += sum(piece.prompt_tokens for _, piece in pieces)
                await response.write(b"".join(write_event(answer.part(index, piece)) for index, piece in pieces))
            if options and options.include_usage:
                await response.write(write_event(answer.last_part(tokens, prompt_tokens)))
            await response.write(sse.encode(b"[DONE]"))
        return response
