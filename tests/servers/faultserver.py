"""A fine-tunes service that keeps its books right and breaks its replies as told. Plain asyncio, raw bytes.

`Service` is the service: in memory, correct, without I/O. `FaultServer` puts it on a socket and plays a `Fault` in
chosen exchanges. What the service holds is the ground truth that a test compares with what the client reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import logging
import os
import re
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from urllib.parse import unquote

import attrs

from aiofinetune import FineTuneSession, Retry, Timeout
from tests.servers.rawserver import all_accepted

KEY: Final = "sk-fault-9d2b7c41e8"
"""The key that the tests' sessions send, and that nothing but the service may ever see."""

QUICK: Final = Retry(attempts=3, base=0.001, cap=1, deadline=10, grace=0.02)
"""Tries again at once, and believes after two hundredths of a second that a job which is not listed was not made."""

USUAL: Final = Timeout()
"""Times that nothing here takes."""

Object: TypeAlias = "dict[str, Any]"

ROUTES: Final = (
    ("create_fine_tune", "POST", "/fine-tunes"),
    ("list_fine_tunes", "GET", "/fine-tunes"),
    ("retrieve_fine_tune", "GET", "/fine-tunes/([^/]+)"),
    ("cancel_fine_tune", "POST", "/fine-tunes/([^/]+)/cancel"),
    ("list_fine_tune_events", "GET", "/fine-tunes/([^/]+)/events"),
    ("stream_fine_tune_events", "GET", r"/fine-tunes/([^/]+)/events\?stream=true"),
    ("list_models", "GET", "/models"),
    ("retrieve_model", "GET", "/models/([^/]+)"),
    ("delete_model", "DELETE", "/models/([^/]+)"),
    ("create_completion", "POST", "/completions"),
    ("upload_file", "POST", "/files"),
    ("list_files", "GET", r"/files(?:\?purpose=(?:[^&]+))?"),
    ("retrieve_file", "GET", "/files/([^/]+)"),
    ("download_file", "GET", "/files/([^/]+)/content"),
    ("delete_file", "DELETE", "/files/([^/]+)"),
)


@attrs.frozen
class Request:
    """One request as it came in."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes = b""
    raw_head: bytes = b""

    @property
    def endpoint(self) -> tuple[str, tuple[str, ...]]:
        """The endpoint by the session's name for it, and the ids in the path."""
        path = self.target.removeprefix("/moved").removeprefix("/v1")
        for name, method, pattern in ROUTES:
            if method == self.method and (match := re.fullmatch(pattern, path)):
                return name, tuple(map(unquote, match.groups()))
        return "unknown", ()


@attrs.frozen
class Reply:
    """One reply as it should be."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, *fields: tuple[str, str]) -> bytes:
        """The status line and the headers, these among them, and the empty line."""
        every = (("Content-Type", self.content_type), *self.headers, *fields)
        lines = [f"HTTP/1.1 {self.status} Word", *(f"{name}: {value}" for name, value in every), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    @property
    def raw(self) -> bytes:
        """The whole reply on the wire."""
        return self.head(("Content-Length", str(len(self.body)))) + self.body


def json_reply(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def error_reply(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Reply:
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def sse(event: Object) -> bytes:
    return b"data: %b\n\n" % json.dumps(event).encode()


DONE: Final = b"data: [DONE]\n\n"


class Service:
    """What a right service keeps: jobs, files, models. Its clock runs `skew` seconds ahead of this machine's."""

    def __init__(self) -> None:
        self.jobs: dict[str, Object] = {}
        self.events: dict[str, list[Object]] = {}
        self.files: dict[str, Object] = {}
        self.contents: dict[str, bytes] = {}
        self.models: dict[str, Object] = {}
        self.skew = 0.0
        self.has_date = True
        self.has_more = False
        self.hidden: set[str] = set()
        """Jobs that the list does not show yet."""
        self.defaults: Object = {"n_epochs": 4, "batch_size": 1, "learning_rate_multiplier": 0.1}
        self.overrides: Object = {}
        """Hyperparameters that the service sets as it pleases, whatever was asked for."""
        self.not_ready: set[str] = set()
        """Files that are still being processed."""
        self._count = 0
        self._news = asyncio.Event()

    def now(self) -> float:
        """The service's Unix time."""
        return time.time() + self.skew

    def date(self) -> tuple[tuple[str, str], ...]:
        """The Date header, unless this service sends none."""
        return (("Date", email.utils.formatdate(self.now(), usegmt=True)),) if self.has_date else ()

    # What happens at the service

    def add_file(self, name: str, content: bytes, purpose: str = "fine-tune") -> str:
        """Keep a file; give its id."""
        file_id = self._new_id("file")
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(self.now()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self.contents[file_id] = content
        return file_id

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, `age` seconds ago."""
        job_id = self._new_id("ft")
        given = {name: value for name, value in asked.items() if name not in {"training_file", "validation_file"}}
        self.jobs[job_id] = {
            "id": job_id,
            "object": "fine-tune",
            "model": given.pop("model", "curie"),
            "created_at": int(self.now() - age),
            "updated_at": int(self.now() - age),
            "fine_tuned_model": None,
            "hyperparams": {**self.defaults, **given, **self.overrides},
            "organization_id": "org-1",
            "result_files": [],
            "status": "pending",
            "training_files": [self.files[asked["training_file"]]],
            "validation_files": [self.files[asked["validation_file"]]] if "validation_file" in asked else [],
        }
        self.jobs[job_id]["hyperparams"].pop("suffix", None)
        self.events[job_id] = []
        self.tell(job_id, f"Created fine-tune: {job_id}")
        return job_id

    def tell(self, job_id: str, message: str) -> None:
        """Add an event to a job."""
        event = {"object": "fine-tune-event", "created_at": int(self.now()), "level": "info", "message": message}
        self.events[job_id].append(event)
        self._wake()

    def finish(self, job_id: str, status: str = "succeeded") -> None:
        """End a job."""
        job = self.jobs[job_id]
        if status == "succeeded":
            job["fine_tuned_model"] = f"{job['model']}:ft-org-{job_id}"
            self.models[job["fine_tuned_model"]] = {"id": job["fine_tuned_model"], "object": "model", "created": 1}
            table = b"step,elapsed_tokens,elapsed_examples,training_loss\n1,10,1,0.5\n2,20,2,0.25\n"
            job["result_files"] = [self.files[self.add_file("compiled_results.csv", table, "fine-tune-results")]]
        job["status"] = status
        self.tell(job_id, f"Fine-tune {status}")

    def is_over(self, job_id: str) -> bool:
        """Whether a job has ended."""
        return self.jobs[job_id]["status"] in {"succeeded", "failed", "cancelled"}

    def news(self) -> asyncio.Event:
        """What is set once any job has a further event."""
        return self._news

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _new_id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    # What it answers

    def answer(self, request: Request) -> Reply:
        """Do what is asked, and say what a right service says."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return error_reply(401, "Incorrect API key provided")
        name, ids = request.endpoint
        try:
            reply: Reply = getattr(self, f"_{name}")(request, *ids)
        except KeyError as missing:
            reply = error_reply(404, f"No such object: {missing}")
        return attrs.evolve(reply, headers=(*reply.headers, *self.date()))

    def _unknown(self, request: Request) -> Reply:
        return error_reply(404, f"Unknown request URL: {request.method} {request.target}")

    def _create_fine_tune(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        if asked["training_file"] in self.not_ready:
            return error_reply(400, f"File {asked['training_file']} is still being processed and is not ready")
        return self._retrieve_fine_tune(request, self.add_job(asked))

    def _list_fine_tunes(self, _request: Request) -> Reply:
        shown = [job for job_id, job in self.jobs.items() if job_id not in self.hidden]
        return json_reply({"object": "list", "data": shown, **({"has_more": True} if self.has_more else {})})

    def _retrieve_fine_tune(self, _request: Request, job_id: str) -> Reply:
        return json_reply({**self.jobs[job_id], "events": self.events[job_id]})

    def _cancel_fine_tune(self, request: Request, job_id: str) -> Reply:
        if self.is_over(job_id):
            return error_reply(400, f"Fine-tune {job_id} is already {self.jobs[job_id]['status']}")
        self.finish(job_id, "cancelled")
        return self._retrieve_fine_tune(request, job_id)

    def _list_fine_tune_events(self, _request: Request, job_id: str) -> Reply:
        return json_reply({"object": "list", "data": self.events[job_id]})

    def _stream_fine_tune_events(self, _request: Request, job_id: str) -> Reply:
        body = b"".join(map(sse, self.events[job_id])) + (DONE if self.is_over(job_id) else b"")
        return Reply(200, body, "text/event-stream")

    def _list_models(self, _request: Request) -> Reply:
        return json_reply({"object": "list", "data": list(self.models.values())})

    def _retrieve_model(self, _request: Request, model: str) -> Reply:
        return json_reply(self.models[model])

    def _delete_model(self, _request: Request, model: str) -> Reply:
        return json_reply({"id": self.models.pop(model)["id"], "object": "model", "deleted": True})

    def _create_completion(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        choice = {"text": f" after {asked['prompt']}", "index": 0, "logprobs": None, "finish_reason": "stop"}
        return json_reply({"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": [choice]})

    def _upload_file(self, request: Request) -> Reply:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        parts = {}
        for part in request.body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            fields = dict(re.findall(rb'; (\w+)="([^"]*)"', head))
            parts[fields[b"name"]] = (fields.get(b"filename", b""), content.removesuffix(b"\r\n"))
        name, content = parts[b"file"]
        return json_reply(self.files[self.add_file(name.decode(), content, parts[b"purpose"][1].decode())])

    def _list_files(self, _request: Request) -> Reply:
        return json_reply({"object": "list", "data": list(self.files.values())})

    def _retrieve_file(self, _request: Request, file_id: str) -> Reply:
        return json_reply(self.files[file_id])

    def _download_file(self, _request: Request, file_id: str) -> Reply:
        return Reply(200, self.contents[file_id], "application/octet-stream")

    def _delete_file(self, _request: Request, file_id: str) -> Reply:
        del self.contents[file_id]
        return json_reply({"id": self.files.pop(file_id)["id"], "object": "file", "deleted": True})


@attrs.frozen
class Exchange:
    """One request under way, for a fault to spoil."""

    server: FaultServer
    request: Request
    """Without its body where the fault comes before that is read."""
    reply: Reply
    """What a right service would send; an empty one where the fault keeps the service from being asked."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send bytes, of the reply or in its place."""
        self.writer.write(data)
        await self.writer.drain()

    async def reset(self) -> None:
        """Break the connection, as a machine does that was switched off and on."""
        # Let the bytes that were sent go first; the client may be gone already.
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.writer.transport.abort()

    async def close(self) -> None:
        """End the connection in good order."""
        self.writer.close()

    async def hold(self) -> None:
        """Say no more until the client leaves."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass
        self.writer.close()


@attrs.frozen
class Fault:
    """Something that goes wrong in one exchange.

    Args:
        play: Sends what is sent, and breaks what breaks.
        reads: How much of the request is read first: ``"nothing"``, its ``"head"``, or ``"all"``.
        has_effect: Whether the service does what it is asked.
    """

    play: Callable[[Exchange], Awaitable[None]]
    reads: str = "all"
    has_effect: bool = True


class FaultServer:
    """A `Service` on a free port of this machine, and what goes wrong on the way to it and back.

    Args:
        listens: Whether to listen from the start; until `listen` is called, connections are refused.
    """

    def __init__(self, *, listens: bool = True) -> None:
        self.service = Service()
        self.seen: list[Request] = []
        self.connections: set[asyncio.Task[None]] = set()
        self.failures: list[Exception] = []
        self.elsewhere = ""
        """The URL of another origin, for redirects."""
        self._once: dict[str, deque[Fault]] = {}
        self._always: dict[str, Fault] = {}
        self._listens = listens
        self._starting: list[asyncio.Task[asyncio.Server]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    async def __aenter__(self) -> Self:
        # Bound, but not listening: nobody else gets the port, and connections are refused.
        self._socket = socket.create_server(("127.0.0.1", 0)) if self._listens else socket.socket()
        if self._listens:
            self._start()
        else:
            self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for starting in self._starting:
            server = await starting
            await all_accepted(server.sockets[0].getsockname()[1])
            server.close()
        self._socket.close()
        under_way = list(self.connections)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        if self.failures and error is None:
            raise self.failures[0]

    def listen(self) -> None:
        """Take connections from now on."""
        if not self._listens:
            self._listens = True
            self._socket.listen(100)
            self._start()

    def _start(self) -> None:
        self._starting.append(asyncio.create_task(asyncio.start_server(self._connected, sock=self._socket)))

    def fail(self, endpoint: str, *faults: Fault) -> None:
        """Play these faults in the next exchanges of an endpoint, one each; "" stands for the next connections."""
        self._once.setdefault(endpoint, deque()).extend(faults)

    def fail_always(self, endpoint: str, fault: Fault) -> None:
        """Play a fault in every exchange of an endpoint; "" stands for every connection."""
        self._always[endpoint] = fault

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._once.clear()
        self._always.clear()

    def asked(self) -> list[str]:
        """The endpoints that were called, in order."""
        return [request.endpoint[0] for request in self.seen]

    async def left(self) -> None:
        """Wait until no client is connected any more."""
        async with asyncio.timeout(10):
            await self._idle.wait()

    def _take(self, endpoint: str) -> Fault | None:
        if self._once.get(endpoint):
            return self._once[endpoint].popleft()
        return self._always.get(endpoint)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        self._idle.clear()
        # Small pieces go at once, as asyncio sees to only for sockets of its own making.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as failure:  # noqa: BLE001  # raised where the server is left
            self.failures.append(failure)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self.connections.discard(task)
            if not self.connections:
                self._idle.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nothing = Reply(0, b"")
        fault = self._take("")
        if fault is not None and fault.reads == "nothing":
            return await fault.play(Exchange(self, Request("", "", {}), nothing, reader, writer))
        while not writer.is_closing() and (request := await _read_head(reader)):
            fault = fault or self._take(request.endpoint[0])
            if fault is not None and fault.reads == "head":
                self.seen.append(request)
                return await fault.play(Exchange(self, request, nothing, reader, writer))
            request = attrs.evolve(request, body=await _read_body(request.headers, reader))
            self.seen.append(request)
            reply = self.service.answer(request) if fault is None or fault.has_effect else nothing
            exchange = Exchange(self, request, reply, reader, writer)
            if fault is not None:
                await fault.play(exchange)
            elif request.endpoint[0] == "stream_fine_tune_events" and reply.status == 200:
                await self.stream(exchange)
            else:
                await exchange.send(reply.raw)
            fault = None
        return None

    async def stream(self, exchange: Exchange, cut_at: int | None = None) -> None:
        """Stream a job's events as they happen; with `cut_at`, only so many bytes of them."""
        (job_id,) = exchange.request.endpoint[1]
        await exchange.send(exchange.reply.head(("Transfer-Encoding", "chunked")))
        told = sent = 0
        is_done = False
        gone = asyncio.create_task(exchange.reader.read(1))
        try:
            while not is_done:
                news = self.service.news()
                is_done = self.service.is_over(job_id)
                events = self.service.events[job_id]
                data = b"".join(map(sse, events[told:])) + (DONE if is_done else b"")
                told = len(events)
                if cut_at is not None:
                    data = data[: cut_at - sent]
                if data:
                    sent += len(data)
                    await exchange.send(chunk(data))
                if sent == cut_at:
                    return
                if not is_done:
                    waiting = asyncio.create_task(news.wait())
                    await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    if gone.done():
                        raise ConnectionResetError
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        await exchange.send(chunk(b""))


async def _read_head(reader: asyncio.StreamReader) -> Request | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _version = first.split()
    fields = (line.partition(":") for line in lines)
    return Request(method, target, {name.lower(): value.strip() for name, _, value in fields}, raw_head=raw)


async def _read_body(headers: Mapping[str, str], reader: asyncio.StreamReader) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(pieces)


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# Faults, in the order in which an exchange goes


def cut(position: Callable[[Exchange], bytes], end: Callable[[Exchange], Awaitable[None]], **kind: Any) -> Fault:
    """Send what `position` gives of the reply, and then `end` the connection."""

    async def play(exchange: Exchange) -> None:
        await exchange.send(position(exchange))
        await end(exchange)

    return Fault(play, **kind)


def answer(reply: Callable[[Exchange], bytes], *, has_effect: bool = True) -> Fault:
    """Send these bytes in place of the reply, and leave the connection open."""

    async def play(exchange: Exchange) -> None:
        await exchange.send(reply(exchange))

    return Fault(play, has_effect=has_effect)


def status(code: int, *, retry_after: str | None = None, has_effect: bool = False, message: str = "Sorry") -> Fault:
    """Answer with an error in the API's envelope."""

    def reply(exchange: Exchange) -> bytes:
        headers = exchange.server.service.date() + ((("Retry-After", retry_after),) if retry_after else ())
        return attrs.evolve(error_reply(code, message, "server_error"), headers=headers).raw

    return answer(reply, has_effect=has_effect)


def _head(exchange: Exchange) -> bytes:
    return exchange.reply.head(("Content-Length", str(len(exchange.reply.body))))


def _half(exchange: Exchange) -> bytes:
    return exchange.reply.body[: len(exchange.reply.body) // 2]


def _nothing(_exchange: Exchange) -> bytes:
    return b""


def _chunked(exchange: Exchange, *chunks: bytes) -> bytes:
    return exchange.reply.head(("Transfer-Encoding", "chunked")) + b"".join(chunks)


def _with_length(exchange: Exchange, length: int) -> bytes:
    return exchange.reply.head(("Content-Length", str(length))) + exchange.reply.body


def _compressed(exchange: Exchange, encoding: str, data: bytes) -> bytes:
    return exchange.reply.head(("Content-Encoding", encoding), ("Content-Length", str(len(data)))) + data


def gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return compressor.compress(data) + compressor.flush()


def _in_two_members(exchange: Exchange) -> bytes:
    """As RFC 1952, section 2.2, allows."""
    half = _half(exchange)
    return _compressed(exchange, "gzip", gzip(half) + gzip(exchange.reply.body[len(half) :]))


def _bomb(exchange: Exchange) -> bytes:
    """The reply's own body after 4 MiB of spaces, which JSON and event streams do not mind."""
    return _compressed(exchange, "gzip", gzip(b" " * (4 << 20) + exchange.reply.body))


def _without_length(body: Callable[[Exchange], bytes]) -> Callable[[Exchange], bytes]:
    return lambda exchange: exchange.reply.head(("Connection", "close")) + body(exchange)


def _body(exchange: Exchange) -> bytes:
    return exchange.reply.body


def _instead(body: bytes, content_type: str | None = None) -> Callable[[Exchange], bytes]:
    """Another body in place of the reply's own."""

    def reply(exchange: Exchange) -> bytes:
        kind = content_type or exchange.reply.content_type
        if kind == "text/event-stream" and body:
            return attrs.evolve(exchange.reply, body=b"data: %b\n\n" % body).raw
        return attrs.evolve(exchange.reply, body=body, content_type=kind).raw

    return reply


def _page(code: int, *, size: int = 200) -> Callable[[Exchange], bytes]:
    page = b"<html><h1>Bad Gateway</h1>" + b"<p>nginx</p>" * (size // 12)
    return lambda exchange: Reply(code, page, "text/html; charset=utf-8", exchange.server.service.date()).raw


def _redirect(url: Callable[[Exchange], str]) -> Fault:
    return answer(lambda exchange: Reply(307, b"", headers=(("Location", url(exchange)),)).raw, has_effect=False)


async def _move(exchange: Exchange) -> None:
    """Send the client to another path, and answer there."""
    target = exchange.request.target
    is_there = target.startswith("/moved")
    moved = Reply(307, b"", headers=(("Location", f"/moved{target}"),))
    await exchange.send((exchange.server.service.answer(exchange.request) if is_there else moved).raw)


def _headers(*fields: tuple[str, str]) -> Callable[[Exchange], bytes]:
    return lambda exchange: attrs.evolve(exchange.reply, headers=(*exchange.reply.headers, *fields)).raw


def _echo(code: int) -> Callable[[Exchange], bytes]:
    """A page that shows the key, in its headers too."""

    def reply(exchange: Exchange) -> bytes:
        shown = f"{exchange.request.headers['authorization']} is what you sent"
        return Reply(code, shown.encode(), "text/plain", (("X-Request-Id", shown),)).raw

    return reply


async def _read_half(exchange: Exchange) -> None:
    length = int(exchange.request.headers.get("content-length", "0"))
    await exchange.reader.readexactly(length // 2)
    await exchange.reset()


async def _drip(exchange: Exchange) -> None:
    """Send the reply byte by byte, each one a packet."""
    for byte in exchange.reply.raw:
        await exchange.send(bytes((byte,)))
        await asyncio.sleep(0)


FAULTS: Final[Mapping[str, Fault]] = {
    "reset before the request is read": Fault(Exchange.reset, reads="nothing", has_effect=False),
    "reset after the request's head": Fault(Exchange.reset, reads="head", has_effect=False),
    "reset inside the request's body": Fault(_read_half, reads="head", has_effect=False),
    "reset after the request, no effect": Fault(Exchange.reset, has_effect=False),
    "reset after the request": Fault(Exchange.reset),
    "closed after the request, no effect": Fault(Exchange.close, has_effect=False),
    "closed after the request": Fault(Exchange.close),
    "reset inside the status line": cut(lambda exchange: _head(exchange)[:7], Exchange.reset),
    "reset inside the headers": cut(lambda exchange: _head(exchange)[:30], Exchange.reset),
    "closed inside the headers": cut(lambda exchange: _head(exchange)[:30], Exchange.close),
    "reset after the headers": cut(_head, Exchange.reset),
    "reset inside the body": cut(lambda exchange: _head(exchange) + _half(exchange), Exchange.reset),
    "closed inside the body": cut(lambda exchange: _head(exchange) + _half(exchange), Exchange.close),
    "reset inside a chunked body": cut(
        lambda exchange: _chunked(exchange, chunk(_half(exchange))), Exchange.reset
    ),
    "closed inside a chunked body": cut(
        lambda exchange: _chunked(exchange, chunk(_half(exchange))), Exchange.close
    ),
    "closed inside a chunk": cut(
        lambda exchange: _chunked(exchange, chunk(exchange.reply.body)[:-9]), Exchange.close
    ),
    "bad chunk size": cut(lambda exchange: _chunked(exchange, chunk(_half(exchange)), b"zz\r\n"), Exchange.close),
    "no length, closed inside the body": cut(_without_length(_half), Exchange.close),
    "no length, closed after the body": cut(_without_length(_body), Exchange.close),
    "length too long": cut(lambda exchange: _with_length(exchange, len(exchange.reply.body) + 1), Exchange.close),
    "length too short": cut(lambda exchange: _with_length(exchange, len(exchange.reply.body) - 1), Exchange.close),
    "stall before the reply": Fault(Exchange.hold),
    "stall before the reply, no effect": Fault(Exchange.hold, has_effect=False),
    "stall inside the headers": cut(lambda exchange: _head(exchange)[:30], Exchange.hold),
    "stall inside the body": cut(lambda exchange: _head(exchange) + _half(exchange), Exchange.hold),
    "no HTTP": cut(lambda _exchange: b"220 mail ESMTP\r\n\x00\xff\r\n\r\n", Exchange.close),
    "no HTTP, the request echoed": cut(lambda exchange: exchange.request.raw_head, Exchange.close),
    "no HTTP, the key echoed": cut(
        lambda exchange: exchange.request.headers["authorization"].encode() + b"\r\n\r\n", Exchange.close
    ),
    "500": status(500, has_effect=True),
    "500, no effect": status(500),
    "500 with Retry-After, no effect": status(500, retry_after="0"),
    "502": status(502, has_effect=True),
    "502, no effect": status(502),
    "502 page": answer(_page(502)),
    "502 page, no effect": answer(_page(502), has_effect=False),
    "502 page of a megabyte, no effect": answer(_page(502, size=1 << 20), has_effect=False),
    "503": status(503, has_effect=True),
    "503, no effect": status(503),
    "503 with Retry-After, no effect": status(503, retry_after="0"),
    "429": status(429),
    "429 with Retry-After": status(429, retry_after="0"),
    "429, no quota": status(429, message="You exceeded your current quota, please check your plan"),
    "429, too many jobs": status(429, message="You have too many active jobs"),
    "400": status(400),
    "401": status(401),
    "403": status(403),
    "404": status(404),
    "418": status(418),
    "400 with the key echoed": answer(_echo(400), has_effect=False),
    "500 with the key echoed": answer(_echo(500)),
    "200 with the key echoed": answer(_echo(200)),
    "200 with the key in a wrong field": answer(_instead(json.dumps({"id": [KEY], "data": KEY}).encode())),
    "200 with the key in an error": answer(_instead(json.dumps({"error": f"wrong key {KEY}"}).encode())),
    "200 empty": answer(_instead(b"")),
    "200 with broken JSON": answer(_instead(b'{"id": ')),
    "200 with another shape": answer(_instead(b'{"data": 1, "id": 2}')),
    "200 with a page": answer(_instead(b"<html>Please log in</html>", "text/html")),
    "redirect within the origin": Fault(_move, has_effect=False),
    "redirect elsewhere": _redirect(lambda exchange: exchange.server.elsewhere + exchange.request.target[3:]),
    "redirect elsewhere, with the key": _redirect(lambda exchange: f"{exchange.server.elsewhere}?key={KEY}"),
    "redirect in a circle": _redirect(lambda exchange: exchange.request.target),
    "redirect in a circle, with the key": _redirect(lambda exchange: f"{exchange.request.target}#{KEY}?{KEY}"),
    "drip": Fault(_drip),
    "gzip": answer(lambda exchange: _compressed(exchange, "gzip", gzip(exchange.reply.body))),
    "deflate": answer(lambda exchange: _compressed(exchange, "deflate", zlib.compress(exchange.reply.body))),
    "gzip in two members": answer(_in_two_members),
    "deflate without its wrapper": answer(
        lambda exchange: _compressed(exchange, "deflate", zlib.compress(exchange.reply.body, wbits=-zlib.MAX_WBITS))
    ),
    # By its trailer alone: the byte before it holds the end of the text, or does not, as the times in that fall out.
    "gzip cut short": answer(lambda exchange: _compressed(exchange, "gzip", gzip(exchange.reply.body)[:-8])),
    "gzip that is none": answer(lambda exchange: _compressed(exchange, "gzip", exchange.reply.body)),
    "gzip bomb": answer(_bomb),
    "encoding unknown": answer(lambda exchange: _compressed(exchange, "br", exchange.reply.body)),
    "headers twice": answer(_headers(("Content-Type", "text/plain"), ("Server", "a"), ("Server", "b"))),
    "headers odd": answer(_headers(("x!#$%&'*+-.^_`|~9", "odd"), ("X-Empty", ""), ("X-Latin", "caf\xe9"))),
    "header of 8,000 bytes": answer(_headers(("X-Long", "a" * 8000))),
    "header of 100,000 bytes": cut(_headers(("X-Long", "a" * 100_000)), Exchange.close),
    "103 first": answer(lambda exchange: b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + exchange.reply.raw),
}  # fmt: skip
"""What can go wrong in one exchange. Unless its name says so, the service has done what it was asked."""


# What every test of faults needs


def session_for(server: FaultServer, *, retry: Retry = QUICK, timeout: Timeout = USUAL) -> FineTuneSession:
    """A session with the tests' key, which tries again at once."""
    return FineTuneSession(KEY, base_url=server.base_url, retry=retry, timeout=timeout)


@asynccontextmanager
async def nothing_left_open() -> AsyncIterator[None]:
    """Check that the block leaves no task running and no file, pipe or socket open."""
    tasks, files = asyncio.all_tasks(), _open_files()
    yield
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            # A connection that was closed is gone after a few rounds of the loop, however slow the machine.
            while not (asyncio.all_tasks() <= tasks and _open_files() <= files):
                await asyncio.sleep(0.001)
    assert asyncio.all_tasks() <= tasks
    assert _open_files() <= files


def _open_files() -> set[str]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208  # thousands of times: pathlib takes ten times as long
        # The listing's own descriptor is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")  # noqa: PTH115  # likewise
    return found


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that led to it."""
    left, seen = [error], set()
    while left:
        found = left.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            left += [found.__cause__, found.__context__]


def assert_hidden(error: BaseException | None, records: list[logging.LogRecord]) -> None:
    """Check that neither an error, nor what led to it, nor the log shows the key."""
    for found in chain(error):
        shown = (str(found), repr(found), repr(found.args), repr(getattr(found, "__notes__", ())), repr(vars(found)))
        assert not [text for text in shown if KEY in text], f"{type(found).__name__} shows the key"
    for record in records:
        assert KEY not in f"{record.getMessage()} {record.args!r}", f"a log record of {record.name} shows the key"


class OnRetry(logging.Handler):
    """Calls a function when the client says in its log that it will try again."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(logging.INFO)
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record."""
        if ", failure " in record.getMessage():
            self._function()

    def __enter__(self) -> Self:
        logger = logging.getLogger("aiofinetune")
        self._level_before = logger.level
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        logger.addHandler(self)
        return self

    def __exit__(self, *_exception: object) -> None:
        logger = logging.getLogger("aiofinetune")
        logger.setLevel(self._level_before)
        logger.removeHandler(self)
