"""The routes of attempts on other machines: ``/attempts``.

They are for workers alone. A worker claims an attempt with the workers' token; everything else needs the token of that
one attempt. The server's API key opens none of them, and none of these tokens opens anything else.

Every request names the process that makes it, in the header ``Aiofinetune-Runner``. An attempt is run by one process:
if another one comes with the same token, the engine has started the command a second time, and the attempt is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

import attrs
from aiohttp import web

from aiofinetune import structuring
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._queue import Jobs
from aiofinetune.local._routes import Paths, token_of
from aiofinetune.local._routes.bodies import BODY_TIMEOUT, read_json_object, too_slow
from aiofinetune.local._routes.replies import PIECE_BYTES, json_reply, member, send_file
from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused
from aiofinetune.local._trainers import Ended
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.outputs import NotUsable, check_output
from aiofinetune.local._trainers.remote import Live, RemoteTrainers, digest, inputs_by_name, outputs_by_name
from aiofinetune.local._trainers.trainer import trainer_input

PREFIX: Final = "/attempts"

_WATCH: Final = 20.0
"""Seconds until a request that waits for something is answered that nothing has happened."""

_END: Final = 1.0
"""Seconds within which it is stored how an attempt ended, unless the server is starting or closing."""

MAX_OUTPUT_BYTES: Final = 1 << 30
"""The size that a model or results may have."""

_RUNNER: Final = re.compile("[0-9a-f]{32}")

_MAX_RESOURCES: Final = 100
"""The most resources that a worker may have."""

_MAX_WORDS: Final = 2000
"""The most characters of how a trainer ended."""


@attrs.frozen
class ClaimRequest:
    """What a worker says of itself."""

    resources: Mapping[str, int] | None = None


@attrs.frozen
class EndRequest:
    """How a trainer has ended."""

    lines: int
    """The number of lines that it wrote."""
    is_well: bool
    how: str
    outputs: Mapping[str, str] | None = None
    """The SHA-256 of each output, in hexadecimal digits, by name."""


class AttemptRoutes:
    """The routes under ``/attempts``.

    Args:
        store: The server's state.
        jobs: The queue.
        remote: The attempts on other machines.
        endless: The tasks to cancel when the server closes; requests that wait are added to it.
        worker_token: The token with which workers claim attempts; None if they cannot.
    """

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        remote: RemoteTrainers,
        endless: set[asyncio.Task[object]],
        worker_token: str | None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._remote = remote
        self._endless = endless
        self._worker_token = None if worker_token is None else digest(worker_token)

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        return {
            PREFIX: {"POST": self._claim},
            f"{PREFIX}/{{id}}": {"GET": self._describe, "DELETE": self._leave},
            f"{PREFIX}/{{id}}/watch": {"GET": self._watch},
            f"{PREFIX}/{{id}}/inputs/{{name:.+}}": {"GET": self._send_input},
            f"{PREFIX}/{{id}}/lines": {"POST": self._add_lines},
            f"{PREFIX}/{{id}}/outputs/{{name:.+}}": {"GET": self._show_output, "PUT": self._receive_output},
            f"{PREFIX}/{{id}}/end": {"POST": self._end},
        }

    async def authorize(self, request: web.Request) -> None:
        """Refuse a request that has not the right token.

        A request of an attempt that is over is refused with 410, whatever else is wrong with it.
        """
        given = digest(token_of(request))
        if "id" not in request.match_info:
            if self._worker_token is None or not hmac.compare_digest(given, self._worker_token):
                raise _unauthorized("the workers' token")
            return
        known = await self._store.attempts.remote(request.match_info["id"])
        if known is None or not hmac.compare_digest(given, known.token):
            raise _unauthorized("the attempt's token")
        if known.is_over:
            raise _over()
        live = self._remote.live.get(request.match_info["id"])
        if live is None or live.closed.is_set():
            await self._refuse_at_end(request.match_info["id"], known.job_id)
        runner = request.headers.get("Aiofinetune-Runner", "")
        if not _RUNNER.fullmatch(runner):
            raise Refused(400, "Aiofinetune-Runner: expected 32 hexadecimal digits")
        if known.runner not in (runner, None):
            live.lose("its worker was lost", by_job=True)
            raise _over()

    async def _refuse_at_end(self, attempt_id: str, job_id: str) -> NoReturn:
        """Refuse a request of an attempt of which this process takes nothing more, or nothing yet."""
        with contextlib.suppress(TimeoutError), member(self._endless):
            async with asyncio.timeout(_END):
                await self._jobs.feed(job_id).wait_until_over(attempt_id)
                raise _over()
        raise Refused(503, "the server is starting or closing", headers={"Retry-After": "1"})

    # Claiming

    async def _claim(self, request: web.Request) -> web.StreamResponse:
        asked = structuring.read_request(await read_json_object(request), ClaimRequest)
        resources = asked.resources or {}
        if len(resources) > _MAX_RESOURCES or not all(name and amount > 0 for name, amount in resources.items()):
            raise RequestInvalid("resources", f"expected at most {_MAX_RESOURCES} names, with amounts above 0")
        engine = self._remote.engine
        if not isinstance(engine, Claims):
            raise Refused(409, "this server gives no attempts to workers that ask for them")
        try:
            with member(self._endless):
                async with asyncio.timeout(_WATCH):
                    order = await engine.claim(resources)
        except TimeoutError:
            return web.Response(status=204)
        # The worker knows a URL of this server, which need not be the one that an engine would get.
        return json_reply({"id": order.url.rpartition("/")[2], "token": str(order.token)})

    # One attempt

    def _live(self, request: web.Request) -> Live:
        live = self._remote.live.get(request.match_info["id"])
        if live is None:
            raise _over()
        return live

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        """Answer with all that the command needs to know, and note where the attempt runs."""
        live = self._live(request)
        with live.request():
            where = "".join(filter(str.isprintable, request.query.get("where", "")))[:100] or "another machine"
            live.where = where
            if not await self._store.attempts.note_runner(live.attempt, request.headers["Aiofinetune-Runner"], where):
                live.lose("its worker was lost", by_job=True)
                raise _over()
            try:
                return await self._store.in_thread(lambda: json_reply(_description(live)))
            except FileNotFoundError:
                await live.end(Ended(is_well=False, how="because one of its files is missing on the server"))
                raise _over() from None

    async def _leave(self, request: web.Request) -> web.StreamResponse:
        has_failed = request.query.get("how") == "failed"
        how = "failed" if has_failed else "was stopped"
        self._live(request).lose(f"its worker {how}", by_job=has_failed, by_stop=not has_failed)
        return web.Response(status=204)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        live = self._live(request)
        with live.request(), member(self._endless):
            try:
                async with asyncio.timeout(_WATCH):
                    # A server that closes stores no end; it cancels this.
                    await self._jobs.feed(live.attempt.job.id).wait_until_over(live.attempt.id)
            except TimeoutError:
                return web.Response(status=204)
        raise _over()

    async def _send_input(self, request: web.Request) -> web.StreamResponse:
        live = self._live(request)
        with live.request():
            files = await self._store.in_thread(lambda: inputs_by_name(live.attempt))
            path = _named(files, request)
            content = await self._store.in_thread(lambda: path.open("rb"))
            try:
                size = os.fstat(content.fileno()).st_size
                return await send_file(request, self._store, content, size)
            finally:
                await self._store.in_thread(content.close)

    async def _add_lines(self, request: web.Request) -> web.StreamResponse:
        live = self._live(request)
        start = _number(request, "start")
        with live.request():
            try:
                async with asyncio.timeout(BODY_TIMEOUT):
                    body = await request.read()
            except TimeoutError:
                raise too_slow() from None
            return json_reply({"next": await live.add_lines(start, body.split(b"\n"))})

    async def _show_output(self, request: web.Request) -> web.StreamResponse:
        """Answer with the number of bytes that have arrived."""
        live = self._live(request)
        path = _named(outputs_by_name(live.attempt), request)
        with live.request():
            # A further upload from here on is the only one that may write.
            live.uploads[path.name] += 1
            async with live.writing:
                size = await self._store.in_thread(lambda: _received(path))
        return json_reply({"bytes": size})

    async def _receive_output(self, request: web.Request) -> web.StreamResponse:
        """Add the body to an output, from the byte on that the client names."""
        live = self._live(request)
        path = _named(outputs_by_name(live.attempt), request)
        start = _number(request, "start")
        if start + (request.content_length or 0) > MAX_OUTPUT_BYTES:
            raise _too_large()
        with live.request():
            live.uploads[path.name] += 1
            upload = live.uploads[path.name]
            size = start
            while piece := await _next_piece(request):
                async with live.writing:
                    if live.closed.is_set() or live.has_outputs or live.uploads[path.name] != upload:
                        raise Refused(409, "another upload of this file has begun, or all have ended")
                    if size + len(piece) > MAX_OUTPUT_BYTES:
                        raise _too_large()
                    await self._store.in_thread(functools.partial(_append, path, piece, size))
                size += len(piece)
                live.hear()
        return json_reply({"bytes": size})

    async def _end(self, request: web.Request) -> web.StreamResponse:
        """Check that all has arrived, and answer when the job is over."""
        live = self._live(request)
        ended = structuring.read_request(await read_json_object(request), EndRequest)
        with live.request(), member(self._endless):
            if ended.lines != live.lines_read:
                raise Refused(409, f"{live.lines_read} lines have arrived")
            if ended.is_well:
                await self._take_outputs(live, ended.outputs or {})
            await live.end(Ended(ended.is_well, ended.how[:_MAX_WORDS]))
            await self._jobs.feed(live.attempt.job.id).wait_until_over(live.attempt.id)
        return web.Response(status=204)

    async def _take_outputs(self, live: Live, digests: Mapping[str, str]) -> None:
        """Check that all outputs have arrived as they were sent, and are what they should be."""
        paths = outputs_by_name(live.attempt)
        if digests.keys() != paths.keys():
            raise RequestInvalid("outputs", f"expected {', '.join(sorted(paths))}")
        try:
            async with live.writing:
                if live.closed.is_set():
                    raise _over()
                for name, path in () if live.has_outputs else paths.items():
                    if not await self._store.in_thread(functools.partial(_complete, path, digests[name])):
                        raise Refused(422, f"{name}: is not what was uploaded; upload it again", param="outputs")
                    await self._store.in_thread(functools.partial(check_output, path, live.attempt))
                live.has_outputs = True
        except NotUsable as error:
            # Another worker would make the same of the same data, so the job fails.
            await live.end(Ended(is_well=False, how=f"well, but what its worker uploaded {error}"))
            raise Refused(400, f"what was uploaded {error}", param="outputs") from error


def _description(live: Live) -> dict[str, object]:
    """Return what the command needs to know. This blocks."""
    attempt = live.attempt
    found = {name: path.stat() for name, path in inputs_by_name(attempt).items()}
    # The files of an open model are in a folder; a worker keeps them until one of them changes.
    model = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(found.items()) if "/" in name]
    digest_of_base = attempt.open_model.digest if attempt.open_model else ""
    return {
        "job_id": attempt.job.id,
        "job": trainer_input(attempt, lambda path: path.name),
        "inputs": [{"name": name, "bytes": stat.st_size} for name, stat in found.items()],
        "outputs": list(outputs_by_name(attempt)),
        "model_version": hashlib.sha256(repr((digest_of_base, model)).encode()).hexdigest(),
    }


def _named(files: Mapping[str, Path], request: web.Request) -> Path:
    # A name of the client's never becomes a path: only those are known that the attempt itself has.
    path = files.get(request.match_info["name"])
    if path is None:
        raise Refused(404, "the attempt has no such file", param="name")
    return path


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not re.fullmatch("[0-9]{1,15}", text):
        raise Refused(400, f"{name}: expected a whole number", param=name)
    return int(text)


async def _next_piece(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.content.read(PIECE_BYTES)
    except TimeoutError:
        raise too_slow() from None


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _received(path: Path) -> int:
    """Return the number of bytes of an output that have arrived."""
    if path.exists():
        return path.stat().st_size
    partial = _partial(path)
    return partial.stat().st_size if partial.exists() else 0


def _append(path: Path, piece: bytes, start: int) -> None:
    """Add a piece to an output; what is there from `start` on is replaced."""
    if (arrived := _received(path)) < start or (start and path.exists()):
        raise Refused(409, f"{arrived} bytes have arrived")
    with _partial(path).open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        file.write(piece)
        path.unlink(missing_ok=True)  # It was complete, but its upload has begun anew.


def _complete(path: Path, expected: str) -> bool:
    """Give an output its name, if its SHA-256 is as expected; otherwise remove it."""
    partial = _partial(path)
    arrived = path if path.exists() else partial
    if not arrived.exists():
        return False
    with arrived.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            arrived.unlink()
            return False
        os.fsync(file.fileno())
    arrived.replace(path)
    return True


def _unauthorized(expected: str) -> Refused:
    headers = {"WWW-Authenticate": "Bearer"}
    return Refused(401, f"send {expected}: 'Authorization: Bearer TOKEN'", code="invalid_api_key", headers=headers)


def _over() -> Refused:
    return Refused(410, "the attempt is over; end its trainer")


def _too_large() -> Refused:
    return Refused(413, f"an output may have at most {MAX_OUTPUT_BYTES:,} bytes")
