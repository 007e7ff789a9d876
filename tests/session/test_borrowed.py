"""An aiohttp session that was handed in, and the code of its owner that runs in it."""

from __future__ import annotations

import json
from asyncio import StreamWriter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import aiohttp
import pytest
from aiohttp.abc import AbstractCookieJar, AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from aiofinetune import (
    ConfigurationError,
    ConnectFailed,
    CreateUncertain,
    FineTuneError,
    FineTuneRequest,
    FineTuneSession,
    ReplyTimeout,
    Retry,
    TransportError,
)
from tests.servers.rawserver import JOB, KEY, Received, answering, reply, serve, targets

pytestmark = pytest.mark.fastforward

REQUEST: Final = FineTuneRequest(training_file="file-1", model="ada")
NO_JOBS: Final = reply(body={"object": "list", "data": []})
Middleware: TypeAlias = Callable[[aiohttp.ClientRequest, aiohttp.ClientHandlerType], Awaitable[aiohttp.ClientResponse]]


class OwnError(Exception):
    """Of the owner's code."""


ONCE: Final = Retry(attempts=1, grace=0.01)
ELSEWHERE: Final = ConnectionKey(
    "elsewhere", 80, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)
ERRORS: Final = [
    OwnError("own words"),
    KeyError("own words"),
    ValueError("own words"),
    RuntimeError("own words"),
    json.JSONDecodeError("own words", "", 0),
    OSError("own words"),
    TimeoutError("own words"),
    FineTuneError("own words"),
    ConnectFailed("own words"),
    aiohttp.ClientError("own words"),
    aiohttp.ClientConnectorError(ELSEWHERE, OSError(111, "own words")),
    ExceptionGroup("own words", [OwnError()]),
]
errors = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def chain(error: BaseException | None) -> list[BaseException]:
    return [] if error is None else [error, *chain(error.__cause__)]


def failing(error: Exception, *, is_sent: bool, only_posts: bool = True) -> Middleware:
    """A middleware that raises before it lets a request out, or after its reply came."""

    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if only_posts and request.method != "POST":
            return await handler(request)
        if is_sent:
            (await handler(request)).close()
        raise error

    return middleware


async def failed(url: str, **options: Any) -> FineTuneError:
    """The error of a create on a borrowed session with these options."""
    async with aiohttp.ClientSession(**options) as http:
        session = FineTuneSession(KEY, base_url=url, retry=ONCE, http=http)
        with pytest.raises(FineTuneError) as caught:
            await session.create_fine_tune(REQUEST)
        assert not http.closed
    return caught.value


@errors
async def test_middleware_that_fails_after_the_create(error: Exception) -> None:
    """Whatever a middleware raises after the create was sent, the job is looked for, and never made once more."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(reply(body=JOB) if request.method == "POST" else reply(500))

    async with serve(handler) as url:
        failure = await failed(url, middlewares=[failing(error, is_sent=True)])
    assert isinstance(failure, CreateUncertain)
    assert targets(seen).count("POST /v1/fine-tunes") == 1
    assert "a job may have been made" in str(failure)


@errors
async def test_middleware_that_fails_before_the_create(error: Exception) -> None:
    """What a middleware raises before the create was sent is our error, with the cause in its chain."""
    seen: list[Received] = []
    async with serve(answering(NO_JOBS, seen=seen)) as url:
        failure = await failed(url, middlewares=[failing(error, is_sent=False, only_posts=False)])
    assert any("own words" in str(each) for each in chain(failure))
    assert "POST /v1/fine-tunes" not in targets(seen)
    if not isinstance(error, OSError | aiohttp.ClientError):
        assert isinstance(failure, ConfigurationError)
        assert str(failure).startswith("http: ")


@errors
@pytest.mark.parametrize("is_sent", [True, False])
async def test_middleware_that_fails_at_a_call(error: Exception, is_sent: bool) -> None:
    """What a middleware raises at any other call is our error as well, with the cause chained."""
    async with serve(answering(NO_JOBS)) as url:
        middleware = failing(error, is_sent=is_sent, only_posts=False)
        async with aiohttp.ClientSession(middlewares=[middleware]) as http:
            session = FineTuneSession(KEY, base_url=url, retry=ONCE, http=http)
            for call in (session.list_models(), session.cancel_fine_tune("ft-1"), session.download_file("file-1")):
                with pytest.raises(FineTuneError) as caught:
                    await call
                assert error in chain(caught.value)
            with pytest.raises(FineTuneError) as caught:
                await session.upload_file(b"{}\n")
            assert error in chain(caught.value)
            with pytest.raises(FineTuneError) as caught:
                async with session.stream_fine_tune_events("ft-1"):
                    pass
            assert error in chain(caught.value)


@pytest.mark.parametrize("is_read", [True, False])
async def test_middleware_with_a_body_of_its_own(is_read: bool) -> None:
    """A create that a middleware sends with another body may have made a job too."""
    seen: list[Received] = []

    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if request.method == "POST":
            body = await request.body.as_bytes() if is_read else request.body.decode().encode()  # type: ignore[union-attr]
            await request.update_body(body + b" ")
            await handler(request)
        raise OwnError

    async with serve(answering(reply(body=JOB), seen=seen)) as url:
        assert isinstance(await failed(url, middlewares=[middleware]), CreateUncertain)
    assert targets(seen) == ["POST /v1/fine-tunes"]


@pytest.mark.parametrize(
    ("hook", "is_sent"),
    [
        ("on_request_start", False),
        ("on_connection_create_start", False),
        ("on_request_headers_sent", None),
        ("on_request_chunk_sent", True),
        ("on_request_end", True),
    ],
)
async def test_trace_that_fails(hook: str, is_sent: bool | None) -> None:
    """A trace that raises is our error, and uncertain from the moment that the create's body was sent."""
    seen: list[Received] = []

    async def fail(*_arguments: object) -> None:
        raise OwnError("own words")

    trace = aiohttp.TraceConfig()
    getattr(trace, hook).append(fail)
    async with serve(answering(reply(body=JOB), seen=seen)) as url:
        failure = await failed(url, trace_configs=[trace])
    assert isinstance(failure, CreateUncertain) or any(isinstance(each, OwnError) for each in chain(failure))
    if is_sent is not None:
        assert isinstance(failure, CreateUncertain) == is_sent
    assert targets(seen).count("POST /v1/fine-tunes") <= 1


class _Resolver(AbstractResolver):
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def resolve(self, *_arguments: object, **_options: object) -> list[ResolveResult]:
        raise self._error

    async def close(self) -> None:
        pass


@errors
async def test_resolver_that_fails(error: Exception) -> None:
    """Whatever a resolver raises is our error, and certain to have made no job."""
    connector = aiohttp.TCPConnector(resolver=_Resolver(error))
    failure = await failed("http://localhost:9/v1", connector=connector)
    assert not isinstance(failure, CreateUncertain) or isinstance(error, TimeoutError | aiohttp.ClientError)
    assert any("own words" in str(each) for each in chain(failure))


class _Jar(aiohttp.DummyCookieJar):
    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:  # noqa: ARG002  # as its base has it
        raise OwnError("own words")


async def test_cookie_jar_that_fails() -> None:
    """A cookie jar that raises at the reply's cookies leaves the create uncertain."""
    seen: list[Received] = []
    jar: AbstractCookieJar = _Jar()
    async with serve(answering(reply(body=JOB, Set_Cookie="a=b"), seen=seen)) as url:
        assert isinstance(await failed(url, cookie_jar=jar), CreateUncertain)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"raise_for_status": True},
        {"auto_decompress": False},
        {"json_serialize": lambda _value: 1 / 0},
        {"cookie_jar": None},
        {"base_url": "http://127.0.0.1:9/other/"},
        {"trust_env": True},
        {"requote_redirect_url": False},
        {"read_bufsize": 1},
        {"skip_auto_headers": ["Content-Type", "User-Agent"]},
        {"headers": {"Accept": "text/html", "Content-Type": "text/plain"}},
        {"timeout": aiohttp.ClientTimeout(total=1e-9)},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_settings_of_a_borrowed_session(options: dict[str, Any]) -> None:
    """What the owner set up for other calls changes none of ours: neither a success nor the service's error."""
    seen: list[Received] = []
    refusal = reply(404, {"error": {"message": "no such job", "type": None, "param": None, "code": None}})
    async with (
        serve(answering(reply(body=JOB), refusal, seen=seen)) as url,
        aiohttp.ClientSession(**options) as http,
    ):
        session = FineTuneSession(KEY, base_url=url, retry=ONCE, http=http)
        assert (await session.create_fine_tune(REQUEST)).id == "ft-1"
        with pytest.raises(FineTuneError, match="404: no such job"):
            await session.retrieve_fine_tune("ft-1")
    assert json.loads(seen[0].body)["training_file"] == "file-1"


async def test_borrowed_session_that_is_closed() -> None:
    """A session whose aiohttp session, or only its connector, was closed says so."""
    async with serve(answering(NO_JOBS)) as url:
        http = aiohttp.ClientSession()
        await http.close()
        with pytest.raises(FineTuneError, match="the session is closed"):
            await FineTuneSession(KEY, base_url=url, http=http).list_models()
        async with aiohttp.ClientSession() as http:
            assert http.connector is not None
            await http.connector.close()
            with pytest.raises(FineTuneError, match="the session is closed"):
                await FineTuneSession(KEY, base_url=url, http=http).create_fine_tune(REQUEST)


async def test_timeout_of_a_middleware() -> None:
    """A middleware that raises a TimeoutError after an upload was sent is a lost reply."""
    async with serve(answering(NO_JOBS)) as url:
        middleware = failing(TimeoutError(), is_sent=True)
        async with aiohttp.ClientSession(middlewares=[middleware]) as http:
            session = FineTuneSession(KEY, base_url=url, retry=ONCE, http=http)
            with pytest.raises(TransportError) as caught:
                await session.upload_file(b"{}\n")
    assert isinstance(caught.value, ReplyTimeout)
