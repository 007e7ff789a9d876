"""Setting up a session, with an aiohttp session of its own or a borrowed one, and its headers and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
import warnings
from asyncio import StreamWriter
from typing import Any

import aiohttp
import pytest

from aiofinetune import ConfigurationError, ConnectFailed, FineTuneError, FineTuneSession, ProtocolViolation, Timeout
from tests.servers.rawserver import KEY, Received, answering, reply, serve, session_for, targets
from tests.session.calls import MODELS, ONCE, REQUEST, create, list_models

pytestmark = pytest.mark.fastforward


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


def test_socks_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy for all schemes counts where the scheme has none of its own; one of SOCKS is said to be missing."""
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1080")
    with pytest.raises(ConfigurationError, match=r"^all_proxy names a proxy .*\(SOCKS is not supported"):
        FineTuneSession(KEY)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    FineTuneSession(KEY)


async def test_refusing_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A create that the proxy did not let out was not sent, and nothing shows the proxy's password."""
    async with serve(answering(reply(407, connection="close"))) as proxy:
        monkeypatch.setenv("https_proxy", proxy.removesuffix("/v1").replace("//", "//me:pass-word@"))
        async with FineTuneSession(KEY, base_url="https://service.test/v1", retry=ONCE) as session:
            with pytest.raises(ConnectFailed, match="the proxy refused to connect: 407") as caught:
                await session.create_fine_tune(REQUEST)
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("wrong", [{"timeout": 5}, {"retry": 3}, {"timeout": None}])
def test_policies_of_another_kind(wrong: dict[str, Any]) -> None:
    """A number of seconds is no Timeout, and a number of tries no Retry."""
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"^{name}: expected a {name.title()}, got "):
        FineTuneSession(KEY, **wrong)


@pytest.mark.parametrize("key", [5, b"sk-hidden"])
def test_a_key_of_another_type(key: Any) -> None:
    """What is no text is no key, and is not shown: bytes would be sent with their quotes."""
    with pytest.raises(ConfigurationError, match=r"^api_key: expected a text or a function, got (int|bytes)$"):
        FineTuneSession(key)


@pytest.mark.parametrize("name", ["base_url", "organization", "api_version", "http"])
def test_settings_of_another_type(name: str) -> None:
    """A setting of a wrong type is refused by its name."""
    settings: dict[str, Any] = {name: 5}
    with pytest.raises(ConfigurationError, match=f"^{name}: expected .*, got 5$"):
        FineTuneSession(KEY, **settings)


@pytest.mark.parametrize("name", ["connect", "reply", "stall", "stream"])
@pytest.mark.parametrize("value", ["5", None, True])
def test_times_that_are_no_numbers(name: str, value: Any) -> None:
    """A text is no number of seconds."""
    with pytest.raises(ConfigurationError, match=f"^{name}: expected more than 0 seconds, got "):
        Timeout(**{name: value})


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
    """Calls accept JSON and streams accept events, with our name and key, also on a borrowed session."""
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


@pytest.mark.parametrize("name", ["api_key", "base_url"])
def test_an_empty_setting_is_not_replaced_by_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty key or URL, as of a variable that is not set, is refused: only None stands for the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "the-key-of-another-service")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://another.example/v1")
    settings: dict[str, Any] = {"api_key": "a-key", "base_url": "https://this.example/v1", name: ""}
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        FineTuneSession(**settings)
