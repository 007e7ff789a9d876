"""The web application of the embedded server: who may call it, and what happens around every request.

Whatever a client requests, every error is answered with the API's envelope and all four of its keys. Only what is not
HTTP, or has a line or a header that is too long, reaches no route: aiohttp's parser answers it with 400, in plain text.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Iterator, Mapping
from typing import Final

from aiohttp import web

from aiofinetune.errors import RequestInvalid
from aiofinetune.local._completers import Completers
from aiofinetune.local._completions import Completer
from aiofinetune.local._connections import connection_of, new_request_id
from aiofinetune.local._queue import Jobs
from aiofinetune.local._routes import Handler, Routes, token_of
from aiofinetune.local._routes.attempts import PREFIX, AttemptRoutes
from aiofinetune.local._routes.bodies import MAX_JSON_BYTES
from aiofinetune.local._routes.files import FileRoutes
from aiofinetune.local._routes.fine_tunes import FineTuneRoutes
from aiofinetune.local._routes.jobs import JobRoutes
from aiofinetune.local._routes.models import ModelRoutes
from aiofinetune.local._routes.replies import REQUEST_ID, error_reply, member
from aiofinetune.local._routes.together import BASE_PATH, CATALOGUE_PATH, STORAGE, TogetherRoutes
from aiofinetune.local._routes.uploads import UploadRoutes
from aiofinetune.local._shortage import shortage_of
from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused
from aiofinetune.local._trainers.remote import RemoteTrainers

_GRACE: Final = 1.0
"""Seconds that requests have to finish after the server starts to close."""

_log = logging.getLogger(__name__)


class Api:
    """The API over a store and its jobs.

    Args:
        store: The server's state.
        jobs: The queue that trains the store's jobs.
        api_key: The key that clients must send as ``Authorization: Bearer KEY``, or as Azure's ``api-key: KEY``.
        completer: Writes the completions; by default, with the models that the jobs trained.
        remote: The attempts that train on other machines, if there are any.
        worker_token: The token with which workers claim attempts; None if they cannot.
    """

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        api_key: str,
        completer: Completer | None = None,
        remote: RemoteTrainers | None = None,
        worker_token: str | None = None,
    ) -> None:
        self._api_key = api_key.encode()
        self._together = TogetherRoutes(store, api_key)
        self._files = FileRoutes(store)
        self._requests: set[asyncio.Task[object]] = set()
        self._endless: set[asyncio.Task[object]] = set()
        self._models = ModelRoutes(store, self._endless, completer or Completers())
        self._attempts: AttemptRoutes | None = None
        self._takes_workers = remote is not None and worker_token is not None
        if remote is not None:
            self._attempts = AttemptRoutes(store, jobs, remote, self._endless, worker_token)
        self._routes: tuple[Routes, ...] = (
            FineTuneRoutes(store, jobs, self._endless),
            JobRoutes(store),
            self._files,
            UploadRoutes(store),
            self._models,
            *([self._attempts] if self._attempts else []),
        )

    def application(self) -> web.Application:
        """Return the web application that serves this API."""
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_JSON_BYTES)
        app.on_response_prepare.append(_name_request)
        app.on_shutdown.append(self._end_requests)
        for routes in self._routes:
            for path, handlers in routes.paths().items():
                _add_routes(app.router, f"/v1{path}", handlers)
        # Together's own routes go before those that all APIs share.
        for path, handlers in {**self._files.paths(), **self._models.paths(), **self._together.paths()}.items():
            _add_routes(app.router, f"{BASE_PATH}{path}", handlers)
        for path, handlers in self._together.catalogue_paths().items():
            _add_routes(app.router, f"{CATALOGUE_PATH}{path}", handlers)
        return app

    async def close(self) -> None:
        """Wait until every request has ended. Call this only when no new requests can arrive."""
        if self._requests:
            await asyncio.wait(self._requests)
        await self._models.close()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with member(self._requests), connection_of(request.transport), _named():
            response = await self._respond(request, handler)
            # Sent here, so that the connection counts as busy until then and the end of the server waits for it.
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await response.write_eof()
            return response

    async def _respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            await self._authorize(request)
            return await handler(request)
        except Refused as refused:
            return error_reply(refused.status, refused.message, refused.param, refused.code, refused.headers)
        except RequestInvalid as invalid:
            return error_reply(400, str(invalid), invalid.field)
        except web.HTTPException as error:
            return error_reply(error.status, f"{error.reason}: {request.method} {request.path}")
        except web.RequestPayloadError as error:
            return error_reply(400, f"the body cannot be read: {error}")
        except Exception as error:  # noqa: BLE001  # The client gets an envelope for any error.
            fields = {"request_id": REQUEST_ID.get()}
            about = (request.method, request.path, REQUEST_ID.get())
            if shortage := shortage_of(error):
                _log.warning("%s %s (request id %s) failed: %s", *about, shortage, extra=fields)
                return error_reply(shortage.status, f"the server's machine has run out of a resource: {shortage}")
            _log.exception("%s %s (request id %s) failed", *about, extra=fields)
            return error_reply(500, "The server failed to answer; its log has the details")

    async def _authorize(self, request: web.Request) -> None:
        resource = request.match_info.route.resource
        if request.path == f"/v1{PREFIX}" and not self._takes_workers:
            # No token opens it, so this says nothing of one.
            raise Refused(404, "this server takes no workers; start it with --worker-token-file")
        if self._attempts and resource and resource.canonical.startswith(f"/v1{PREFIX}"):
            await self._attempts.authorize(request)
        elif resource is None or resource.canonical != STORAGE:
            self._check_key(request)
        if not request.raw_path.isascii():  # aiohttp's C parser refuses this itself, but its Python parser does not.
            raise Refused(400, "the URL contains bytes that must be percent-encoded (RFC 3986, section 2)")

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        key = token_of(request)
        if not given:
            given = key = request.headers.get("api-key", "")  # Azure's header for keys.
        if not hmac.compare_digest(key.encode(errors="surrogateescape"), self._api_key):
            raise Refused(
                401,
                f"{'Wrong' if given else 'No'} API key; send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _end_requests(self, _app: web.Application) -> None:
        # Streams would last as long as their jobs. When they are cancelled, their connections close without a proper
        # end, so that no client takes this for the end of the job. Completions are cancelled too: they may take long.
        for request in self._endless:
            request.cancel()
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=_GRACE)
            for request in late:
                request.cancel()


def _add_routes(router: web.UrlDispatcher, path: str, handlers: Mapping[str, Handler]) -> None:
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


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Ask for the body that a client holds back (RFC 9110, section 10.1.1).

    aiohttp's own handler does not refuse other expectations with an envelope.
    """
    if request.headers["Expect"].lower() != "100-continue":
        return error_reply(417, "Expect: only 100-continue is supported")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Give the request that the block answers an id."""
    token = REQUEST_ID.set(new_request_id())
    try:
        yield
    finally:
        REQUEST_ID.reset(token)


async def _name_request(_request: web.Request, response: web.StreamResponse) -> None:
    # Without an id yet is what an addition to the application answers before `Api` sees it.
    response.headers["x-request-id"] = REQUEST_ID.get() or new_request_id()
