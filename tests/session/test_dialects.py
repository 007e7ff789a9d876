"""A session in each dialect: where its dialect comes from, how it shows its key, what it says of another's replies."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest

from aiofinetune import (
    AuthenticationFailed,
    BadRequest,
    ConfigurationError,
    ConnectFailed,
    FineTuneError,
    FineTuneRequest,
    FineTuneSession,
    FineTuneUnreadable,
    ProtocolViolation,
    Retry,
)
from aiofinetune.dialects import DIALECTS
from tests.servers.rawserver import KEY, Received, answering, reply, serve
from tests.session.calls import FILE, ONCE
from tests.session.test_key_is_hidden import every_local, everything_said

pytestmark = pytest.mark.fastforward

JOB = {"id": "ftjob-1", "object": "fine_tuning.job", "status": "running", "model": "m", "training_file": "file-1"}
REQUEST = FineTuneRequest(training_file="file-1", model="m")
FAST = Retry(attempts=2, base=0.001, cap=0.001, grace=0.01)

# Which dialect


def test_argument_environment_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dialect is the argument, else the environment's, else the host's, else the reference."""
    assert FineTuneSession(KEY).dialect.name == "fine-tunes"
    assert FineTuneSession(KEY, base_url="https://api.tokenfactory.nebius.com/v1").dialect.name == "nebius"
    monkeypatch.setenv("AIOFINETUNE_DIALECT", "jobs")
    assert FineTuneSession(KEY).dialect.name == "jobs"
    assert FineTuneSession(KEY).base_url == "https://api.openai.com/v1"
    assert FineTuneSession(KEY, dialect="nebius").base_url == "https://api.tokenfactory.nebius.com/v1"
    mine = attrs.evolve(DIALECTS["jobs"], name="mine")
    assert FineTuneSession(KEY, dialect=mine).dialect is mine
    assert repr(FineTuneSession(KEY)) == "FineTuneSession(base_url='https://api.openai.com/v1', dialect='jobs')"
    monkeypatch.setenv("AIOFINETUNE_DIALECT", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://x.openai.azure.com/openai/v1")
    assert FineTuneSession(KEY).dialect.name == "azure"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dialect": "openai"}, "dialect: expected a Dialect or one of fine-tunes, jobs"),
        ({"dialect": "azure"}, "base_url: missing"),
        ({"dialect": "jobs", "api_version": "2024-10-21"}, "api_version: the dialect 'jobs' does not take it"),
        ({"base_url": "https://x.openai.azure.com/openai"}, "api_version: .* needs one"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    """A configuration that cannot work is refused, with what to do."""
    with pytest.raises(ConfigurationError, match=words):
        FineTuneSession(KEY, **options)


# Azure


@pytest.mark.parametrize("path", ["/openai/v1", "/api/projects/p/openai/v1", "/openai"])
async def test_azure(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At Azure the key has a header of its own, and each URL the version that was asked for, whatever else it has."""
    seen: list[Received] = []
    async with serve(answering(reply(body={"data": [JOB]}), seen=seen)) as url:
        base_url = url.removesuffix("/v1") + path
        async with FineTuneSession(KEY, base_url=base_url, dialect="azure", api_version="2025-04-01") as session:
            await session.list_fine_tunes()
            await session.list_files("fine-tune")
        monkeypatch.setenv("OPENAI_API_VERSION", "preview")
        async with FineTuneSession(KEY, base_url=base_url, dialect="azure") as session:
            await session.list_models()
    assert [each.target for each in seen] == [
        f"{path}/fine_tuning/jobs?api-version=2025-04-01&limit=100",
        f"{path}/files?api-version=2025-04-01&purpose=fine-tune",
        f"{path}/models?api-version=preview",
    ]
    assert all(each.headers["api-key"] == KEY and "authorization" not in each.headers for each in seen)


async def test_advice_of_azure() -> None:
    """An answer of Azure that misleads comes with what may be missing."""
    body = {"error": {"message": "The specified base model does not support fine-tuning."}}
    async with (
        serve(answering(reply(400, body))) as url,
        FineTuneSession(KEY, base_url=url, dialect="azure", retry=FAST) as session,
    ):
        with pytest.raises(BadRequest, match="trainingType"):
            await session.create_fine_tune(REQUEST)


@pytest.mark.parametrize("dialect", ["jobs", "azure", "nebius"])
@pytest.mark.parametrize(
    "raw",
    [
        reply(401, {"error": {"message": f"wrong key: {KEY}", "code": KEY}}),
        reply(200, {"data": KEY}),
        reply(200, {"data": [{"id": [KEY]}]}),
        reply(307, b"", Location=f"/v1/loop?key={KEY}"),
        f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode(),
    ],
    ids=range(5),
)
async def test_key_is_never_shown(dialect: str, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever header carries the key, a service that echoes it gets it into no error, no local and no log."""
    caplog.set_level(logging.DEBUG)

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    calls: list[Callable[[FineTuneSession], Any]] = [
        lambda session: session.list_fine_tunes(),
        lambda session: session.create_fine_tune(REQUEST),
        lambda session: session.stream_fine_tune_events("ftjob-1").__aenter__(),
        lambda session: session.upload_file(b"x"),
    ]
    for call in calls:
        async with serve(handler) as url, FineTuneSession(KEY, base_url=url, dialect=dialect, retry=ONCE) as session:
            with pytest.raises(FineTuneError) as caught:
                await call(session)
        assert KEY not in everything_said(caught.value)
        assert KEY not in every_local(caught.value)
    assert KEY not in caplog.text


# Tokens


def jwt(name: str, expires_at: float) -> str:
    """A token that says when it expires; its signature is not looked at here."""
    payload = base64.urlsafe_b64encode(json.dumps({"exp": expires_at, "name": name}).encode()).decode().rstrip("=")
    return f"head.{payload}.{name}"


class Tokens:
    """Gives one token after another, as a function or as a coroutine."""

    def __init__(self, *tokens: str) -> None:
        self.left = list(tokens)

    def give(self) -> str:
        """Give the next one."""
        return self.left.pop(0)

    async def give_later(self) -> str:
        """Give the next one when awaited."""
        await asyncio.sleep(0)
        return self.left.pop(0)


def accepting(token: str, seen: list[str]) -> Callable[[Received, StreamWriter], Any]:
    """A service that takes one token."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request.headers["authorization"])
        is_right = seen[-1] == f"Bearer {token}"
        writer.write(reply(body={**JOB, "data": []}) if is_right else reply(401, {"error": f"expired: {seen[-1]}"}))

    return handler


@pytest.mark.parametrize("is_async", [False, True])
async def test_token_is_asked_for_again(is_async: bool) -> None:
    """A token that the service refuses is replaced, and the call sent again; a create is made once all the same."""
    seen: list[str] = []
    tokens = Tokens("token-one", "token-two")
    source = tokens.give_later if is_async else tokens.give
    async with (
        serve(accepting("token-two", seen)) as url,
        FineTuneSession(source, base_url=url, dialect="azure") as session,
    ):
        job = await session.create_fine_tune(REQUEST)
        await session.list_fine_tunes()
    assert job.id == "ftjob-1"
    assert seen == ["Bearer token-one", "Bearer token-two", "Bearer token-two"]


async def test_token_that_expires() -> None:
    """A token that is about to expire by what it says is replaced unasked, and one that is not is kept."""
    seen: list[Received] = []
    old, new = jwt("old", time.time() + 60), jwt("new", time.time() + 3600)
    async with (
        serve(answering(reply(body={"data": []}), seen=seen)) as url,
        FineTuneSession(Tokens(old, new).give, base_url=url, dialect="jobs") as session,
    ):
        for _ in range(3):
            await session.list_models()
    assert [each.headers["authorization"] for each in seen] == [f"Bearer {old}", f"Bearer {new}", f"Bearer {new}"]


async def test_token_of_a_stream() -> None:
    """A stream of the reference takes a new token too."""
    seen: list[str] = []
    source = Tokens("token-one", "token-two").give
    async with (
        serve(accepting("token-two", seen)) as url,
        FineTuneSession(source, base_url=url, dialect="fine-tunes", retry=FAST) as session,
        session.stream_fine_tune_events("ft-1") as events,
    ):
        with pytest.raises(ProtocolViolation):
            await anext(events)
    assert seen == ["Bearer token-one", "Bearer token-two"]


async def test_tokens_are_never_shown() -> None:
    """A service that echoes a token gets neither it nor the one before into an error or a local."""
    async with serve(accepting("no-token-is-right", [])) as url:
        tokens = Tokens("token-one-5d1f", "token-two-5d1f")
        async with FineTuneSession(tokens.give, base_url=url, dialect="azure") as session:
            with pytest.raises(AuthenticationFailed) as caught:
                await session.list_models()
    for token in ("token-one-5d1f", "token-two-5d1f"):
        assert token not in everything_said(caught.value)
        assert token not in every_local(caught.value)


@pytest.mark.parametrize(
    ("source", "words"), [(lambda: 1 / 0, "raised ZeroDivisionError"), (lambda: 7, "returned int"), (str, "header")]
)
async def test_source_that_fails(source: Any, words: str) -> None:
    """A function that fails, or gives no token, is named in the error; nothing is sent."""
    seen: list[Received] = []
    async with serve(answering(reply(), seen=seen)) as url, FineTuneSession(source, base_url=url) as session:
        with pytest.raises(ConfigurationError, match=words):
            await session.list_models()
    assert seen == []


@pytest.mark.parametrize("is_async", [False, True])
async def test_source_that_cannot_be_reached(is_async: bool) -> None:
    """A function that fails to reach what gives the tokens is asked again, as often as a call is retried."""
    failing = [TimeoutError("too slow"), ConnectionResetError(104, "reset")]

    def give() -> str:
        if failing:
            raise failing.pop(0)
        return "token"

    async def give_later() -> str:
        return give()

    source = give_later if is_async else give
    async with (
        serve(accepting("token", [])) as url,
        FineTuneSession(source, base_url=url, dialect="azure", retry=attrs.evolve(FAST, attempts=3)) as session,
    ):
        assert (await session.create_fine_tune(REQUEST)).id == "ftjob-1"
        failing += [OSError("no route")] * 3
        session._caller._token.refused("token")  # type: ignore[union-attr,arg-type]  # as if it had expired
        with pytest.raises(ConnectFailed, match=r"the function that gives the token raised OSError\('no route'\)"):
            await session.list_models()


async def test_source_that_returns_nothing() -> None:
    """A function that hangs is given up after a minute; calls that wait for it can be cancelled meanwhile."""

    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    seen: list[Received] = []
    async with (
        serve(answering(reply(), seen=seen)) as url,
        FineTuneSession(hang, base_url=url, dialect="azure", retry=ONCE) as session,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await session.list_models()
        begin = asyncio.get_running_loop().time()
        with pytest.raises(ConnectFailed, match="returned nothing for 60 s"):
            await session.create_fine_tune(REQUEST)
        assert 60 <= asyncio.get_running_loop().time() - begin < 120
    assert seen == []


async def test_upload_that_cannot_be_read_again() -> None:
    """A source that can be read once is not sent again with a new token, because nothing would be left of it."""
    uploads: list[bytes] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        uploads.append(request.body)
        writer.write(reply(401, {"error": "expired"}) if len(uploads) == 1 else reply(body=FILE))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}\n"

    async with (
        serve(handler) as url,
        FineTuneSession(Tokens("one", "two").give, base_url=url, dialect="azure") as session,
    ):
        with pytest.raises(AuthenticationFailed):
            await session.upload_file(pieces())
        assert len(uploads) == 1
        await session.upload_file(b"{}\n")
    assert b"{}\n" in uploads[-1]


async def test_events_are_read_with_a_new_token() -> None:
    """A job is followed on where the token expires: neither the events nor the job's end are missed."""
    seen: list[str] = []
    rows = {"data": [{"id": "e1", "message": "done", "created_at": 1}], "has_more": False}

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request.headers["authorization"])
        is_fresh = seen.count(seen[-1]) <= 1
        body = rows if "/events" in request.target else {**JOB, "status": "succeeded"}
        writer.write(reply(body=body) if is_fresh else reply(401, {"error": "expired"}))

    tokens = Tokens(*(f"token-{number}" for number in range(9)))
    async with (
        serve(handler) as url,
        FineTuneSession(tokens.give, base_url=url, dialect="azure", retry=ONCE) as session,
        session.stream_fine_tune_events("ftjob-1") as events,
    ):
        assert [event.message async for event in events] == ["done"]


# Another dialect's replies


async def test_reply_of_another_dialect(caplog: pytest.LogCaptureFixture) -> None:
    """A reply in the form of another dialect is said, with the dialect to pass; a job that was made is kept."""
    broken = {**JOB, "status": None}
    replies = answering(reply(body=JOB), reply(body={"data": [broken]}), reply(body=broken | {"id": "ftjob-2"}))
    async with serve(replies) as url, FineTuneSession(KEY, base_url=url, retry=FAST) as session:
        assert (await session.create_fine_tune(REQUEST)).id == "ftjob-1"
        assert "pass dialect='jobs'" in caplog.text
        with pytest.raises(ProtocolViolation, match="pass dialect='jobs'"):
            await session.list_fine_tunes()
        with pytest.raises(FineTuneUnreadable, match="pass dialect='jobs'"):
            await session.create_fine_tune(REQUEST)


async def test_odd_reply_of_no_dialect() -> None:
    """One that has the form of none is said without such advice."""
    async with serve(answering(reply(body=FILE | {"id": 7}))) as url, FineTuneSession(KEY, base_url=url) as session:
        with pytest.raises(ProtocolViolation) as caught:
            await session.retrieve_fine_tune("ft-1")
    assert "dialect" not in str(caught.value)
