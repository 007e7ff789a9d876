from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import io
import logging
import random
import re
import socket
import threading
import traceback
import tracemalloc
import warnings
import zlib
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from aiofinetune import (
    APIError,
    AuthenticationFailed,
    BadRequest,
    ConfigurationError,
    Conflict,
    ConnectFailed,
    ConnectionLost,
    CreateUncertain,
    Deleted,
    File,
    FineTune,
    FineTuneError,
    FineTuneRequest,
    FineTuneSession,
    LocalFileError,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    RateLimited,
    ReplyTimeout,
    RequestInvalid,
    Retry,
    ServerError,
    StreamInterrupted,
)
from tests.servers.rawserver import (
    FAST,
    JOB,
    KEY,
    STREAM_HEAD,
    Received,
    answering,
    chunk,
    event,
    knowing_file,
    reply,
    serve,
    session_for,
    talking_to,
    targets,
)

pytestmark = pytest.mark.fastforward

Call: TypeAlias = Callable[[FineTuneSession], Awaitable[object]]

REQUEST = FineTuneRequest(training_file="file-1", model="ada", n_epochs=2)
ONCE = Retry(attempts=1, grace=0.01)
FILE = {"id": "file-1", "object": "file", "bytes": 5, "filename": "train.jsonl", "purpose": "fine-tune"}
MODELS = {"object": "list", "data": [{"id": "ada", "object": "model"}]}


def list_models(session: FineTuneSession) -> Awaitable[object]:
    return session.list_models()


def create(session: FineTuneSession) -> Awaitable[object]:
    return session.create_fine_tune(REQUEST)


# Setting up


def test_no_key() -> None:
    """Without a key there is no session, and the error says how to give one."""
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        FineTuneSession()
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        FineTuneSession("")


@pytest.mark.parametrize(
    "key", ["sk-hidden\n", " sk-hidden", "sk-hid\r\nden", "sk-hidden\x00", "sk-hiddén", "sk-hidden\x7f"]
)
def test_key_that_is_no_header(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that cannot stand in a header is refused without being shown, given or from the environment."""
    with pytest.raises(ConfigurationError, match=r"^api_key: ") as caught:
        FineTuneSession(key)
    assert "hid" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", key.replace("\0", "\x01"))
    with pytest.raises(ConfigurationError, match=r"^api_key: "):
        FineTuneSession()


@pytest.mark.parametrize("organization", ["org-1\n", "org-1\r\nX: y", "örg"])
def test_organization_that_is_no_header(organization: str) -> None:
    """An organization cannot smuggle a header in."""
    with pytest.raises(ConfigurationError, match=r"^organization: "):
        FineTuneSession(KEY, organization=organization)


async def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, service and organization come from the environment where they are not given."""
    seen: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=seen)) as url:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
        monkeypatch.setenv("OPENAI_BASE_URL", url + "/")
        monkeypatch.setenv("OPENAI_ORG_ID", "org-env")
        async with FineTuneSession() as session:
            assert session.base_url == url
            await session.list_models()
        async with FineTuneSession("sk-given", base_url=url + "/other", organization="org-given") as session:
            await session.list_models()
    assert [request.headers["authorization"] for request in seen] == ["Bearer sk-env", "Bearer sk-given"]
    assert [request.headers["openai-organization"] for request in seen] == ["org-env", "org-given"]
    assert targets(seen) == ["GET /v1/models", "GET /v1/other/models"]


def test_default_service() -> None:
    """Where nothing is said, the service is the reference's own."""
    assert FineTuneSession(KEY).base_url == "https://api.openai.com/v1"


@pytest.mark.parametrize("url", ["http://service.test/v1", "service.test", "https://service.test/v1?key=x"])
def test_unsafe_service(url: str) -> None:
    """A base URL that is wrong, or would carry the key in plain text, is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match=r"^base_url: "):
        FineTuneSession(KEY, base_url=url)


def test_repr() -> None:
    """A session shows where it goes to, and not the key."""
    session = FineTuneSession(KEY, base_url="https://service.test/v1")
    assert repr(session) == "FineTuneSession(base_url='https://service.test/v1')"
    for value in vars(session).values():
        assert KEY not in repr(value)


async def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy that the environment names is used for other machines, and never for this one."""
    seen: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=seen)) as proxy, serve(answering(reply(body=MODELS))) as local:
        monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
        async with FineTuneSession(KEY, base_url="http://service.test/v1", allow_plain_http=True) as session:
            await session.list_models()
        async with session_for(local) as session:
            await session.list_models()
    assert targets(seen) == ["GET http://service.test/v1/models"]


@pytest.mark.parametrize("user", ["", "me:pass-word@"])
async def test_proxy_without_a_scheme(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    """A proxy that is named by host and port alone, as curl takes it, is one of http."""
    seen: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=seen)) as proxy:
        monkeypatch.setenv("http_proxy", user + proxy.removeprefix("http://").removesuffix("/v1"))
        async with FineTuneSession(KEY, base_url="http://service.test/v1", allow_plain_http=True) as session:
            await session.list_models()
    assert targets(seen) == ["GET http://service.test/v1/models"]
    assert seen[0].headers.get("proxy-authorization", "") == (user and "Basic bWU6cGFzcy13b3Jk")


@pytest.mark.parametrize("is_borrowed", [False, True])
async def test_proxy_does_not_get_the_key(monkeypatch: pytest.MonkeyPatch, is_borrowed: bool) -> None:
    """A proxy that is asked for a tunnel sees neither the key nor anything else that is for the service."""
    seen: list[Received] = []
    async with (
        serve(answering(reply(502, connection="close"), seen=seen)) as proxy,
        aiohttp.ClientSession() as http,
    ):
        monkeypatch.setenv("https_proxy", proxy.removesuffix("/v1"))
        url = "https://service.test/v1"
        async with FineTuneSession(KEY, base_url=url, retry=ONCE, http=http if is_borrowed else None) as session:
            for call in (session.list_models(), session.create_fine_tune(REQUEST)):
                with pytest.raises(ConnectFailed):
                    await call
    assert targets(seen) == ["CONNECT service.test:443"] * 2
    for request in seen:
        assert KEY not in str(request.headers)
        assert "idempotency-key" not in request.headers


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail\r\n", b""], ids=["http", "smtp", ""]
)
async def test_no_tls(answer: bytes) -> None:
    """A server that does not speak TLS is named as such."""

    async def plain(reader: asyncio.StreamReader, writer: StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with session_for(f"https://127.0.0.1:{port}/v1", retry=ONCE) as session:
            with pytest.raises(ConnectFailed, match=f"127.0.0.1:{port} .*not speak TLS on this port") as caught:
                await session.list_models()
    assert "None" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://127.0.0.1:9",
        "http://me:pass-word@127.0.0.1:99999",
        "http://me:pass-word@:80",
        "http://me:pass-word@[::1",
        "me:pass-word@host:none",
        "ho st:80",
        "://me:pass-word@host",
    ],
)
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY"])
def test_unusable_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str, variable: str) -> None:
    """A proxy that cannot be used is an error of configuration that names the variable, and not its password."""
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(ConfigurationError, match=f"^{variable} names a proxy") as caught:
        FineTuneSession(KEY)
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("no_proxy", "service.test")
    FineTuneSession(KEY, base_url="https://service.test/v1")


async def test_refusing_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A create that the proxy did not let out was not sent, and nothing shows the proxy's password."""
    async with serve(answering(reply(407, connection="close"))) as proxy:
        monkeypatch.setenv("https_proxy", proxy.removesuffix("/v1").replace("//", "//me:pass-word@"))
        async with FineTuneSession(KEY, base_url="https://service.test/v1", retry=ONCE) as session:
            with pytest.raises(ConnectFailed, match="the proxy refused to connect: 407") as caught:
                await session.create_fine_tune(REQUEST)
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))


# Borrowed and own


async def test_borrowed_session_stays_open() -> None:
    """A ClientSession that was handed in is used, and left open."""
    seen: list[Received] = []
    async with (
        serve(answering(reply(body=MODELS), seen=seen)) as url,
        aiohttp.ClientSession(headers={"X-Lent": "1"}) as http,
    ):
        async with FineTuneSession(KEY, base_url=url, http=http) as session:
            await session.list_models()
        assert not http.closed
        assert seen[0].headers["x-lent"] == "1"
        with pytest.raises(FineTuneError, match="closed"):
            await session.list_models()


@pytest.mark.parametrize("is_borrowed", [False, True])
async def test_headers_on_the_wire(is_borrowed: bool) -> None:
    """Calls ask for JSON, and streams for events as they come, with our name and key, whoever made the connections."""
    seen: list[Received] = []
    models = reply(body=MODELS, content_type="application/json")
    async with serve(answering(models, seen=seen)) as url, contextlib.AsyncExitStack() as resources:
        http = await resources.enter_async_context(aiohttp.ClientSession()) if is_borrowed else None
        session = await resources.enter_async_context(FineTuneSession(KEY, base_url=url, http=http))
        await session.list_models()
        with pytest.raises(ProtocolViolation, match="does not stream"):
            async with session.stream_fine_tune_events("ft-1"):
                pass
    for request in seen:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["user-agent"].startswith("aiofinetune/")
    accepted = [(request.headers["accept"], request.headers["accept-encoding"]) for request in seen]
    assert accepted == [("application/json", "gzip, deflate"), ("text/event-stream", "identity")]


async def test_borrowed_session_with_a_key_of_its_own() -> None:
    """One that would send another key than ours is an error of configuration, for aiohttp sends neither."""
    with warnings.catch_warnings():
        # Newer versions of aiohttp want it said otherwise.
        warnings.simplefilter("ignore", DeprecationWarning)
        lent = aiohttp.ClientSession(auth=aiohttp.BasicAuth("name", "word"))
    async with (
        serve(answering(reply(body=MODELS))) as url,
        lent as http,
        FineTuneSession(KEY, base_url=url, http=http) as session,
    ):
        with pytest.raises(ConfigurationError, match="AUTH"):
            await session.list_models()


async def test_closed_borrowed_session() -> None:
    """A ClientSession that its owner has closed is said to be, rather than failing as aiohttp does."""
    async with serve(answering(reply(body=MODELS))) as url:
        http = aiohttp.ClientSession()
        session = FineTuneSession(KEY, base_url=url, http=http)
        await http.close()
        with pytest.raises(FineTuneError, match="closed"):
            await session.list_models()


async def test_own_session_is_closed() -> None:
    """Leaving the session closes its connections, and it cannot be used any more."""
    gone = asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(reply(body=MODELS))
        await request.gone()
        gone.set()

    async with serve(handler) as url:
        async with session_for(url) as session:
            await session.list_models()
            assert not gone.is_set()
        await gone.wait()
        for call in (list_models, create):
            with pytest.raises(FineTuneError, match="closed"):
                await call(session)
        await session.aclose()


async def test_unused_session() -> None:
    """A session that was never used is closed without a word."""
    async with session_for("http://127.0.0.1:1/v1"):
        pass


async def test_no_cookies() -> None:
    """What a service puts in a cookie is not sent back: a session has no state but its own."""
    seen: list[Received] = []
    answers = answering(reply(body=MODELS, Set_Cookie="a=b; Path=/"), seen=seen)
    # By name, for aiohttp keeps no cookies of bare addresses.
    async with serve(answers) as url, session_for(url.replace("127.0.0.1", "localhost")) as session:
        await session.list_models()
        await session.list_models()
    assert all("cookie" not in request.headers for request in seen)


# Each endpoint


JOBS = {"object": "list", "data": [JOB]}
EVENTS = {"object": "list", "data": [{"object": "fine-tune-event", "message": "hello"}]}
GONE = {"id": "x", "object": "file", "deleted": True}
COMPLETION = {"id": "cmpl-1", "choices": [{"text": " yes", "index": 0}]}


@pytest.mark.parametrize(
    ("call", "answer", "line"),
    [
        (create, JOB, "POST /v1/fine-tunes"),
        (lambda session: session.list_fine_tunes(), JOBS, "GET /v1/fine-tunes"),
        (lambda session: session.retrieve_fine_tune("ft-1"), JOB, "GET /v1/fine-tunes/ft-1"),
        (lambda session: session.cancel_fine_tune("ft-1"), JOB, "POST /v1/fine-tunes/ft-1/cancel"),
        (lambda session: session.list_fine_tune_events("ft-1"), EVENTS, "GET /v1/fine-tunes/ft-1/events"),
        (list_models, MODELS, "GET /v1/models"),
        (lambda session: session.retrieve_model("ada:ft-x/y"), {"id": "ada"}, "GET /v1/models/ada%3Aft-x%2Fy"),
        (lambda session: session.delete_model("ada:ft-x"), GONE, "DELETE /v1/models/ada%3Aft-x"),
        (lambda session: session.create_completion("ada", "hi"), COMPLETION, "POST /v1/completions"),
        (lambda session: session.upload_file(b"x"), FILE, "POST /v1/files"),
        (lambda session: session.list_files(), {"data": [FILE]}, "GET /v1/files"),
        (lambda session: session.list_files("fine-tune"), {"data": [FILE]}, "GET /v1/files?purpose=fine-tune"),
        (lambda session: session.retrieve_file("file-1"), FILE, "GET /v1/files/file-1"),
        (lambda session: session.delete_file("file-1"), GONE, "DELETE /v1/files/file-1"),
    ],
)
async def test_request_line(call: Call, answer: object, line: str) -> None:
    """Each coroutine calls its endpoint once, with the headers that every call has."""
    seen: list[Received] = []
    async with (
        serve(answering(reply(body=answer), seen=seen)) as url,
        FineTuneSession(KEY, base_url=url, organization="org-1") as session,
    ):
        assert await call(session)
    assert targets(seen) == [line]
    headers = seen[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["openai-organization"] == "org-1"
    assert headers["user-agent"].startswith("aiofinetune/")
    assert headers["accept"] == "application/json"
    assert headers["accept-encoding"] == "gzip, deflate"


async def test_download_request() -> None:
    """A download asks for the file's size, then for its content just as it is."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body={**FILE, "bytes": 4}), reply(body=b"data"), seen=seen)) as session:
        assert await session.download_file("file-1") == b"data"
    assert targets(seen) == ["GET /v1/files/file-1", "GET /v1/files/file-1/content"]
    assert seen[1].headers["accept"] == "*/*"
    assert seen[1].headers["accept-encoding"] == "identity"


async def test_create() -> None:
    """A job is created by what was asked for as JSON, with a key that differs from job to job."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=JOB), reply(body={**JOB, "id": "ft-2"}), seen=seen)) as session:
        job = await session.create_fine_tune(REQUEST)
        await session.create_fine_tune(REQUEST)
    assert (job.id, job.status) == ("ft-1", "running")
    assert seen[0].body == b'{"training_file":"file-1","model":"ada","n_epochs":2}'
    assert seen[0].headers["content-type"] == "application/json"
    assert seen[0].headers["idempotency-key"] != seen[1].headers["idempotency-key"]


async def test_listings() -> None:
    """A listing is a tuple of what is in it, in the service's order."""
    data = [{"id": "b"}, {"id": "a"}]
    async with talking_to(answering(reply(body={"data": data}))) as session:
        assert [model.id for model in await session.list_models()] == ["b", "a"]
        assert [file.id for file in await session.list_files()] == ["b", "a"]
    async with talking_to(answering(reply(body=EVENTS))) as session:
        assert [said.message for said in await session.list_fine_tune_events("ft-1")] == ["hello"]
    async with talking_to(answering(reply(body=JOBS))) as session:
        assert [job.id for job in await session.list_fine_tunes()] == ["ft-1"]


@pytest.mark.parametrize(
    ("parameters", "body"),
    [
        ({"prompt": "hi"}, b'{"model":"ada","prompt":"hi"}'),
        ({"prompt": ("a", "b")}, b'{"model":"ada","prompt":["a","b"]}'),
        (
            {"prompt": "hi", "max_tokens": 1, "temperature": 0, "stop": ("\n",), "logprobs": 2, "seed": 7},
            b'{"model":"ada","prompt":"hi","max_tokens":1,"temperature":0,"stop":["\\n"],"logprobs":2,"seed":7}',
        ),
        ({"prompt": "hi", "stop": "\n"}, b'{"model":"ada","prompt":"hi","stop":"\\n"}'),
    ],
)
async def test_completion(parameters: dict[str, Any], body: bytes) -> None:
    """A completion is asked for with what was given, and nothing that was not."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=COMPLETION), seen=seen)) as session:
        completion = await session.create_completion("ada", **parameters)
    assert completion.text == " yes"
    assert seen[0].body == body


@pytest.mark.parametrize(
    "parameters", [{"prompt": "\ud800"}, {"prompt": "x", "seed": 2**64}, {"prompt": "x", "stop": [b"x"]}]
)
async def test_completion_that_json_cannot_hold(parameters: dict[str, Any]) -> None:
    """What JSON cannot hold is a wrong request, and nothing is sent."""
    async with session_for("http://127.0.0.1:1/v1") as session:
        with pytest.raises(RequestInvalid):
            await session.create_completion("ada", **parameters)


async def test_results(samples: Path) -> None:
    """The results of a job are its results file, read; a job that was listed before it had one is looked up again."""
    finished = {**JOB, "status": "succeeded", "result_files": [{"id": "file-r"}]}
    csv = reply(body=(samples / "compiled_results.csv").read_bytes())
    seen: list[Received] = []
    answers = answering(reply(body=JOB), reply(body=finished), csv, seen=seen)
    async with talking_to(knowing_file(0, answers)) as session:
        job = await session.retrieve_fine_tune("ft-1")
        rows = await session.results(job)
        assert [row.step for row in rows] == [1, 2, 3]
    assert targets(seen)[1:] == ["GET /v1/fine-tunes/ft-1", "GET /v1/files/file-r/content"]


async def test_no_results() -> None:
    """A job that has no results says so, with its status."""
    async with talking_to(answering(reply(body=JOB))) as session:
        job = await session.retrieve_fine_tune("ft-1")
        with pytest.raises(NotFound, match="running"):
            await session.results(job)


async def test_retired_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 404 of the reference's own service, which retired the endpoint, says what to do; no other service's does."""
    seen: list[Received] = []
    async with talking_to(answering(reply(404, {"error": "gone"}), seen=seen)) as session:
        with pytest.raises(NotFound, match=r"^404: gone$"):
            await session.list_fine_tunes()
        monkeypatch.setattr("aiofinetune.dialects._fine_tunes.DEFAULT_BASE_URL", session.base_url)
        with pytest.raises(NotFound, match=r"^404: gone\. .*OPENAI_BASE_URL"):
            await session.list_fine_tunes()
    assert len(seen) == 2


# Replies that are wrong


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, AuthenticationFailed),
        (403, PermissionDenied),
        (404, NotFound),
        (409, Conflict),
        (418, APIError),
        (422, BadRequest),
        (429, RateLimited),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
    ],
)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"error": {"message": "said so", "type": "t", "param": None, "code": None}},
            r"said so \(type t, request id r-7\)",
        ),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"", "empty body"),
    ],
    ids=["envelope", "page", "nothing"],
)
async def test_errors(status: int, kind: type[APIError], body: object, words: str) -> None:
    """An error is of the class of its status, with the service's words or the start of what came in their place."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status, body, X_Request_ID="r-7"), seen=seen), retry=ONCE) as session:
        with pytest.raises(kind, match=f"^{status}: .*{words}") as caught:
            await session.list_models()
        assert type(caught.value) is kind
        assert caught.value.request_id == "r-7"
    assert len(seen) == 1


@pytest.mark.parametrize(
    "raw",
    [
        reply(body=b""),
        reply(body=b"<html>sign in</html>"),
        reply(body=b"\xff\xfe"),
        reply(body=b'{"data": [{"id": 7}]}'),
        reply(body=b"[]"),
        reply(204),
        b"HTTP/1.1 OK\r\n\r\n",
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
    ],
    ids=range(13),
)
async def test_no_reply_of_this_api(raw: bytes) -> None:
    """What is neither this API nor HTTP is a violation, and is not asked for again."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(raw)
        writer.close()

    async with talking_to(handler) as session:
        with pytest.raises(ProtocolViolation):
            await session.list_models()
    assert len(seen) == 1


CUT = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Le",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    STREAM_HEAD + chunk(b'{"data":'),
    STREAM_HEAD + b"5\r\n{",
]


@pytest.mark.parametrize("raw", CUT)
async def test_cut_reply(raw: bytes) -> None:
    """A reply that is cut off is a lost connection: asked for again by a GET, never by what creates something."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(raw)
        writer.close()

    async with talking_to(handler, retry=Retry(attempts=3, base=0.001, cap=0.001, grace=0.01)) as session:
        with pytest.raises(ConnectionLost):
            await session.list_models()
        assert len(seen) == 3
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
        assert targets(seen).count("POST /v1/fine-tunes") == 1


async def test_cut_compressed_reply() -> None:
    """A compressed reply whose end is missing is a lost connection, though its own length is right."""
    packed = gzip.compress(b'{"data": []}' + b" " * 1000)[:-9]
    async with talking_to(answering(reply(body=packed, Content_Encoding="gzip")), retry=ONCE) as session:
        with pytest.raises(ConnectionLost):
            await session.list_models()


# Compression


async def test_a_small_body_that_stands_for_a_large_one_lets_others_run() -> None:
    """While a stream's body unfolds to tens of megabytes without an event, others on the loop have their turn."""
    packed = gzip.compress(b": kept alive\n" * 2**20)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    head = reply(body=packed, content_type="text/event-stream", Content_Encoding="gzip")
    async with talking_to(answering(head), retry=ONCE) as session, asyncio.TaskGroup() as group:
        busy = group.create_task(others())
        async with session.stream_fine_tune_events("ft-1") as stream:
            before = turns
            with pytest.raises(StreamInterrupted):
                await anext(stream)
            assert turns - before > 100
        busy.cancel()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "Deflate ": lambda data: zlib.compress(data, wbits=-zlib.MAX_WBITS),
    "identity, deflate": lambda data: zlib.compress(data, level=0, wbits=-zlib.MAX_WBITS),
    "utf-8, gzip,": gzip.compress,
}
PLAIN = ["identity", "Identity", "none", "", " ", ",", "utf-8", "UTF8", "binary", "8bit", "aws-chunked", "x" * 1000]


@pytest.mark.parametrize("encoding", [*PACKED, *PLAIN])
async def test_compressed(encoding: str) -> None:
    """A compressed reply is read as what it stands for, of any length and however it is cut."""
    data = {"data": [{"id": f"model-{random.random()}"} for _ in range(20_000)]}  # noqa: S311
    whole = reply(body=data)
    packed = PACKED.get(encoding, bytes)(whole.partition(b"\r\n\r\n")[2])

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % encoding.encode()
        )
        for start in range(0, len(packed), 7919):
            writer.write(chunk(packed[start : start + 7919]))
            await writer.drain()
        writer.write(chunk(b""))

    async with talking_to(handler) as session:
        assert len(await session.list_models()) == 20_000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"{}"),
        ("gzip", b"no gzip"),
        ("deflate", b"{}"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0)),
    ],
)
async def test_wrong_compression(encoding: str, body: bytes) -> None:
    """A body that cannot be unpacked as its header says is a violation."""
    async with talking_to(answering(reply(body=body, Content_Encoding=encoding))) as session:
        with pytest.raises(ProtocolViolation):
            await session.list_models()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "none"])
@pytest.mark.parametrize("status", [200, 204])
async def test_nothing_compressed(encoding: str, status: int) -> None:
    """A reply without a body has none, whatever its header says of it."""
    async with talking_to(answering(reply(status, Content_Encoding=encoding))) as session:
        assert (await session.delete_file("file-1")).deleted


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_bare_deflate_in_small_pieces(size: int) -> None:
    """Deflate without zlib's wrapper is recognized by its first byte."""
    packed = zlib.compress(reply(body=MODELS).partition(b"\r\n\r\n")[2], wbits=-zlib.MAX_WBITS)

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(packed), size):
            writer.write(chunk(packed[start : start + size]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(chunk(b""))

    async with talking_to(handler) as session:
        assert len(await session.list_models()) == 1


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_byte_order_mark(status: int, encoding: str) -> None:
    """A byte order mark before a reply's JSON is passed over, in an error too; one of a file stays."""
    body = b"\xef\xbb\xbf" + (b'{"data": []}' if status == 200 else b'{"error": {"message": "no such thing"}}')
    packed = gzip.compress(body) if encoding == "gzip" else body
    handler = knowing_file(len(body), answering(reply(status, packed, Content_Encoding=encoding)))
    async with talking_to(handler) as session:
        if status == 200:
            assert await session.list_models() == ()
            assert await session.download_file("file-1") == body
        else:
            with pytest.raises(NotFound, match="404: no such thing"):
                await session.list_models()


@pytest.mark.parametrize("is_borrowed", [False, True])
async def test_long_headers(is_borrowed: bool) -> None:
    """Headers of tens of kilobytes, as some proxies add, are read; an error says how long they may be."""
    async with (
        serve(answering(reply(body=MODELS, X_A="a" * 30_000, X_B="b" * 60_000), reply(X_A="a" * 70_000))) as url,
        aiohttp.ClientSession() as http,
        FineTuneSession(KEY, base_url=url, http=http if is_borrowed else None) as session,
    ):
        assert len(await session.list_models()) == 1
        with pytest.raises(ProtocolViolation, match="65536 bytes"):
            await session.list_models()


async def test_two_compressed_members() -> None:
    """A gzip body of several members, which RFC 1952 allows, is never read as its first alone."""
    body = gzip.compress(b"first ") + gzip.compress(b"second")
    async with talking_to(answering(reply(body=body, Content_Encoding="gzip"))) as session:
        with contextlib.suppress(ProtocolViolation):
            assert await session.download_file("file-1") == b"first second"


@pytest.mark.parametrize("status", [429, 503])
async def test_error_in_unknown_compression(status: int) -> None:
    """The status says what an error is, even if its body cannot be read."""
    async with talking_to(answering(reply(status, b"x", Content_Encoding="br"), reply(body=MODELS))) as session:
        assert await session.list_models()


async def test_bomb() -> None:
    """A small body that stands for 256 MiB is refused, in a bounded memory."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    body = b"".join(packer.compress(b"\0" * (16 << 20)) for _ in range(16)) + packer.flush()
    assert len(body) < 2 << 20
    async with talking_to(answering(reply(400, body, Content_Encoding="gzip"))) as session:
        tracemalloc.start()
        try:
            with pytest.raises(BadRequest):
                await session.list_models()
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()


async def test_bomb_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply past the longest that is read is refused once it is past it, not once it is whole."""
    monkeypatch.setattr("aiofinetune._http.reply_body.MAX_REPLY_BYTES", 8 << 20)
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    body = b"".join(packer.compress(b" " * (16 << 20)) for _ in range(16)) + packer.flush()
    async with talking_to(answering(reply(body=body, Content_Encoding="gzip"))) as session:
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolViolation, match="longer than"):
                await session.list_models()
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()


async def test_endless_error() -> None:
    """An error whose page never ends is an error all the same."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"<p>no</p>" * 1000)
                await writer.drain()

    async with talking_to(handler) as session:
        with pytest.raises(PermissionDenied, match="<p>no</p>"):
            await session.list_models()


async def test_long_reply() -> None:
    """A reply that is decoded in a thread is decoded like any other, and its failures are as well."""
    long = {"data": [{"id": "x" * 200_000}]}
    wrong = {"data": [{"id": "x" * 200_000}, {}]}
    async with talking_to(answering(reply(body=long), reply(body=wrong))) as session:
        assert len((await session.list_models())[0].id) == 200_000
        with pytest.raises(ProtocolViolation, match=r"\$\.data\[1\]\.id is missing"):
            await session.list_models()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": {"error": {"message": "no such thing"}}}, "no such thing"),
        ({"detail": [{"loc": ["path", "id"], "msg": "no such thing", "type": "x"}]}, "path.id: no such thing"),
        ({"error": None, "detail": "no such thing"}, "no such thing"),
        ({"code": 7, "msg": "no such thing"}, "no such thing"),
        ({"error": {"message": "no such thing" + "." * 1900}}, "no such thing[.]{1900}"),
    ],
)
@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_words_of_other_services(status: int, body: object, words: str) -> None:
    """The words of an error are shown in whatever shape a service sends them."""
    async with talking_to(answering(reply(status, body)), retry=ONCE) as session:
        for call in (
            list_models(session),
            create(session),
            session.upload_file(b"{}"),
            session.download_file("file-1"),
        ):
            with pytest.raises(FineTuneError) as caught:
                await call
            assert re.search(
                f"{status}: {words}", str(all_in_chain(caught.value)[-1] if status == 500 else caught.value)
            )


CALLS_WITHOUT_CREATE: dict[str, Call] = {
    "list fine-tunes": lambda session: session.list_fine_tunes(),
    "list files": lambda session: session.list_files(),
    "list events": lambda session: session.list_fine_tune_events("ft-1"),
    "list models": list_models,
    "retrieve": lambda session: session.retrieve_fine_tune("ft-1"),
    "cancel": lambda session: session.cancel_fine_tune("ft-1"),
    "upload": lambda session: session.upload_file(b"{}"),
    "retrieve file": lambda session: session.retrieve_file("file-1"),
    "download": lambda session: session.download_file("file-1"),
    "complete": lambda session: session.create_completion("ada", "a"),
    "wait": lambda session: session.wait("ft-1"),
}


@pytest.mark.parametrize("call", CALLS_WITHOUT_CREATE.values(), ids=CALLS_WITHOUT_CREATE)
@pytest.mark.parametrize("data", [{}, {"data": []}], ids=["alone", "beside data"])
async def test_error_under_success(call: Call, data: dict[str, object]) -> None:
    """An error object that comes with status 200 is a violation that shows its words, at a list too."""
    body = {"error": {"message": "no such thing", "type": "t"}, **data}
    async with talking_to(answering(reply(body=body))) as session:
        with pytest.raises(ProtocolViolation, match="answered 200, but with an error: no such thing"):
            await call(session)


DELETES: list[Call] = [lambda session: session.delete_file("file-1"), lambda session: session.delete_model("file-1")]
deletes = pytest.mark.parametrize("call", DELETES, ids=["file", "model"])


@deletes
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (204, b"", ""),
        (200, b"", ""),
        (202, b"", ""),
        (200, {}, ""),
        (200, b"null", ""),
        (200, b"true", ""),
        (200, b'"OK"', ""),
        (200, b"OK", ""),
        (200, b"\xff\xfe", ""),
        (200, {"status": "deleted"}, ""),
        (200, {"id": None, "deleted": None}, ""),
        (200, {"id": 7, "object": ["file"], "deleted": "true"}, ""),
        (200, {"id": "file-1", "object": "file"}, "file"),
        (200, {"id": "file-1", "object": "file", "deleted": True, "error": None}, "file"),
    ],
)
async def test_deleted(call: Call, status: int, body: object, kind: str) -> None:
    """A DELETE that is answered with success has deleted, whatever the body is."""
    async with talking_to(answering(reply(status, body))) as session:
        assert await call(session) == Deleted("file-1", deleted=True, object=kind)


@deletes
@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"id": "file-1", "object": "file", "deleted": False}, APIError, "200: the service did not delete file-1"),
        ({"deleted": False, "error": {"message": "in use", "code": "busy"}}, APIError, "200: in use"),
        ({"error": {"message": "in use", "code": "busy"}}, ProtocolViolation, "with an error: in use"),
        ({"error": "in use"}, ProtocolViolation, "with an error: in use"),
        ({"object": "error", "message": "in use"}, ProtocolViolation, "with an error: in use"),
        (b"<html>sign in</html>", ProtocolViolation, "sign in"),
    ],
)
async def test_not_deleted(call: Call, body: object, kind: type[FineTuneError], words: str) -> None:
    """A success that says in its body that nothing was deleted, or that a proxy answered, is a failure."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=body), seen=seen)) as session:
        with pytest.raises(kind, match=words):
            await call(session)
    assert len(seen) == 1


# Trying again


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_get_is_repeated(status: int) -> None:
    """A GET that failed in a way which may pass is sent again, as it was."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status), reply(status), reply(body=MODELS), seen=seen)) as session:
        assert await session.list_models()
    assert targets(seen) == ["GET /v1/models"] * 3
    assert seen[0].headers == seen[2].headers


@pytest.mark.parametrize("status", [408, 425])
async def test_passing_refusals(status: int, tmp_path: Path) -> None:
    """A 408 or a 425 ends nothing that may be sent again: no wait, no stream, no download, no upload, no cancel."""
    seen: list[Received] = []
    file = {**FILE, "bytes": 0}
    over = {**JOB, "status": "succeeded", "fine_tuned_model": "ada:ft-1"}
    refused: set[str] = set()

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        line = f"{request.method} {request.target}"
        if line not in refused:
            refused.add(line)
            writer.write(reply(status))
        elif "stream=true" in line:
            writer.write(STREAM_HEAD + chunk(event("a") + b"data: [DONE]\n\n") + chunk(b""))
        elif request.method == "DELETE":
            writer.write(reply(body={"id": "file-1", "object": "file", "deleted": True}))
        elif line == "GET /v1/files":
            writer.write(reply(body={"object": "list", "data": []}))
        elif line == "GET /v1/files/file-1/content":
            writer.write(reply())
        else:
            writer.write(reply(body=file if "/files" in line else over))

    async with talking_to(handler) as session:
        assert (await session.wait("ft-1")).status == "succeeded"
        refused.clear()
        async with session.stream_fine_tune_events("ft-1") as events:
            assert [each.message async for each in events] == ["a"]
        assert await session.download_file("file-1", tmp_path / "a") == tmp_path / "a"
        assert (await session.upload_file(b"{}\n")).id == "file-1"
        assert (await session.delete_file("file-1")).deleted
        assert (await session.cancel_fine_tune("ft-1")).id == "ft-1"
    assert targets(seen).count("POST /v1/fine-tunes/ft-1/cancel") == 2


async def test_wait_survives_refusals_that_pass() -> None:
    """Waiting for a job goes on through more 408s than a call has attempts."""
    over = {**JOB, "status": "succeeded", "fine_tuned_model": "ada:ft-1"}
    left = 12

    async def handler(request: Received, writer: StreamWriter) -> None:
        nonlocal left
        left -= "stream" not in request.target
        writer.write(reply(408) if left > 0 or "stream" in request.target else reply(body=over))

    async with talking_to(handler) as session:
        assert (await session.wait("ft-1")).status == "succeeded"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after_ms": "2500"}, 2.5),
        ({"x_ms_retry_after_ms": "2500", "retry_after": "100"}, 2.5),
        ({"retry_after_ms": "soon", "x_ms_retry_after_ms": "2500"}, 2.5),
        ({"retry_after_ms": "nan", "retry_after": "2.5"}, 2.5),
    ],
    ids=str,
)
async def test_wait_in_milliseconds(headers: dict[str, str], seconds: float) -> None:
    """What a service says in milliseconds is waited for, before what it says in whole seconds."""
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def handler(_request: Received, writer: StreamWriter) -> None:
        times.append(loop.time())
        writer.write(reply(429, **headers) if len(times) == 1 else reply(body=MODELS))

    async with talking_to(handler) as session:
        assert await session.list_models()
    assert seconds <= times[1] - times[0] < 2 * seconds


@pytest.mark.parametrize("attempts", [1, 3])
async def test_attempts(attempts: int) -> None:
    """After the last attempt the failure itself is raised."""
    seen: list[Received] = []
    policy = Retry(attempts=attempts, base=0.001, cap=0.001, grace=0.01)
    async with talking_to(answering(reply(500), seen=seen), retry=policy) as session:
        with pytest.raises(ServerError):
            await session.list_models()
    assert len(seen) == attempts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
async def test_what_is_not_repeated(status: int) -> None:
    """What would fail again is sent once."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status), seen=seen)) as session:
        with pytest.raises(APIError):
            await session.list_models()
    assert len(seen) == 1


async def test_reset_is_repeated() -> None:
    """A GET whose connection is reset is sent again on another."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) < 3:
            reset(writer)
        else:
            writer.write(reply(body=MODELS))

    async with talking_to(handler) as session:
        assert await session.list_models()
    assert len(seen) == 3


def reset(writer: StreamWriter) -> None:
    """Close a connection by RST, as a crash or a firewall does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def test_create_is_not_repeated_after_a_reset() -> None:
    """A create whose reply was lost may have made a job that costs: it is not sent again."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        reset(writer)

    async with talking_to(handler) as session:
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


async def test_create_is_not_repeated_on_a_used_connection() -> None:
    """Nor where the connection was used before, and closed just as the create was sent: aiohttp repeats some itself."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if request.method == "GET":
            writer.write(reply(body=MODELS))
        else:
            writer.close()

    async with talking_to(handler) as session:
        await session.list_models()
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


@pytest.mark.parametrize(
    ("failure", "is_sent_again"),
    [
        (reply(503, Retry_After="0"), True),
        (reply(429), True),
        (reply(429, Retry_After="0"), True),
        (reply(429, Retry_After="3600"), False),
        (reply(429, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"), False),
        (reply(429, Retry_After="Fri, 01 Jan 1999 00:00:00 GMT"), True),
        (reply(429, Retry_After="soon"), True),
    ],
)
@pytest.mark.parametrize("call", [create, lambda session: session.upload_file(b"x")], ids=["create", "upload"])
async def test_create_is_repeated_if_refused(failure: bytes, call: Call, is_sent_again: bool) -> None:
    """What creates something is sent again where the service refused it before looking, and within our patience."""
    seen: list[Received] = []
    made = reply(body={**JOB, **FILE, "id": "x-1"})
    async with talking_to(answering(failure, made, seen=seen)) as session:
        if is_sent_again:
            assert await call(session)
            assert seen[0].headers.get("idempotency-key") == seen[1].headers.get("idempotency-key")
        else:
            with pytest.raises(APIError):
                await call(session)
    assert len(seen) == 1 + is_sent_again


async def test_create_is_repeated_if_not_connected() -> None:
    """A create that found no one listening is sent to who listens later."""
    seen: list[Received] = []
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        failures: list[str] = []
        listening = asyncio.Event()
        session = session_for(
            f"http://127.0.0.1:{port}/v1", retry=Retry(attempts=10_000, base=0.001, cap=0.001, grace=0.01)
        )

        class Counting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                failures.append(record.getMessage())
                if len(failures) == 2:
                    listening.set()

        logger = logging.getLogger("aiofinetune")
        handler, level = Counting(), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            async with session:
                creating = asyncio.create_task(session.create_fine_tune(REQUEST))
                await listening.wait()

                async def connected(reader: asyncio.StreamReader, writer: StreamWriter) -> None:
                    head = await reader.readuntil(b"\r\n\r\n")
                    method, target, _ = head.decode().split(maxsplit=2)
                    seen.append(Received(method, target, {}, b"", reader))
                    writer.write(reply(body=JOB, Connection="close"))
                    writer.close()

                reserved.listen()
                reserved.setblocking(False)
                async with await asyncio.start_server(connected, sock=reserved.dup()):
                    assert (await creating).id == "ft-1"
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert targets(seen) == ["POST /v1/fine-tunes"]
    assert "could not connect" in failures[0]


async def test_no_one_listens() -> None:
    """Where no one listens, the connection failed, and it says to whom."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        async with session_for(url, retry=ONCE) as session:
            with pytest.raises(ConnectFailed, match=url):
                await session.list_models()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test", "."])
async def test_host_that_is_no_name(host: str) -> None:
    """A host that no name server could know is an error of ours like any other."""
    with pytest.raises(FineTuneError):
        async with FineTuneSession(KEY, base_url=f"https://{host}/v1", retry=ONCE) as session:
            await session.list_models()


# Time


async def silent(request: Received, _writer: StreamWriter) -> None:
    await request.gone()


@pytest.mark.parametrize("call", [list_models, lambda session: session.upload_file(b"x")])
async def test_reply_timeout(call: Call) -> None:
    """A service that never answers is given up: a transport's failure, and a TimeoutError."""
    async with talking_to(silent, retry=ONCE) as session:
        with pytest.raises(ReplyTimeout) as caught:
            await call(session)
        assert isinstance(caught.value, TimeoutError)


async def test_reply_that_drips() -> None:
    """A reply has one time in all: a byte now and then does not stretch it."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(chunk(b" "))
                await writer.drain()
                await asyncio.sleep(10)

    async with talking_to(handler, retry=ONCE) as session:
        with pytest.raises(ReplyTimeout):
            await session.list_models()


async def test_get_is_repeated_after_a_timeout() -> None:
    """A GET that was not answered in time is sent again; a create is not."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if request.method == "GET" and len(seen) > 1:
            writer.write(reply(body=MODELS))
        else:
            await request.gone()

    async with talking_to(handler) as session:
        assert await session.list_models()
        assert len(seen) > 1
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


async def test_connect_timeout() -> None:
    """A connection that is not made in time surely carried nothing: that it failed is all that is said."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        # Fills the queue of connections, so that the next is not answered.
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        try:
            async with session_for(f"http://127.0.0.1:{address[1]}/v1", retry=ONCE) as session:
                with pytest.raises(ConnectFailed):
                    await session.create_fine_tune(REQUEST)
        finally:
            for each in waiting:
                each.close()


@pytest.mark.parametrize("call", [list_models, create, lambda session: session.upload_file(b"x")])
async def test_cancellation(call: Call) -> None:
    """A cancelled call stays cancelled, is not sent again, and frees its connection."""
    came, gone = asyncio.Event(), asyncio.Event()
    seen: list[Received] = []

    async def handler(request: Received, _writer: StreamWriter) -> None:
        seen.append(request)
        came.set()
        await request.gone()
        gone.set()

    async with talking_to(handler) as session:
        task = asyncio.ensure_future(call(session))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    assert len(seen) == 1


async def test_callers_own_timeout() -> None:
    """A caller's own `asyncio.timeout` ends a call with a plain TimeoutError, none of ours."""
    async with talking_to(silent) as session:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(10):
                await session.list_models()
        assert type(caught.value) is TimeoutError


# Secrets


def all_in_chain(error: BaseException) -> list[BaseException]:
    """An error and what led to it, as far as tracebacks show it."""
    chain = [error]
    for each in chain:
        inner = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        before = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        chain += [more for more in (before, *inner) if more and more not in chain]
    return chain


def everything_said(error: BaseException) -> str:
    """All that a program or its log shows of an error: its traceback, and each in its chain by text and repr."""
    texts = ["".join(traceback.format_exception(error))]
    for each in all_in_chain(error):
        texts += [str(each), repr(each), repr(each.args)]
        texts += [repr(vars(each))] if isinstance(each, FineTuneError) else []
    return "\n".join(texts)


def every_local(error: BaseException) -> str:
    """What a tool that shows the locals of each frame shows of an error, but for the frames of the tests."""
    return "\n".join(
        repr(frame.f_locals)
        for each in all_in_chain(error)
        for frame, _ in traceback.walk_tb(each.__traceback__)
        if "/tests/" not in frame.f_code.co_filename
    )


ECHO = [
    reply(401, {"error": {"message": f"wrong key: {KEY}", "type": KEY, "param": KEY, "code": KEY}}),
    reply(500, f"<html>{KEY}".encode()),
    reply(404, b"", X_Request_ID=KEY),
    reply(302, b"", Location=f"https://evil.test/?key={KEY}"),
    reply(307, b"", Location=f"/v1/loop?key={KEY}"),
    reply(200, f"Bearer {KEY}".encode()),
    reply(200, {"data": KEY}),
    reply(200, {"data": [{"id": {"key": KEY}}]}),
    reply(200, b"x", Content_Encoding=KEY),
    f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(),
    f"{KEY}\r\n\r\n".encode(),
    f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode(),
    STREAM_HEAD + f"{KEY}\r\n".encode(),
    b"",
]


@pytest.mark.parametrize("raw", ECHO, ids=range(len(ECHO)))
@pytest.mark.parametrize("kind", ["list", "create", "upload", "download", "stream"])
async def test_key_is_never_shown(raw: bytes, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A service that echoes the key, wherever it does, gets it into no error, no cause of one, and no log."""
    caplog.set_level(logging.DEBUG)

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async def stream(session: FineTuneSession) -> None:
        async with session.stream_fine_tune_events("ft-1") as events:
            async for _ in events:
                pass

    calls: dict[str, Call] = {
        "list": list_models,
        "create": create,
        "upload": lambda session: session.upload_file(b"x"),
        "download": lambda session: session.download_file("file-1"),
        "stream": stream,
    }
    async with talking_to(handler, retry=Retry(attempts=2, base=0.001, cap=0.001, grace=0.01)) as session:
        try:
            await calls[kind](session)
        except FineTuneError as error:
            assert KEY not in everything_said(error)  # noqa: PT017  # a download takes any bytes
    assert KEY not in caplog.text
    assert all(KEY not in repr(vars(record)) for record in caplog.records)


@pytest.mark.parametrize(
    "data", [f'{{"error": "{KEY}"}}', f'{{"error": {{"message": "{KEY}"}}}}', KEY, f'{{"message": ["{KEY}"]}}']
)
async def test_key_in_a_stream(data: str) -> None:
    """Nor does one that echoes it in an event stream."""
    raw = STREAM_HEAD + chunk(b"data: " + data.encode() + b"\n\n")
    async with talking_to(answering(raw)) as session, session.stream_fine_tune_events("ft-1") as events:
        with pytest.raises(FineTuneError) as caught:
            await anext(events)
        assert KEY not in everything_said(caught.value)


@pytest.mark.parametrize("raw", [*ECHO[:2], reply(200, b"x"), b"", b"x\r\n\r\n", reply(200)[:-5]], ids=range(6))
@pytest.mark.parametrize("call", [list_models, create, lambda session: session.upload_file(b"x")])
async def test_key_is_in_no_local(raw: bytes, call: Call) -> None:
    """Tools that show each frame's locals along with a traceback do not show the key that was sent."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async with talking_to(handler, retry=ONCE) as session:
        with pytest.raises(FineTuneError) as caught:
            await call(session)
    assert "FineTuneSession" in every_local(caught.value)
    assert KEY not in every_local(caught.value)


@pytest.mark.parametrize("call", [lambda session: session.retrieve_fine_tune("ft-1"), create])
async def test_key_in_a_good_reply(call: Call) -> None:
    """Nor does what a call gives show the key, in whatever field the service echoes it."""
    async with talking_to(answering(reply(body={**JOB, "status": f"made for {KEY}"}))) as session:
        job = await call(session)
    assert isinstance(job, FineTune)
    assert job.status == "made for ..."


async def test_a_part_of_a_list(caplog: pytest.LogCaptureFixture) -> None:
    """Where the service keeps a part of a list back, the log says so."""
    async with talking_to(answering(reply(body={**MODELS, "has_more": True}))) as session:
        await session.list_models()
    assert caplog.messages == ["GET /models: the service sent only a part of the list"]


@pytest.mark.parametrize("wrong", [{"timeout": 5}, {"retry": 3}, {"timeout": None}])
def test_policies_of_another_kind(wrong: dict[str, Any]) -> None:
    """A number of seconds is no Timeout, and a number of tries no Retry."""
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"^{name}: expected a {name.title()}, got "):
        FineTuneSession(KEY, **wrong)


async def test_escaped_key() -> None:
    """Nor one that echoes it with JSON's escapes."""
    key = 'sk-"/quoted'
    body = rb'{"error": {"message": "wrong key: sk-\"\/quoted"}}'
    async with serve(answering(reply(401, body))) as url, FineTuneSession(key, base_url=url) as session:
        with pytest.raises(AuthenticationFailed) as caught:
            await session.list_models()
    assert key not in str(caught.value)


async def test_key_in_results() -> None:
    """Nor one that echoes it in a results file."""
    table = f"step,note\n1,{KEY}\n".encode()
    job = FineTune("ft-1", "succeeded", "ada", 0, (), result_files=(File("file-1"),))
    async with talking_to(knowing_file(len(table), answering(reply(body=table)))) as session:
        (row,) = await session.results(job)
    assert row.other == {"note": "..."}


async def test_warnings_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    """What is tried again is logged, by endpoint, reason and wait, and at a level that is silent by default."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    async with talking_to(answering(reply(500, {"error": "busy"}), reply(body=MODELS))) as session:
        await session.list_models()
    (record,) = [record for record in caplog.records if record.name.startswith("aiofinetune")]
    assert record.levelno == logging.INFO
    assert "GET /models, failure 1: 500: busy; retrying in 0.0 s" in record.getMessage()


async def test_create_of_no_request() -> None:
    """A dict is no request: the error says so, and nothing is sent."""
    seen: list[Received] = []
    async with talking_to(answering(reply(), seen=seen)) as session:
        with pytest.raises(RequestInvalid, match="expected a FineTuneRequest, got dict"):
            await session.create_fine_tune({"training_file": "file-1"})  # type: ignore[arg-type]  # it is the point
    assert seen == []


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_within_the_service(status: int) -> None:
    """A GET follows its service to another path."""
    seen: list[Received] = []
    answers = answering(reply(status, b"moved", Location="/v2/models?a=b"), reply(body=MODELS), seen=seen)
    async with talking_to(answers) as session:
        assert await session.list_models()
    assert targets(seen) == ["GET /v1/models", "GET /v2/models?a=b"]
    assert seen[1].headers == seen[0].headers


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_redirected_create(status: int) -> None:
    """A create is followed where it stays a create with its body, and is else an error: it never becomes a GET."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status, Location="/v2"), reply(body=JOB), seen=seen)) as session:
        if status in (307, 308):
            assert await session.create_fine_tune(REQUEST)
            assert targets(seen) == ["POST /v1/fine-tunes", "POST /v2"]
            assert seen[0].body == seen[1].body != b""
        else:
            with pytest.raises(APIError, match=f"^{status}: a redirect to '/v2'"):
                await session.create_fine_tune(REQUEST)
            assert len(seen) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [list_models, create, lambda session: session.upload_file(b"x")])
async def test_redirect_elsewhere(status: int, call: Call) -> None:
    """Another origin, be it another port of the same machine, never gets so much as a connection."""
    elsewhere: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=elsewhere)) as other:  # noqa: SIM117  # the second needs it
        async with talking_to(answering(reply(status, Location=f"{other}/models"))) as session:
            with pytest.raises(FineTuneError) as caught:
                await call(session)
            # What a 302 or 303 answers may have been done, and only the list can tell what a create made.
            error = caught.value.__cause__ if call is create and status in (302, 303) else caught.value
            assert isinstance(error, APIError)
            assert error.status == status
            assert "another origin" in error.message
    assert elsewhere == []


async def test_redirect_with_the_key() -> None:
    """The error of a redirect that echoes the key shows no part of it, however long the target is."""
    for size in range(150, 210):
        target = f"http://127.0.0.2:9/{'x' * size}{KEY}"
        async with talking_to(answering(reply(302, Location=target))) as session:
            with pytest.raises(APIError, match="another origin") as caught:
                await session.list_models()
        assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    ["http://user:word@{}/v1/models", "/\xff", "", "http://[", "//", "http://{}:1/", "\x01", "/\\x", "%", "/%zz"],
)
async def test_odd_redirect(location: str) -> None:
    """A redirect to what is hardly a URL is followed, or is an error of ours."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        target = location.format(request.headers["host"])
        writer.write(reply(302, Location=target) if len(seen) == 1 else reply(body=MODELS))

    async with talking_to(handler, retry=ONCE) as session:
        with contextlib.suppress(FineTuneError):
            await session.list_models()
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in seen)


async def test_redirects_in_a_circle() -> None:
    """A service that redirects for ever is given up."""
    seen: list[Received] = []
    async with talking_to(answering(reply(302, Location="/v1/models"), seen=seen)) as session:
        with pytest.raises(ProtocolViolation, match="redirects"):
            await session.list_models()
    assert 1 < len(seen) < 25


# Uploads


DATA = random.Random(7).randbytes(1_000_000)  # noqa: S311  # no secret


def content_of(request: Received) -> bytes:
    """The file's bytes in the form that came in, and the form as it must be around them."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    head, _, rest = request.body.partition(b"Content-Type: application/octet-stream\r\n\r\n")
    assert head.startswith(b"--" + boundary + b"\r\n")
    assert b'name="purpose"\r\n\r\n' in head
    tail = b"\r\n--" + boundary + b"--\r\n"
    assert rest.endswith(tail)
    return rest.removesuffix(tail)


async def generated(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        await asyncio.sleep(0)
        yield data[start : start + 100_000]


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
@pytest.mark.parametrize("kind", ["path", "bytes", "file", "pieces"])
async def test_upload(kind: str, size: int, tmp_path: Path) -> None:
    """Every kind of source arrives byte for byte, with its length ahead where that is known, and its name."""
    data = DATA[:size]
    path = tmp_path / "my data.jsonl"
    path.write_bytes(data)
    seen: list[Received] = []
    told: list[tuple[int, int | None]] = []
    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        with path.open("rb") as file:
            source: Any = {"path": path, "bytes": data, "file": file, "pieces": generated(data)}[kind]
            uploaded = await session.upload_file(source, progress=lambda sent, total: told.append((sent, total)))
    assert uploaded.id == "file-1"
    assert content_of(seen[0]) == data
    name = "my data.jsonl" if kind in ("path", "file") else "data.jsonl"
    assert f'filename="{name}"'.encode() in seen[0].body
    assert b"\r\n\r\nfine-tune\r\n" in seen[0].body
    if kind == "pieces":
        assert seen[0].headers["transfer-encoding"] == "chunked"
        assert "content-length" not in seen[0].headers
    else:
        assert "transfer-encoding" not in seen[0].headers
    assert [sent for sent, _ in told] == sorted({sent for sent, _ in told})
    assert {total for _, total in told} <= {None if kind == "pieces" else size}
    assert (told[-1][0] if told else 0) == size


async def test_upload_names() -> None:
    """What the caller says of name and purpose goes before what the source says."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        await session.upload_file(b"x", filename='a"b.jsonl', purpose="search")
    assert b'filename="a%22b.jsonl"' in seen[0].body
    assert b"\r\n\r\nsearch\r\n" in seen[0].body


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
async def test_upload_again(kind: str, tmp_path: Path) -> None:
    """An upload that is refused for now is sent again from its first byte."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA)
    seen: list[Received] = []
    async with talking_to(answering(reply(429), reply(503, Retry_After="0"), reply(body=FILE), seen=seen)) as session:
        with path.open("rb") as file:
            file.seek(10)
            source: Any = {"path": path, "bytes": DATA, "file": file}[kind]
            await session.upload_file(source)
    assert [content_of(request) for request in seen] == [DATA[10:] if kind == "file" else DATA] * 3


async def test_upload_that_cannot_go_back() -> None:
    """A source that can be read only once is sent once."""
    seen: list[Received] = []
    async with talking_to(answering(reply(429), reply(body=FILE), seen=seen)) as session:
        with pytest.raises(RateLimited):
            await session.upload_file(generated(DATA))
    assert len(seen) == 1


async def test_upload_refused_half_way() -> None:
    """A service that refuses an upload before it has read it is heard, and the next attempt is whole."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) == 1:
            writer.write(reply(429, Connection="close"))
            writer.close()
        else:
            body = await request.read_body()
            assert DATA * 8 in body
            writer.write(reply(body=FILE))

    async with talking_to(handler, reads_body=False) as session:
        try:
            await session.upload_file(DATA * 8)
        except ConnectionLost:
            # The system may drop an answer that overtakes what it answers; then the upload is not sent again.
            assert len(seen) == 1
        else:
            assert len(seen) == 2


class SlowFile(io.BytesIO):
    """A file on a slow disk: its second piece comes only once the first attempt is over."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.is_reading = threading.Event()
        self.goes_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:  # noqa: D102  # as the class says
        self.reads += 1
        if self.reads == 2:
            self.is_reading.set()
            # Once the file goes back, or, where that waits for this read as it must, after a moment.
            self.goes_on.wait(0.2)
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:  # noqa: D102  # likewise
        position = super().seek(offset, whence)
        if self.is_reading.is_set():
            self.goes_on.set()
        return position


async def test_upload_again_while_still_reading() -> None:
    """A piece of the file that is still being read for one attempt is not missing from the next."""
    file = SlowFile(DATA)
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) == 1:
            await asyncio.to_thread(file.is_reading.wait)
            writer.write(reply(429))
            writer.write_eof()
            await request.gone()
        else:
            assert DATA in await request.read_body()
            writer.write(reply(body=FILE))

    async with talking_to(handler, reads_body=False) as session:
        assert (await session.upload_file(file)).id == "file-1"
    assert len(seen) == 2


async def test_upload_of_what_cannot_be_read() -> None:
    """What goes wrong in the source is an error of the file, with its cause, and is not sent again."""
    seen: list[Received] = []

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await asyncio.sleep(0)
        raise OSError(5, "Input/output error")

    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        with pytest.raises(LocalFileError, match="Input/output error") as caught:
            await session.upload_file(broken())
        assert isinstance(caught.value.__cause__, OSError)
    assert seen == []


async def test_upload_of_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is an error before anything is sent."""
    async with session_for("http://127.0.0.1:1/v1") as session:
        with pytest.raises(LocalFileError, match="No such file"):
            await session.upload_file(tmp_path / "missing.jsonl")
        with pytest.raises(RequestInvalid, match="expected a path"):
            await session.upload_file(7)  # type: ignore[arg-type]


async def test_upload_of_a_file_that_shrinks(tmp_path: Path) -> None:
    """A file that is cut while it is sent is an error of the file."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA * 2)

    def cut(_sent: int, _total: int | None) -> None:
        path.write_bytes(DATA[:1000])

    async with talking_to(answering(reply(body=FILE))) as session:
        with pytest.raises(LocalFileError, match="changed"):
            await session.upload_file(path, progress=cut)


async def test_upload_of_a_file_that_grows(tmp_path: Path) -> None:
    """A file that grows while it is sent is an error of the file, whatever the service says of what it got."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA * 2)

    def grow(_sent: int, _total: int | None) -> None:
        with path.open("ab") as file:
            file.write(b"a line more, and one more\n" * 2)

    async with talking_to(answering(reply(body=FILE))) as session:
        with pytest.raises(LocalFileError, match="changed"):
            await session.upload_file(path, progress=grow)


async def test_upload_of_text_pieces() -> None:
    """An iterator that gives text is an error of the source, not of the network."""

    async def texts() -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        yield "text"

    async with talking_to(answering(reply(body=FILE))) as session:
        with pytest.raises((LocalFileError, RequestInvalid)):
            await session.upload_file(texts())


async def test_slow_upload() -> None:
    """An upload may take longer than any reply, as long as its pieces keep moving."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(10):
            await asyncio.sleep(50)
            yield b"x"

    seen: list[Received] = []
    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        await session.upload_file(slow())
    assert content_of(seen[0]) == b"x" * 10


async def test_upload_that_stalls() -> None:
    """A service that stops reading is given up."""

    async def handler(_request: Received, _writer: StreamWriter) -> None:
        await asyncio.Event().wait()

    async with talking_to(handler, retry=ONCE, reads_body=False) as session:
        with pytest.raises(ReplyTimeout):
            await session.upload_file(b"x" * (24 << 20))


# Downloads


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
async def test_download_of_another_length(size: int, tmp_path: Path) -> None:
    """A content that is not as long as the file is not the file, whole as its reply may be: a page, say."""
    async with talking_to(knowing_file(size, answering(reply(body=DATA)))) as session:
        with pytest.raises((ConnectionLost, ProtocolViolation), match=f"{size} bytes"):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"x", DATA * 3], ids=len)
async def test_download(data: bytes, tmp_path: Path) -> None:
    """A file comes as it is at the service: as bytes, or at a path."""
    async with talking_to(knowing_file(len(data), answering(reply(body=data)))) as session:
        assert await session.download_file("file-1") == data
        path = await session.download_file("file-1", tmp_path / "a.csv")
        assert path == tmp_path / "a.csv"
        assert path.read_bytes() == data
        assert await session.download_file("file-1", str(path)) == path
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("raw", [*CUT, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 8999])
async def test_cut_download(raw: bytes, tmp_path: Path) -> None:
    """A download that is cut short is a lost connection; no part of the file is left, and what was there stays."""
    target = tmp_path / "a.csv"
    target.write_bytes(b"old")

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async with talking_to(knowing_file(8999 + 1, handler)) as session:
        with pytest.raises(ConnectionLost):
            await session.download_file("file-1", target)
        with pytest.raises(ConnectionLost):
            await session.download_file("file-1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.csv": b"old"}


async def test_download_again(tmp_path: Path) -> None:
    """A download that is cut short is fetched again from its start."""
    count = 0

    async def handler(_request: Received, writer: StreamWriter) -> None:
        nonlocal count
        count += 1
        whole = reply(body=DATA)
        writer.write(whole if count == 3 else whole[:-1000])
        writer.close()

    async with talking_to(knowing_file(len(DATA), handler)) as session:
        path = await session.download_file("file-1", tmp_path / "a.csv")
    assert path.read_bytes() == DATA


async def test_download_that_stalls(tmp_path: Path) -> None:
    """A download of which nothing comes any more is given up, and leaves no file."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(reply(body=DATA)[:-1])
        await request.gone()

    async with talking_to(knowing_file(len(DATA), handler), retry=ONCE) as session:
        with pytest.raises(ReplyTimeout):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


async def test_cancelled_download(tmp_path: Path) -> None:
    """A cancelled download leaves no part of a file, and frees its connection."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(reply(body=DATA)[:-1])
        await writer.drain()
        came.set()
        await request.gone()
        gone.set()

    async with talking_to(knowing_file(len(DATA), handler)) as session:
        task = asyncio.create_task(session.download_file("file-1", tmp_path / "a.csv"))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    assert list(tmp_path.iterdir()) == []


async def test_download_of_nothing(tmp_path: Path) -> None:
    """An error in place of the content is that error, and no file."""
    answers = answering(reply(404, {"error": {"message": "no such file"}}))
    async with talking_to(knowing_file(5, answers)) as session:
        with pytest.raises(NotFound, match="no such file"):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


async def test_download_to_nowhere(tmp_path: Path) -> None:
    """A place that cannot be written is an error of the file, and the content is not fetched again."""
    seen: list[Received] = []
    async with talking_to(knowing_file(len(DATA), answering(reply(body=DATA), seen=seen))) as session:
        with pytest.raises(LocalFileError):
            await session.download_file("file-1", tmp_path / "missing" / "a.csv")
    assert len(seen) == 1


# Many at once


async def test_many_calls() -> None:
    """More calls at once than may be under way wait their turn, and each gets its own reply."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.write(reply(body={"id": request.target.rpartition("/")[2]}))

    # Debugging asyncio costs more here than all else.
    asyncio.get_running_loop().set_debug(False)
    async with talking_to(handler) as session:
        models = await asyncio.gather(*(session.retrieve_model(f"m{number}") for number in range(300)))
    assert [model.id for model in models] == [f"m{number}" for number in range(300)]


async def test_nothing_is_left() -> None:
    """After failures of all kinds no task of the session's is left, and nothing warns of what was not closed."""
    async with talking_to(answering(*ECHO[:9]), retry=ONCE) as session:
        for _ in ECHO[:9]:
            with contextlib.suppress(FineTuneError):
                await session.list_models()
    await asyncio.sleep(0)
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert FAST.attempts == Retry().attempts
    assert event("x").endswith(b"\n\n")
